"""From a configuration to what is profiled: the visits of its method are the rows, nothing is
trained or read.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

from snake_jax.config import ImageConfig, RunConfig, TextConfig
from snake_jax.costs import accounting, language_costs, language_profile, targets
from snake_jax.errors import UserError
from snake_jax.models.language import LanguageModel
from snake_jax.models.layered import LayeredModel
from snake_jax.nodes.ledger import Sizes
from snake_jax.params import without
from snake_jax.profiling import language, traffic, vision
from snake_jax.profiling.rows import Case, Row, Subject, row_of
from snake_jax.runs import image_task, text_task
from snake_jax.runs.job import Job, chosen_algorithm, planned
from snake_jax.train import sharding
from snake_jax.train.text_step import ENDS

Model = LayeredModel | LanguageModel
ALL = "all"  # of a row whose visit trains all that may train


class Work(NamedTuple):
    """One way to train and store a model.

    Attributes:
      train: how people call what trains.
      frozen_dtype: of what does not; `-` where everything trains.
      setup: without data.
      subject: what the rows are made from.
      sizes: bytes of everything that may travel.
    """

    train: str
    frozen_dtype: str
    setup: Job
    subject: Subject
    sizes: Sizes


def work(train: str, config: RunConfig, model: Model, target: str = "") -> Work:
    """What a configuration trains and stores.

    Args:
      train: how people call what trains.
      config: of images or of text.
      model: of the same kind.
      target: see `targets.devices`; empty: nothing is to be compiled.

    Raises:
      UserError: flags that the method has no use for.
    """
    dtype = "-" if train == "full" else config.frozen_dtype
    if isinstance(config, TextConfig):
        assert isinstance(model, LanguageModel)
        return _of_text(
            train, dtype, text_task.make_job(config, chosen_algorithm(config), model), target
        )
    assert isinstance(config, ImageConfig)
    assert isinstance(model, LayeredModel)
    setup = image_task.make_job(config, chosen_algorithm(config), model)
    step = vision.local_step(config, model, setup.distilled)
    subject = vision.subject(step, config.batch_size, config.frozen_dtype, target)
    params = setup.task.like(setup)
    return Work(
        train, dtype, setup, subject, accounting.transfer_sizes(params, config.frozen_dtype)
    )


def _of_text(train: str, dtype: str, setup: Job, target: str) -> Work:
    config, step = setup.config, text_task.make_step(setup)
    text_task.check_products(config)
    step = step._replace(mesh=_mesh(config, setup.model.architecture, target))
    settings = text_task.make_lora(config) if step.adapted else None
    text = language.Text(config.batch_size, config.max_length, config.packing)
    stored = "bfloat16" if dtype == "-" else config.frozen_dtype
    subject = language.subject(step, settings, stored, text, target)
    shapes = language_profile.model_shapes(setup.model)
    like = language_profile.trainable_shapes(step, settings, ENDS)
    params = {name: like[name] for name in setup.plan.layer_names}
    sizes = language_costs.transfer_sizes(params, without(shapes, params), config.frozen_dtype, {})
    return Work(train, dtype, setup, subject, sizes)


def _mesh(config: TextConfig, architecture: Any, target: str) -> Mesh | None:
    """Over the devices of the target."""
    if not config.mesh:
        return None
    if not target:
        raise UserError(
            f"--mesh={config.mesh}: it divides what is compiled; say for what, as "
            f"--target=tpu:v5e:2x4"
        )
    devices, heads = (
        targets.devices(target),
        (architecture.num_attention_heads, architecture.num_key_value_heads),
    )
    sharding.check(config.mesh, config.batch_size, *heads, devices)
    return sharding.make_mesh(config.mesh, devices)


def full(config: RunConfig, model: Model, target: str = "") -> Work:
    """Full training of the same model on the same batch, as federated learning trains it, without a
    teacher.
    """
    same: tuple[str, ...] = (
        "model",
        "batch_size",
        "optimizer",
        "compute_dtype",
        "nodes",
        "momentum",
    )
    same += ("max_length", "recompute", "packing", "mesh") if isinstance(config, TextConfig) else ()
    kept = {name: getattr(config, name) for name in same}
    plain: dict[str, Any] = {"lora_rank": 0} if isinstance(config, TextConfig) else {}
    return work("full", type(config)(algorithm="fedavg", **kept, **plain), model, target)


def assignments(work: Work) -> dict[str, tuple[str, ...]]:
    """`{the layer that a visit is about: all that it trains}` of a cycle, in the model's order."""
    plan = work.setup.plan
    visits = dict.fromkeys(visit.layers for visits in planned(work.setup) for visit in visits)
    named = {_about(layers, plan.always, plan.layer_names): layers for layers in visits}
    order = {name: place for place, name in enumerate(plan.layer_names)}
    return dict(sorted(named.items(), key=lambda item: order.get(item[1][-1], 0)))


def _about(layers: tuple[str, ...], always: Sequence[str], every: Sequence[str]) -> str:
    middle = [name for name in layers if name not in always]
    return ALL if layers == tuple(every) and len(middle) != 1 else "+".join(middle or layers)


def rows(work: Work, chosen: Callable[[str], bool]) -> tuple[Row, ...]:
    """The rows of the assignments that are chosen by their layers' names; of a cut model those of
    its places.
    """
    sent = (
        traffic.by_assignment(work.setup, work.sizes) if not work.setup.algorithm.at_server else {}
    )
    if len(work.setup.chain) > 1:
        return vision.place_rows(work.setup, next(iter(sent.values())))
    found = assignments(work)
    return tuple(
        row_of(work.subject, layer, found[layer], sent.get(found[layer]))
        for layer in found
        if layer == ALL or chosen(layer)
    )


def case(work: Work, reference: Row, chosen: Callable[[str], bool]) -> Case:
    """All that shapes say of a way to train and store."""
    return Case(work.train, work.frozen_dtype, rows(work, chosen), reference)


def reference(work: Work) -> Row:
    """The row of full training."""
    (row,) = rows(work, lambda _: True)
    return row


def choice(flag: str, names: Sequence[str]) -> Callable[[str], bool]:
    """Which layers a flag names: all, or names and numbers that names end with, by comma.

    Raises:
      UserError: no layer is called so.
    """
    if flag == "all":
        return lambda _: True
    wanted = set()
    for word in flag.split(","):
        found = [
            name
            for name in names
            if name == word
            or (word.isdecimal() and _number(name) == int(word))
            or _base(name) == word
        ]
        if not found:
            raise UserError(
                f"--layers={flag}: {word or 'a gap'} is none of {', '.join(names)}; or say all"
            )
        wanted.update(found)
    return lambda name: name in wanted


def _base(name: str) -> str:
    return name.partition(".")[0]


def _number(name: str) -> int | None:
    base = _base(name)
    digits = base[len(base.rstrip("0123456789")) :]
    return int(digits) if digits else None
