"""What each layer of a model costs, in FLOPs: products and convolutions, read from jaxprs."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

from snake_jax.algorithms.chain import Chain
from snake_jax.costs import shapes
from snake_jax.costs.flops import LayerCost
from snake_jax.costs.shapes import BatchShape, Step
from snake_jax.models import lora
from snake_jax.models.language import Hidden, LanguageModel
from snake_jax.models.layered import Layer, LayeredModel
from snake_jax.params import PyTree, num_params
from snake_jax.training.text_step import own_items

Counter = Callable[..., int]  # `(function, *shapes of its arguments) -> FLOPs`


class BlockFlops(NamedTuple):
    """FLOPs of a block of a language model for a row of text.

    Attributes:
      forward: its forward pass.
      through: its backward pass where it does not train: the gradient of its input.
      trained: where it trains: the gradients of its input and of its own part.
      lowest: where it trains alone and nothing lies below to go on to: of its own part.
    """

    forward: int
    through: int
    trained: int
    lowest: int


def batch_costs(
    step: Step, batch: BatchShape, adapters: lora.Lora | None = None
) -> tuple[LayerCost, ...]:
    """The layers' costs for a batch.

    Args:
      step: the local step.
      batch: of images or of rows of text.
      adapters: that train in the place of blocks; None: whole layers do.
    """
    if isinstance(step.model, LanguageModel):
        costs = row_costs(step.model, adapters, shapes.recompute_of(step), batch.length)
        return tuple(_times(batch.size, cost) for cost in costs)
    return layer_costs(step.model, batch.size)


def _times(count: int, cost: LayerCost) -> LayerCost:
    return cost._replace(
        forward=count * cost.forward,
        input_gradient=count * cost.input_gradient,
        weight_gradient=count * cost.weight_gradient,
        inner_gradient=count * cost.inner_gradient,
        recomputed=count * cost.recomputed,
        recomputed_for_weights=count * cost.recomputed_for_weights,
        rerun=count * cost.rerun,
    )


def layer_costs(model: LayeredModel, batch_size: int) -> tuple[LayerCost, ...]:
    """Each layer's cost for a batch, from the shapes of its matrix products and convolutions.

    A product's two gradients cost as much as the product. Taps on padding count; activations,
    biases and pooling (well under 1 % in VGG-11) do not.
    """
    x = jax.ShapeDtypeStruct((batch_size, *model.input_shape), np.float32)
    params = shapes.model_shapes(model)
    costs = []
    for layer in model.layers:

        def forward(p, x, layer=layer):
            return layer.apply(p, x, False, None)

        flops = product_flops(jax.make_jaxpr(forward)(params[layer.name], x).jaxpr)
        costs.append(LayerCost(layer.name, num_params(params[layer.name]), flops, flops, flops))
        x = jax.eval_shape(forward, params[layer.name], x)
    return tuple(costs)


def auxiliary_costs(
    model: LayeredModel, chain: Chain, auxiliary: tuple[Layer, ...], batch_size: int
) -> tuple[LayerCost, ...]:
    """The costs of auxiliary layers, which sit on the output of a chain's first segment.

    Args:
      model: that is cut.
      chain: of a visit.
      auxiliary: the layers, in order.
      batch_size: B.
    """
    stop = chain[0].stop
    lower = model._replace(layers=model.layers[:stop] + auxiliary)
    return layer_costs(lower, batch_size)[stop:]


@functools.lru_cache(maxsize=32)
def row_costs(
    model: LanguageModel, adapters: lora.Lora | None, recompute: str, length: int
) -> tuple[LayerCost, ...]:
    """The layers' costs for a row of text; attention counts whole squares, causal or not.

    Args:
      model: the network.
      adapters: that train in the place of blocks; None: whole layers do.
      recompute: what the backward pass keeps of a block, see `stack.run`.
      length: T, tokens.
    """
    kept = block_flops(model, adapters, "none", length, products)

    # With everything kept the backward pass has the gradients alone; what it takes more than that
    # is computed again. The lowest computes as much again as the trained one: weight gradients read
    # the same of the forward pass, whether or not gradients go on below.
    again = kept
    if recompute == "block":
        again = block_flops(model, adapters, "block", length, products)
    recomputed = again.through - kept.through
    block = LayerCost(
        name="block",
        params=0,
        forward=kept.forward,
        input_gradient=kept.through,
        weight_gradient=kept.trained - kept.through,
        inner_gradient=kept.lowest - (kept.trained - kept.through),
        recomputed=recomputed,
        recomputed_for_weights=again.trained - kept.trained - recomputed,
        looped=True,
    )
    return along_model(model, adapters, block, _head_flops(model, length))


def along_model(
    model: LanguageModel, adapters: lora.Lora | None, block: LayerCost, matrix: int
) -> tuple[LayerCost, ...]:
    """The costs of all layers of a language model, given those of one block.

    Args:
      model: the network.
      adapters: that train in the place of blocks; None: whole layers do.
      block: the cost of one; they are alike.
      matrix: FLOPs of the output matrix once, final projections included: forward, input gradient
        or weight gradient.
    """
    params = {
        name: num_params(subtree)
        for name, subtree in shapes.trainable_shapes(model, adapters).items()
    }
    # Looking up a token is no product. Where the output matrix is the table of tokens, it trains
    # with the embedding.
    embed = LayerCost("embed", params["embed"], 0, 0, matrix if model.tied else 0)
    head = LayerCost(
        "head",
        params["head"],
        forward=matrix,
        input_gradient=matrix,
        weight_gradient=0 if model.tied else matrix,
        rerun=matrix,
    )
    names = own_items(model, adapters is not None)
    blocks = [block._replace(name=name, params=params[name]) for name in names]
    return (embed, *blocks, head)


def block_flops(
    model: LanguageModel, adapters: lora.Lora | None, recompute: str, length: int, count: Counter
) -> BlockFlops:
    """FLOPs of a block's forward pass and of its backward passes, for a row of text.

    Each is one program without loops. With `recompute` of `block` what is computed again is in the
    backward ones; the block's last product is not among that, since no gradient reads it.

    Args:
      model: the network.
      adapters: that train in the place of blocks; None: whole layers do.
      recompute: what the backward pass keeps of a block, see `stack.run`.
      length: T, tokens.
      count: of a program's FLOPs.
    """
    apply = shapes.block_function(model, adapters is not None)
    base, own = shapes.block_parts(model, adapters)
    width = model.architecture.hidden_size
    values = jax.ShapeDtypeStruct((1, length, width), jnp.float32)
    context = (jnp.zeros((1, length), jnp.int32), None)

    def forward(own: PyTree, values: jax.Array, base: PyTree) -> jax.Array:
        return apply(base, own, values, context, None)

    once = count(forward, own, values, base)

    def backward(argnums: tuple[int, ...]) -> int:
        def pull(own: PyTree, values: jax.Array, base: PyTree) -> Any:
            value, gradients = jax.value_and_grad(lambda *args: forward(*args).sum(), argnums)(
                own, values, base
            )
            # Without the value as a result, what only the value needs is no part of the program.
            return gradients if recompute == "block" else (value, gradients)

        flops = count(pull, own, values, base)
        return flops if recompute == "block" else flops - once

    own_place, values_place = 0, 1
    return BlockFlops(
        forward=once,
        through=backward((values_place,)),
        trained=backward((own_place, values_place)),
        lowest=backward((own_place,)),
    )


def _head_flops(model: LanguageModel, length: int) -> int:
    """FLOPs of the output matrix for a row, final projections included."""
    params = shapes.model_shapes(model)
    values = jax.ShapeDtypeStruct((1, length, model.architecture.hidden_size), jnp.float32)
    context = (jnp.zeros((1, length), jnp.int32), None)
    head = {name: subtree for name, subtree in params["head"].items() if name != "lm_head"}
    projected = products(lambda h, v: model.finish(h, Hidden(v, *context)), head, values)
    rows, width = model.table(params).shape
    return projected + 2 * length * rows * width


# Products of a program


def products(function: Callable[..., Any], *arguments: PyTree) -> int:
    """FLOPs of the matrix products of a function, read from its jaxpr.

    What no result needs is left out.

    Args:
      function: of arrays.
      arguments: their shapes.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return product_flops(used)


def product_flops(jaxpr: core.Jaxpr) -> int:
    """FLOPs of all products and convolutions of a program, loops counted by their lengths."""
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: core.JaxprEqn) -> int:
    kind, params = equation.primitive.name, equation.params
    out = int(np.prod(_shape(equation.outvars[0]))) if equation.outvars else 0

    # [m, k] x [k, n]: each of the m n results is a sum of k products.
    if kind == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = _shape(equation.invars[0])
        terms = [shape[axis] for axis in contracted]
        return 2 * out * int(np.prod(terms))

    # Each result is a sum over the kernel's taps and input channels.
    if kind == "conv_general_dilated":
        kernel = _shape(equation.invars[1])
        features = params["dimension_numbers"].rhs_spec[0]
        return 2 * out * int(np.prod(kernel)) // kernel[features]

    # What holds programs: a loop, a choice (one of them runs; choices by platform compute the same
    # products), a call.
    if kind == "scan":
        return params["length"] * product_flops(params["jaxpr"].jaxpr)
    if "branches" in params:
        return max(product_flops(branch.jaxpr) for branch in params["branches"])
    inner = core.jaxprs_in_params(params)
    return sum(product_flops(getattr(program, "jaxpr", program)) for program in inner)


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(variable.aval.shape)
