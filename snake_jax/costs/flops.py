"""FLOPs of a step: one walk over the costs of its layers, of images and language alike.

`costs.layers` says what each layer costs; docs/accounting.md what each number holds.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from snake_jax.algorithms.chain import ON_NODE, Chain, Role, Segment, roles
from snake_jax.algorithms.visits import Passed


class LayerCost(NamedTuple):
    """FLOPs of one layer, for a batch of images or a row of text.

    Attributes:
      name: of the layer, or of a block's adapters.
      params: numbers that may train.
      forward: its forward pass.
      input_gradient: the gradient of its input, which is all where gradients only pass through.
      weight_gradient: the gradient of what trains in it.
      inner_gradient: in the lowest trained layer, which needs no gradient of its input: what leads
        to weights of its own that lie below others of its own.
      recomputed: of its forward pass, what the backward pass computes again to pass through.
      recomputed_for_weights: what it computes again besides where the layer trains.
      rerun: what loss and teacher each compute again whatever is kept: logits are never kept.
      looped: whether it is a turn of a loop over layers that are alike. The turns that train are
        one program, so of several the lowest takes the gradient of its input too.
    """

    name: str
    params: int
    forward: int
    input_gradient: int
    weight_gradient: int
    inner_gradient: int = 0
    recomputed: int = 0
    recomputed_for_weights: int = 0
    rerun: int = 0
    looped: bool = False


class StepFlops(NamedTuple):
    """FLOPs of one step by what they are for.

    Attributes:
      forward: of all layers.
      recomputed: in the backward pass, of what the forward pass did not keep.
      input_gradients: of the layers that the backward pass goes through.
      weight_gradients: of the layers that train.
      teacher: its forward pass.
    """

    forward: int
    recomputed: int
    input_gradients: int
    weight_gradients: int
    teacher: int

    @property
    def total(self) -> int:
        """The sum."""
        return sum(self)


def step_flops(
    costs: Sequence[LayerCost],
    trained: Sequence[str],
    *,
    teacher: bool = False,
    stochastic: bool = False,
) -> int:
    """FLOPs of one step that trains these layers: the sum of `step_parts`."""
    return step_parts(costs, trained, teacher=teacher, stochastic=stochastic).total


def step_parts(
    costs: Sequence[LayerCost],
    trained: Sequence[str],
    *,
    teacher: bool = False,
    stochastic: bool = False,
    given: bool = False,
) -> StepFlops:
    """FLOPs of one step that trains these layers, by what they are for.

    Args:
      costs: of all layers, in the order of the forward pass.
      trained: names of those that train.
      teacher: whether the layers as received run forward too.
      stochastic: whether training draws random numbers (dropout).
      given: whether the output of what lies below the lowest trained layer was computed before.
    """
    lowest = _lowest(costs, trained)
    reached = costs[lowest:]
    training = [cost for cost in costs if cost.name in trained]

    # Forward through all layers, or from where the output of those below was kept.
    computed = reached if given else costs
    forward = sum(cost.forward for cost in computed)

    # Backward from the loss down to the lowest trained layer, which needs no gradient of its input
    # unless it is one of several turns of a loop.
    input_gradients = 0
    recomputed = 0
    for cost in reached:
        input_gradients += cost.input_gradient
        recomputed += cost.recomputed + cost.rerun
    turns = sum(cost.looped for cost in training)
    if reached:
        last = reached[0]
        in_loop = last.looped and turns > 1
        if not in_loop:
            input_gradients += last.inner_gradient - last.input_gradient

    weight_gradients = 0
    for cost in training:
        weight_gradients += cost.weight_gradient
        recomputed += cost.recomputed_for_weights

    # A teacher shares what lies below the lowest trained layer, unless dropout tells them apart: it
    # does not drop what the student drops.
    taught: Sequence[LayerCost] = ()
    if teacher:
        taught = costs if stochastic else reached
    of_teacher = sum(cost.forward + cost.rerun for cost in taught)
    return StepFlops(forward, recomputed, input_gradients, weight_gradients, of_teacher)


def passed_flops(
    costs: Sequence[LayerCost],
    trained: Sequence[str],
    passed: Passed,
    *,
    teacher: bool = False,
    stochastic: bool = False,
) -> int:
    """FLOPs of rows of text that a visit passed.

    Args:
      costs: of a row of that length, from `row_costs`.
      trained: what the visit trains.
      passed: the rows.
      teacher: see `step_parts`.
      stochastic: see `step_parts`.
    """
    # Rows that were passed to fill the cache of what the lowest trained layer reads.
    if passed.prefix:
        below = costs[: _lowest(costs, trained)]
        return passed.rows * sum(cost.forward for cost in below)
    parts = step_parts(costs, trained, teacher=teacher, stochastic=stochastic, given=passed.given)
    return passed.rows * parts.total


def _lowest(costs: Sequence[LayerCost], trained: Sequence[str]) -> int:
    """The index of the lowest trained layer; the number of layers where none trains."""
    names = [cost.name for cost in costs]
    return min(map(names.index, trained), default=len(names))


def chain_step_flops(
    chain: Chain,
    costs: Sequence[LayerCost],
    auxiliary: Sequence[LayerCost],
    gradients: bool,
    trained: Sequence[str] | None = None,
) -> Mapping[Role, int]:
    """FLOPs of one step by role: the sums of `chain_step_parts`."""
    parts = chain_step_parts(chain, costs, auxiliary, gradients, trained)
    return {role: flops.total for role, flops in parts.items()}


def chain_step_parts(
    chain: Chain,
    costs: Sequence[LayerCost],
    auxiliary: Sequence[LayerCost],
    gradients: bool,
    trained: Sequence[str] | None = None,
) -> Mapping[Role, StepFlops]:
    """FLOPs of one step of a cut model by role and by what they are for; there is no teacher.

    Args:
      chain: of the visit.
      costs: of the model's layers, for a batch or a row.
      auxiliary: of layers that train on the visiting node beside the model's.
      gradients: whether gradients cross the cuts.
      trained: names of the layers that train; None: all.
    """
    if trained is None:
        trained = [cost.name for cost in costs]
    lowest = _lowest(costs, trained)
    found: dict[Role, StepFlops] = {}
    for role in roles(chain):
        # Auxiliary layers sit on the node's last one, which wants their input's gradient.
        beside = auxiliary if role == ON_NODE else ()
        forward = sum(cost.forward for cost in beside)
        input_gradients = sum(cost.input_gradient for cost in beside)
        weight_gradients = sum(cost.weight_gradient for cost in beside)
        total = StepFlops(forward, 0, input_gradients, weight_gradients, 0)
        for segment in chain:
            if segment.role == role:
                # The gradient of an input is computed where something below the layer waits for
                # it: not at the lowest that trains, nor above a cut that no gradient crosses.
                floor = lowest if gradients else max(lowest, segment.start)
                parts = _segment_parts(segment, costs, trained, floor)
                total = StepFlops(*map(sum, zip(total, parts, strict=True)))
        found[role] = total
    return found


def _segment_parts(
    segment: Segment, costs: Sequence[LayerCost], trained: Sequence[str], floor: int
) -> StepFlops:
    """FLOPs of a segment in a step whose backward pass ends at layer `floor`."""
    layers = costs[segment.start : segment.stop]
    turns = sum(cost.looped and cost.name in trained for cost in layers)
    recomputed = 0
    input_gradients = 0
    weight_gradients = 0
    for index, cost in enumerate(layers, segment.start):
        if index < floor:
            continue
        recomputed += cost.recomputed + cost.rerun
        if cost.name in trained:
            recomputed += cost.recomputed_for_weights
            weight_gradients += cost.weight_gradient
        # As in `step_parts`: the lowest of several turns of a loop takes its input's gradient too.
        ends_here = index == floor and not (cost.looped and turns > 1)
        input_gradients += cost.inner_gradient if ends_here else cost.input_gradient
    forward = sum(cost.forward for cost in layers)
    return StepFlops(forward, recomputed, input_gradients, weight_gradients, 0)
