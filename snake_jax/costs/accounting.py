"""FLOPs and bytes of layers, steps and states: counted from shapes, and as the compiler counts
them.

docs/accounting.md says what each number holds.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from snake_jax.algorithms.chain import ON_NODE, Chain, roles
from snake_jax.costs import targets
from snake_jax.costs.targets import Compiled, Refused
from snake_jax.models.layered import LayeredModel
from snake_jax.nodes.ledger import Sizes, optimizer_item
from snake_jax.params import Params, num_bytes, num_params, select, without
from snake_jax.train import quantization
from snake_jax.train.image_step import Batches, Examples, LocalStep, local_epoch
from snake_jax.train.optimizers import init_states


class LayerCost(NamedTuple):
    """A layer's parameters, and FLOPs for a batch of one pass forward, its input gradient and its
    weight gradient.
    """

    name: str
    params: int
    forward_flops: int
    input_gradient_flops: int
    weight_gradient_flops: int


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


class StateBytes(NamedTuple):
    """What a node holds through a visit, by kind: frozen weights, trained weights in float32, their
    gradients, their optimizer states, and the trained weights as received where a teacher or a
    proximal term needs them.
    """

    frozen: int
    trained: int
    gradients: int
    optimizer: int
    received: int

    @property
    def total(self) -> int:
        """The sum."""
        return sum(self)


class CompiledCost(NamedTuple):
    """What the compiler counts for a program: FLOPs, bytes of its arguments, and bytes of results
    and temporaries.
    """

    flops: int
    argument_bytes: int
    temporary_bytes: int


def layer_costs(model: LayeredModel, batch_size: int) -> tuple[LayerCost, ...]:
    """Each layer's cost for a batch, from the shapes of its matrix products and convolutions.

    A product's two gradients cost as much as the product. Taps on padding count; activations,
    biases and pooling (well under 1 % in VGG-11) do not.
    """
    x = jax.ShapeDtypeStruct((batch_size, *model.input_shape), np.float32)
    params = _shapes(model)
    costs = []
    for layer in model.layers:

        def forward(p, x, layer=layer):
            return layer.apply(p, x, False, None)

        flops = product_flops(jax.make_jaxpr(forward)(params[layer.name], x).jaxpr)
        costs.append(LayerCost(layer.name, num_params(params[layer.name]), flops, flops, flops))
        x = jax.eval_shape(forward, params[layer.name], x)
    return tuple(costs)


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
) -> StepFlops:
    """FLOPs of one step that trains these layers, by what they are for.

    All layers run forward; the weight gradients are those of the trained layers; input gradients
    flow from the loss down to the lowest trained layer, which needs none itself. A teacher runs
    forward from that layer on, and from the first where the model is stochastic: it does not drop
    what the student drops.
    """
    names = [cost.name for cost in costs]
    lowest = min((names.index(name) for name in trained), default=len(names))
    taught = costs[0 if stochastic else lowest :] if teacher else ()
    return StepFlops(
        forward=sum(cost.forward_flops for cost in costs),
        recomputed=0,
        input_gradients=sum(cost.input_gradient_flops for cost in costs[lowest + 1 :]),
        weight_gradients=sum(
            cost.weight_gradient_flops for cost in costs if cost.name in set(trained)
        ),
        teacher=sum(cost.forward_flops for cost in taught),
    )


def chain_step_flops(
    chain: Chain, costs: Sequence[LayerCost], auxiliary: Sequence[LayerCost], gradients: bool
) -> Mapping[int, int]:
    """FLOPs of one step by role, all layers trained; the first layer above a cut that no gradient
    crosses needs none.

    Args:
      chain: of the visit.
      costs: of the model's layers, for a batch.
      auxiliary: of layers that train on the visiting node beside the model's.
      gradients: whether gradients cross the cuts.
    """
    total = dict.fromkeys(roles(chain), 0)
    total[ON_NODE] += sum(
        c.forward_flops + c.input_gradient_flops + c.weight_gradient_flops for c in auxiliary
    )
    for segment in chain:
        layers = costs[segment.start : segment.stop]
        inputs = layers if segment.start > 0 and gradients else layers[1:]
        total[segment.role] += sum(c.forward_flops + c.weight_gradient_flops for c in layers)
        total[segment.role] += sum(c.input_gradient_flops for c in inputs)
    return total


def transfer_sizes(params: Params, frozen_dtype: str, states: dict | None = None) -> Sizes:
    """Bytes of each layer as it travels, in full precision and as stored frozen.

    Args:
      params: the model (shapes suffice).
      frozen_dtype: see `quantization.freeze`.
      states: optimizer states of all layers, where they travel.
    """
    full = {name: num_bytes(subtree) for name, subtree in params.items()}
    frozen_params = jax.eval_shape(
        lambda tree: {
            name: quantization.freeze(subtree, frozen_dtype) for name, subtree in tree.items()
        },
        params,
    )
    frozen = {name: num_bytes(subtree) for name, subtree in frozen_params.items()}
    optimizer = {optimizer_item(name): num_bytes(state) for name, state in (states or {}).items()}
    return Sizes(full | optimizer, frozen | optimizer)


def node_state(
    step: LocalStep, trained: tuple[str, ...], frozen_dtype: str = "float32"
) -> tuple[Any, ...]:
    """Shapes of what a node holds through a visit: `(trainable, optimizer states, frozen,
    received)`.

    The first arguments of `steps.local_epoch`. The teacher is the trained layers as received:
    frozen ones are shared.
    """

    return jax.eval_shape(
        lambda params: _node_state(step, params, trained, frozen_dtype), _shapes(step.model)
    )


def state_bytes(
    step: LocalStep, trained: tuple[str, ...], frozen_dtype: str = "float32"
) -> StateBytes:
    """Bytes of what a node holds through a visit that trains these layers, without activations."""
    trainable, states, frozen, received = node_state(step, trained, frozen_dtype)
    kinds = map(num_bytes, (frozen, trainable, trainable, states, received))
    return StateBytes(*kinds)


def compiled_cost(
    step: LocalStep, trained: tuple[str, ...], batch_size: int, frozen_dtype: str = "float32"
) -> CompiledCost:
    """What the compiler of this machine's device says of one step that trains these layers: see
    `compiled_step`.

    Raises:
      MemoryError: it does not fit.
    """
    compiled = compiled_step(step, trained, batch_size, frozen_dtype)
    if isinstance(compiled, Refused):
        raise MemoryError(compiled.reason)
    memory = compiled.memory
    return CompiledCost(int(compiled.flops), memory.arguments, memory.temporaries + memory.results)


def compiled_step(
    step: LocalStep,
    trained: tuple[str, ...],
    batch_size: int,
    frozen_dtype: str = "float32",
    device: Any = None,
) -> Compiled | Refused:
    """Compiles one step that trains these layers, as `steps.local_epoch` over a single batch.

    The compiler counts a loop's body once and the dearest branch of a condition, so one batch is
    what it counts. Results that take the place of donated arguments are not counted twice.

    Args:
      step: the local step.
      trained: the layers.
      batch_size: B.
      frozen_dtype: see `quantization.freeze`.
      device: to compile for; None: this machine's.
    """
    arguments = (*node_state(step, trained, frozen_dtype), *_batch(step.model, batch_size))
    placed = arguments if device is None else targets.on(device, arguments)
    return targets.compiled(local_epoch(step, trained), placed, donate=(0, 1))


def step_arguments(
    step: LocalStep, trained: tuple[str, ...], batch_size: int, frozen_dtype: str = "float32"
) -> tuple[Any, ...]:
    """Arguments of what `compiled_step` compiles, on this machine's device: fresh weights, black
    images.
    """
    state = jax.jit(lambda key: _node_state(step, step.model.init(key), trained, frozen_dtype))(
        jax.random.key(0)
    )
    return *state, *jax.jit(lambda: _batch_of(step.model, batch_size))()


@functools.lru_cache(maxsize=8)
def _shapes(model: LayeredModel) -> Params:
    return jax.eval_shape(model.init, jax.random.key(0))


def _node_state(
    step: LocalStep, params: Params, trained: tuple[str, ...], frozen_dtype: str
) -> tuple[Any, ...]:
    trainable = select(params, trained)
    states = init_states(step.rule, trainable, step.model.layer_names)
    frozen = {n: quantization.freeze(p, frozen_dtype) for n, p in without(params, trained).items()}
    return trainable, states, frozen, trainable if step.needs_received else {}


def _batch(model: LayeredModel, batch_size: int) -> tuple[Any, ...]:
    """Shapes of `_batch_of`."""
    return jax.eval_shape(lambda: _batch_of(model, batch_size))


def _batch_of(model: LayeredModel, batch_size: int) -> tuple[Any, ...]:
    """The other arguments of `steps.local_epoch`: examples for one batch, the batch, key, learning
    rate.
    """
    images = jnp.zeros((batch_size, *model.input_shape), jnp.uint8)
    index = jnp.arange(batch_size, dtype=jnp.int32)[None]
    examples = Examples(images, jnp.zeros(batch_size, jnp.int32))
    return (
        examples,
        Batches(index, jnp.ones(index.shape), jnp.int32(1)),
        jax.random.key(0),
        jnp.float32(0),
    )


def product_flops(jaxpr: core.Jaxpr) -> int:
    """FLOPs of all matrix products and convolutions of a program, loops counted by their
    lengths.
    """
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: core.JaxprEqn) -> int:
    out = int(np.prod(_shape(equation.outvars[0]))) if equation.outvars else 0
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = _shape(equation.invars[0])
        return 2 * out * int(np.prod([shape[i] for i in contracted]))
    if equation.primitive.name == "conv_general_dilated":
        kernel = _shape(equation.invars[1])
        features = equation.params["dimension_numbers"].rhs_spec[0]
        return 2 * out * int(np.prod(kernel)) // kernel[features]
    if equation.primitive.name == "scan":
        return equation.params["length"] * product_flops(equation.params["jaxpr"].jaxpr)
    if (
        "branches" in equation.params
    ):  # one of them runs; platform choices compute the same products
        return max(product_flops(branch.jaxpr) for branch in equation.params["branches"])
    return sum(
        product_flops(getattr(inner, "jaxpr", inner))
        for inner in core.jaxprs_in_params(equation.params)
    )


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(variable.aval.shape)
