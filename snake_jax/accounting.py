"""FLOPs and bytes of layers, steps and states, counted from shapes. docs/accounting.md says what each number holds."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.extend import core

from snake_jax import quantization
from snake_jax.layers import LayeredModel, Params, num_bytes, num_params
from snake_jax.network import Sizes, optimizer_item


class LayerCost(NamedTuple):
    """A layer's parameters, and FLOPs for a batch of one pass forward, its input gradient and its weight gradient."""

    name: str
    params: int
    forward_flops: int
    input_gradient_flops: int
    weight_gradient_flops: int


def layer_costs(model: LayeredModel, batch_size: int) -> tuple[LayerCost, ...]:
    """Each layer's cost for a batch, from the shapes of its matrix products and convolutions.

    A product's two gradients cost as much as the product. Taps on padding count; activations, biases and pooling (well
    under 1 % in VGG-11) do not.
    """
    x = jax.ShapeDtypeStruct((batch_size, *model.input_shape), np.float32)
    params = jax.eval_shape(model.init, jax.random.key(0))
    costs = []
    for layer in model.layers:

        def forward(p, x, layer=layer):
            return layer.apply(p, x, False, None)

        flops = _product_flops(jax.make_jaxpr(forward)(params[layer.name], x).jaxpr)
        costs.append(LayerCost(layer.name, num_params(params[layer.name]), flops, flops, flops))
        x = jax.eval_shape(forward, params[layer.name], x)
    return tuple(costs)


def step_flops(costs: Sequence[LayerCost], trained: Sequence[str], *, teacher: bool = False) -> int:
    """FLOPs of one step that trains these layers.

    All layers run forward; the weight gradients are those of the trained layers; input gradients flow from the loss down
    to the lowest trained layer, which needs none itself. A teacher runs forward from that layer on.
    """
    names = [cost.name for cost in costs]
    lowest = min((names.index(name) for name in trained), default=len(names))
    forward = sum(cost.forward_flops for cost in costs)
    inputs = sum(cost.input_gradient_flops for cost in costs[lowest + 1 :])
    weights = sum(cost.weight_gradient_flops for cost in costs if cost.name in set(trained))
    return forward + inputs + weights + (sum(c.forward_flops for c in costs[lowest:]) if teacher else 0)


def transfer_sizes(params: Params, frozen_dtype: str, states: dict | None = None) -> Sizes:
    """Bytes of each layer as it travels, in full precision and as stored frozen.

    Args:
      params: the model (shapes suffice).
      frozen_dtype: see `quantization.freeze`.
      states: optimizer states of all layers, where they travel.
    """
    full = {name: num_bytes(subtree) for name, subtree in params.items()}
    frozen_params = jax.eval_shape(
        lambda tree: {name: quantization.freeze(subtree, frozen_dtype) for name, subtree in tree.items()}, params
    )
    frozen = {name: num_bytes(subtree) for name, subtree in frozen_params.items()}
    optimizer = {optimizer_item(name): num_bytes(state) for name, state in (states or {}).items()}
    return Sizes(full | optimizer, frozen | optimizer)


def _product_flops(jaxpr: core.Jaxpr) -> int:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: core.JaxprEqn) -> int:
    out = int(np.prod(equation.outvars[0].aval.shape)) if equation.outvars else 0
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * out * int(np.prod([shape[i] for i in contracted]))
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = equation.params["dimension_numbers"].rhs_spec[0]
        return 2 * out * int(np.prod(kernel)) // kernel[features]
    if equation.primitive.name == "scan":
        return equation.params["length"] * _product_flops(equation.params["jaxpr"].jaxpr)
    if "branches" in equation.params:  # one of them runs; platform choices compute the same products
        return max(_product_flops(branch.jaxpr) for branch in equation.params["branches"])
    return sum(_product_flops(getattr(inner, "jaxpr", inner)) for inner in core.jaxprs_in_params(equation.params))
