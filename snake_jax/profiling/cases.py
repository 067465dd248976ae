"""From a configuration to what is profiled: the visits of its method are the rows.

Nothing is trained or read.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

from snake_jax.config import ImageConfig, RunConfig, TextConfig
from snake_jax.costs import compiled, shapes
from snake_jax.costs.shapes import BatchShape, Model
from snake_jax.costs.traffic import transfer_sizes
from snake_jax.errors import UserError
from snake_jax.models.language import LanguageModel
from snake_jax.models.layered import LayeredModel
from snake_jax.nodes import columns
from snake_jax.nodes.ledger import Sizes
from snake_jax.params import LayerNames, select, without
from snake_jax.profiling import cut, subjects, traffic
from snake_jax.profiling.rows import Case, ProfileRow, Sent
from snake_jax.profiling.subjects import Subject
from snake_jax.runs import image_task, text_checks, text_task
from snake_jax.runs.job import Job, chosen_algorithm, outline
from snake_jax.training import sharding

ALL = "all"  # of a row whose visit trains all that may train

Choice = Callable[[str], bool]  # whether a layer of this name is asked for


class Work(NamedTuple):
    """One way to train and store a model.

    Attributes:
      train: how people call what trains.
      frozen_dtype: of what does not; `-` where everything trains.
      job: of the run.
      subject: what the rows are made from.
      sizes: bytes of everything that may travel.
    """

    train: str
    frozen_dtype: str
    job: Job
    subject: Subject
    sizes: Sizes


def work(train: str, config: RunConfig, model: Model, target: str = "") -> Work:
    """What a configuration trains and stores.

    Args:
      train: how people call what trains.
      config: of images or of text.
      model: of the same kind.
      target: see `compiled.devices`; empty: nothing is to be compiled.

    Raises:
      UserError: flags that the method has no use for.
    """
    dtype = "-" if train == "full" else config.frozen_dtype
    algorithm = chosen_algorithm(config)
    if isinstance(config, TextConfig):
        assert isinstance(model, LanguageModel)
        text_job = text_task.make_job(config, algorithm, model)
        return _of_text(train, dtype, text_job, target)
    assert isinstance(config, ImageConfig)
    assert isinstance(model, LayeredModel)
    job = image_task.make_job(config, algorithm, model)
    step = image_task.make_step(job)
    subject = Subject(step, BatchShape(config.batch_size), config.frozen_dtype, target)
    sizes = transfer_sizes(job.task.like(job), config.frozen_dtype)
    return Work(train, dtype, job, subject, sizes)


def _of_text(train: str, dtype: str, job: text_task.TextJob, target: str) -> Work:
    """`work` of a language model."""
    config = job.config
    text_checks.check_products(config)
    mesh = _mesh(config, job.model.architecture, target)
    step = text_task.make_step(job)._replace(mesh=mesh)
    adapters = text_task.make_lora(config) if step.adapted else None

    # Where everything trains nothing is stored frozen: the dtype is of no account.
    batch = BatchShape(config.batch_size, config.max_length, config.packing)
    stored = "bfloat16" if dtype == "-" else config.frozen_dtype
    rank = columns.greatest(job.columns)
    subject = Subject(step, batch, stored, target, adapters, rank)

    # What travels: all that a plan's visits may train, and the rest as it is stored.
    trainable = shapes.trainable_shapes(job.model, adapters)
    params = select(trainable, job.plan.layer_names)
    base = without(shapes.model_shapes(job.model), params)
    own = columns.shapes(job.columns, params)
    sizes = transfer_sizes(own, config.frozen_dtype, base=base)
    return Work(train, dtype, job, subject, sizes)


def _mesh(config: TextConfig, architecture: Any, target: str) -> Mesh | None:
    """Over the devices of the target.

    Raises:
      UserError: there is a mesh and no target, or it does not divide batch and heads.
    """
    if not config.mesh:
        return None
    if not target:
        raise UserError(
            f"--mesh={config.mesh}: it divides what is compiled; say for what, as "
            f"--target=tpu:v5e:2x4"
        )
    devices = compiled.devices(target)
    sharding.check_mesh(
        config.mesh,
        config.batch_size,
        architecture.num_attention_heads,
        architecture.num_key_value_heads,
        devices,
    )
    return sharding.make_mesh(config.mesh, devices)


def full(config: RunConfig, model: Model, target: str = "") -> Work:
    """Full training of the same model on the same batch, as federated learning trains it.

    There is no teacher.

    Args:
      config: of the other way to train.
      model: of the same kind.
      target: see `compiled.devices`; empty: nothing is to be compiled.
    """
    # All that decides what a step computes and how large it is; the rest is as a run has it.
    same = ["model", "batch_size", "optimizer", "compute_dtype", "nodes", "momentum", "dp_clip"]
    changed: dict[str, Any] = {"algorithm": "fedavg"}
    if isinstance(config, TextConfig):
        same += ["max_length", "recompute", "packing", "mesh"]
        changed["lora_rank"] = 0
    kept = {name: getattr(config, name) for name in same}
    return work("full", type(config)(**kept, **changed), model, target)


def assignments(work: Work) -> dict[str, LayerNames]:
    """`{the layer that a visit is about: all that it trains}` of a cycle, in the model's order."""
    plan = work.job.plan
    named = {}
    for visits in outline(work.job).kinds:
        for visit in visits:
            about = _about(visit.layers, plan.always, plan.layer_names)
            named[about] = visit.layers

    # A cycle may go through the layers in any order: here by the last that a visit trains.
    order = {name: index for index, name in enumerate(plan.layer_names)}

    def by_last(about: str) -> int:
        return order.get(named[about][-1], 0)

    return {about: named[about] for about in sorted(named, key=by_last)}


def _about(layers: LayerNames, always: Sequence[str], every: Sequence[str]) -> str:
    """The layer that a visit is about, or several: those that not every visit trains."""
    # A whole model of one middle layer is a visit to that layer, as any other of its cycle.
    middle = [name for name in layers if name not in always]
    if layers == tuple(every) and len(middle) != 1:
        return ALL
    return "+".join(middle or layers)


def profile_rows(work: Work, chosen: Choice) -> tuple[ProfileRow, ...]:
    """The rows of the assignments whose layers are chosen; of a cut model those of its places.

    Args:
      work: a way to train.
      chosen: of a layer's name.
    """
    # Where data and model are in one place, nothing travels.
    sent: Mapping[LayerNames, Sent] = {}
    if not work.job.algorithm.at_server:
        sent = traffic.by_assignment(work.job, work.sizes)
    if len(work.job.chain) > 1:
        # A cut model trains whole at every visit: they all send the same.
        of_visit = next(iter(sent.values()))
        return cut.party_rows(work.job, work.subject, of_visit)
    found = []
    for layer, trained in assignments(work).items():
        if layer == ALL or chosen(layer):
            found.append(subjects.row_of(work.subject, layer, trained, sent.get(trained)))
    return tuple(found)


def case(work: Work, reference: ProfileRow, chosen: Choice) -> Case:
    """All that shapes say of a way to train and store."""
    return Case(work.train, work.frozen_dtype, profile_rows(work, chosen), reference)


def reference(work: Work) -> ProfileRow:
    """The row of full training."""
    (row,) = profile_rows(work, _every)
    return row


def _every(layer: str) -> bool:
    del layer
    return True


def choice(flag: str, names: Sequence[str]) -> Choice:
    """Which layers a flag names: all, or names and numbers that names end with, by comma.

    Raises:
      UserError: no layer is called so.
    """
    if flag == "all":
        return _every
    # Every word has to name something: a layer that is misspelt is told, not left out.
    wanted: set[str] = set()
    for word in flag.split(","):
        found = [name for name in names if _is_called(name, word)]
        if not found:
            raise UserError(
                f"--layers={flag}: {word or 'a gap'} is none of {', '.join(names)}; or say all"
            )
        wanted.update(found)

    def is_wanted(name: str) -> bool:
        return name in wanted

    return is_wanted


def _is_called(name: str, word: str) -> bool:
    """Whether a word is the name of a layer, with or without `.lora`, or the number at its end."""
    if word in (name, _base(name)):
        return True
    return word.isdecimal() and _number(name) == int(word)


def _base(name: str) -> str:
    return name.partition(".")[0]


def _number(name: str) -> int | None:
    """The number that a layer's name ends with; None without one."""
    base = _base(name)
    digits = base[len(base.rstrip("0123456789")) :]
    return int(digits) if digits else None
