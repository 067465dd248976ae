"""Networks for images as subjects of the profiler: layers, and the places of a model that is
cut.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snake_jax.algorithms import chain as chains
from snake_jax.algorithms.chain import ON_NODE, ON_SERVER
from snake_jax.config import ImageConfig
from snake_jax.costs import accounting, targets
from snake_jax.costs.accounting import LayerCost, StateBytes, StepFlops
from snake_jax.costs.targets import Compiled, Refused
from snake_jax.data.images import dataset
from snake_jax.models.layered import LayeredModel
from snake_jax.nodes import ledger
from snake_jax.params import num_bytes, num_params, select
from snake_jax.profiling.rows import Counted, Row, Sent, Subject
from snake_jax.runs import image_task
from snake_jax.runs.job import Job, make_rule
from snake_jax.train.image_step import Distillation, LocalStep
from snake_jax.train.optimizers import init_states, update_rule

MEAN, STD = (0.5,) * 3, (0.25,) * 3
"""Images are normalised by some numbers; which does not change what a step takes."""


def local_step(config: ImageConfig, model: LayeredModel, distilled: bool) -> LocalStep:
    """The step of a configuration on images of any data set."""
    return LocalStep(
        model=model,
        rule=update_rule(
            config.optimizer, momentum=config.momentum, weight_decay=config.weight_decay
        ),
        clip_norm=config.clip_norm,
        normalise=lambda images: dataset.normalise(images, MEAN, STD),
        distillation=Distillation(config.distill_temperature, config.distill_weight)
        if distilled
        else None,
        compute_dtype=jnp.dtype(config.compute_dtype),
    )


def subject(step: LocalStep, batch_size: int, frozen_dtype: str, target: str = "") -> Subject:
    """One way to store a network that trains some layers.

    Args:
      step: the local step.
      batch_size: B.
      frozen_dtype: see `quantization.freeze`.
      target: see `targets.devices`; empty: nothing is compiled.
    """
    costs = accounting.layer_costs(step.model, batch_size)
    device = targets.devices(target)[0] if target else None
    params = {cost.name: cost.params for cost in costs}
    taught: dict[str, Any] = {
        "teacher": step.distillation is not None,
        "stochastic": step.model.stochastic,
    }

    def counted(trained: tuple[str, ...], built: Compiled | Refused) -> Counted | None:
        if isinstance(built, Refused):
            return None
        return Counted(built.flops, accounting.step_flops(costs, trained, **taught))

    return Subject(
        params=lambda trained: sum(params[name] for name in trained),
        flops=lambda trained: accounting.step_parts(costs, trained, **taught),
        state=lambda trained: accounting.state_bytes(step, trained, frozen_dtype),
        program=lambda trained: trained,
        compiled=lambda trained: accounting.compiled_step(
            step, trained, batch_size, frozen_dtype, device
        ),
        counted=counted,
        runner=lambda trained, built: _runner(
            step, trained, batch_size, frozen_dtype, built, device
        ),
    )


def _runner(
    step: LocalStep,
    trained: tuple[str, ...],
    batch_size: int,
    frozen_dtype: str,
    built: Compiled,
    device: Any,
) -> Callable[[], Any]:
    with jax.default_device(device):
        trainable, states, *rest = accounting.step_arguments(
            step, trained, batch_size, frozen_dtype
        )
    given = [trainable, states]

    def one_step() -> Any:
        given[0], given[1], stats = built.program(*given, *rest)
        return stats

    return one_step


class Place(NamedTuple):
    """A place of a cut model: its name, its role in the chain, and the layers that it holds and
    trains.
    """

    name: str
    role: int
    layers: tuple[str, ...]


def places(setup: Job) -> tuple[Place, ...]:
    """The places that a visit of a cut model lies on, in the order of the forward pass."""
    names, beside = setup.model.layer_names, tuple(layer.name for layer in setup.auxiliary)
    titles = {ON_NODE: "node", ON_SERVER: ledger.SERVER}
    return tuple(
        Place(
            titles.get(role, f"node {role} before"),
            role,
            chains.held(setup.chain, names, role) + (beside if role == ON_NODE else ()),
        )
        for role in chains.roles(setup.chain)
    )


def place_rows(setup: Job, sent: Sent) -> tuple[Row, ...]:
    """A row for each place of a cut model; the weights of a visit go to and from its node.

    Args:
      setup: of the split method.
      sent: bytes of weights of a visit.
    """
    params = jax.eval_shape(lambda: image_task.init_params(setup, jax.random.key(0)))
    flops = _flops_by_role(setup)
    rows = []
    for place in places(setup):
        held = select(params, place.layers)
        states = jax.eval_shape(
            lambda held: init_states(make_rule(setup.config), held, setup.layer_names), held
        )
        weights = num_bytes(held)
        state = StateBytes(0, weights, weights, num_bytes(states), 0)
        moved = sent if place.role == ON_NODE else None
        rows.append(
            Row(place.name, place.layers, num_params(held), flops[place.role], state, moved)
        )
    return tuple(rows)


def _flops_by_role(setup: Job) -> dict[int, StepFlops]:
    """`chain.step_flops` of each kind of FLOPs by itself."""
    batch_size, model = setup.config.batch_size, setup.model
    costs = accounting.layer_costs(model, batch_size)
    lower = model._replace(layers=model.layers[: setup.chain[0].stop] + setup.auxiliary)
    heads = accounting.layer_costs(lower, batch_size)[setup.chain[0].stop :]
    gradients = not setup.algorithm.local_losses

    def of_kind(kind: str) -> Mapping[int, int]:
        only, beside = ([_only(kind, cost) for cost in part] for part in (costs, heads))
        return accounting.chain_step_flops(setup.chain, only, beside, gradients)

    forward, inputs, weights = map(
        of_kind, ("forward_flops", "input_gradient_flops", "weight_gradient_flops")
    )
    return {role: StepFlops(forward[role], 0, inputs[role], weights[role], 0) for role in forward}


def _only(kind: str, cost: LayerCost) -> LayerCost:
    return LayerCost(cost.name, cost.params, 0, 0, 0)._replace(**{kind: getattr(cost, kind)})


def cut_bytes(setup: Job) -> list[tuple[str, int]]:
    """What a step sends over the cuts, as words and bytes, in the order of sending."""
    titles = {place.role: place.name for place in places(setup)}
    gradients, batch_size = not setup.algorithm.local_losses, setup.config.batch_size
    sent = chains.messages(setup.chain, setup.model, setup.config.compute_dtype, gradients)
    return [
        (
            f"{_words(message)}, {titles[message.source]} to {titles[message.destination]}",
            message.bytes * batch_size,
        )
        for message in sent
    ]


def _words(message: chains.Message) -> str:
    return message.why if message.why == message.item else f"{message.why} of {message.item}"
