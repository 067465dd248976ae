"""What each layer of a model costs, in FLOPs: products and convolutions, read from jaxprs."""

import functools
import math
from collections.abc import Callable, Sequence
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
from snake_jax.params import PyTree, num_params, without
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
    step: Step, batch: BatchShape, adapters: lora.Lora | None = None, rank: int = 0
) -> tuple[LayerCost, ...]:
    """The layers' costs for a batch.

    Args:
      step: the local step.
      batch: of images or of rows of text.
      adapters: that train in the place of blocks; None: whole layers do.
      rank: see `row_costs`.
    """
    if isinstance(step.model, LanguageModel):
        recompute = shapes.recompute_of(step)
        of_row = row_costs(step.model, adapters, recompute, batch.length, rank)
        return tuple(_times(batch.size, cost) for cost in of_row)
    return layer_costs(step.model, batch.size)


def _times(count: int, cost: LayerCost) -> LayerCost:
    """Of so many rows; parameters are the same for all."""
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

    A product's two gradients cost as much as the product: with y = x w, x `[m, k]` and w `[k, n]`,
    the product, its input gradient dy w^T and its weight gradient x^T dy are 2 m k n FLOPs each;
    a convolution likewise, tap by tap. Taps on padding count; activations, biases and pooling
    (well under 1 % in VGG-11) do not.
    """
    x = jax.ShapeDtypeStruct((batch_size, *model.input_shape), np.float32)
    params = shapes.model_shapes(model)
    costs = []
    for layer in model.layers:
        own = params[layer.name]
        forward = functools.partial(_forward, layer)
        program, x = jax.make_jaxpr(forward, return_shape=True)(own, x)
        flops = product_flops(program.jaxpr)
        costs.append(LayerCost(layer.name, num_params(own), flops, flops, flops))
    return tuple(costs)


def _forward(layer: Layer, params: PyTree, x: jax.Array) -> jax.Array:
    """A layer as it evaluates: dropout has no products."""
    return layer.apply(params, x, False, None)


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


@functools.lru_cache(maxsize=256)
def row_costs(
    model: LanguageModel, adapters: lora.Lora | None, recompute: str, length: int, rank: int = 0
) -> tuple[LayerCost, ...]:
    """The layers' costs for a row of text; attention counts whole squares, causal or not.

    A node that trains some columns of its adapters multiplies with all of them, forward and on the
    way down, and has weight gradients of its own: that is what its program computes.

    Args:
      model: the network.
      adapters: that train in the place of blocks; None: whole layers do.
      recompute: what the backward pass keeps of a block, see `stack.run`.
      length: T, tokens.
      rank: how many columns of the adapters the node trains; 0: all.
    """
    kept = block_flops(model, adapters, "none", length, products, rank)

    # With everything kept the backward pass has the gradients alone; what it takes more than that
    # is computed again. The lowest computes as much again as the trained one: weight gradients read
    # the same of the forward pass, whether or not gradients go on below.
    again = kept
    if recompute == "block":
        again = block_flops(model, adapters, "block", length, products, rank)
    recomputed = again.through - kept.through
    recomputed_if_trained = again.trained - kept.trained

    # Through a block goes the gradient of its input; where it trains that of its own part comes on
    # top. Without the former, at the lowest, what remains beyond the latter leads on to weights
    # that lie below others of the same block.
    own_gradient = kept.trained - kept.through
    block = LayerCost(
        name="block",
        params=0,
        forward=kept.forward,
        input_gradient=kept.through,
        weight_gradient=own_gradient,
        inner_gradient=kept.lowest - own_gradient,
        recomputed=recomputed,
        recomputed_for_weights=recomputed_if_trained - recomputed,
        looped=True,
    )
    return along_model(model, adapters, block, _head_flops(model, length), rank)


def at_head(model: LanguageModel, costs: Sequence[LayerCost]) -> tuple[LayerCost, ...]:
    """The costs with the gradient of a tied output matrix where it is computed: at the head."""
    embed, *blocks, head = costs
    matrix = embed.weight_gradient + head.weight_gradient
    if not model.tied:
        return tuple(costs)
    without = embed._replace(weight_gradient=0)
    return (without, *blocks, head._replace(weight_gradient=matrix))


def along_model(
    model: LanguageModel,
    adapters: lora.Lora | None,
    block: LayerCost,
    matrix: int,
    rank: int = 0,
) -> tuple[LayerCost, ...]:
    """The costs of all layers of a language model, given those of one block.

    Args:
      model: the network.
      adapters: that train in the place of blocks; None: whole layers do.
      block: the cost of one; they are alike.
      matrix: FLOPs of the output matrix once, final projections included: forward, input gradient
        or weight gradient.
      rank: see `row_costs`.
    """
    params = {}
    for name, subtree in shapes.trainable_shapes(model, adapters).items():
        own, _ = shapes.trained_columns(subtree, rank)
        params[name] = num_params(own)

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
    blocks = []
    for name in names:
        blocks.append(block._replace(name=name, params=params[name]))
    return (embed, *blocks, head)


def block_flops(
    model: LanguageModel,
    adapters: lora.Lora | None,
    recompute: str,
    length: int,
    count: Counter,
    rank: int = 0,
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
      rank: see `row_costs`.
    """
    apply = shapes.block_function(model, adapters is not None)
    base, own = shapes.block_parts(model, adapters, rank)
    values = _hidden_shape(model, length)
    context = (jnp.zeros((1, length), jnp.int32), None)

    # Where blocks alternate they differ in what they mask, and not in what they multiply.
    place = jnp.int32(0)

    def forward(own: PyTree, values: jax.Array, base: PyTree) -> jax.Array:
        return apply(base, own, values, context, None, place)

    def total(own: PyTree, values: jax.Array, base: PyTree) -> jax.Array:
        return forward(own, values, base).sum()

    once = count(forward, own, values, base)

    def backward(argnums: tuple[int, ...]) -> int:
        # Without the value as a result, what only the value needs is no part of the program: what
        # is left of the forward pass is what is computed again.
        if recompute == "block":
            return count(jax.grad(total, argnums), own, values, base)
        # With it, the program is one forward pass, and the gradients.
        return count(jax.value_and_grad(total, argnums), own, values, base) - once

    of_own, of_values = 0, 1  # numbers of the arguments that gradients are of
    return BlockFlops(
        forward=once,
        through=backward((of_values,)),
        trained=backward((of_own, of_values)),
        lowest=backward((of_own,)),
    )


def _hidden_shape(model: LanguageModel, length: int) -> Any:
    """Hidden values of a row, `[1, T, width]`."""
    return jax.ShapeDtypeStruct((1, length, model.architecture.hidden_size), jnp.float32)


def _head_flops(model: LanguageModel, length: int) -> int:
    """FLOPs of the output matrix for a row, final projections included."""
    positions = jnp.zeros((1, length), jnp.int32)

    def finish(head: PyTree, values: jax.Array) -> jax.Array:
        return model.finish(head, Hidden(values, positions, None))

    params = shapes.model_shapes(model)
    projections = without(params["head"], ["lm_head"])
    projected = products(finish, projections, _hidden_shape(model, length))

    # Logits: [T, width] x [width, tokens], a multiplication and an addition for each of the sums.
    tokens, width = model.table(params).shape
    return projected + 2 * length * width * tokens


# Products of a program


def products(function: Callable[..., Any], *arguments: PyTree) -> int:
    """FLOPs of the matrix products of a function, read from its jaxpr.

    What no result needs is left out.

    Args:
      function: of arrays.
      arguments: their shapes.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    all_results = [True for _ in jaxpr.outvars]
    used, _ = partial_eval.dce_jaxpr(jaxpr, all_results)
    return product_flops(used)


def product_flops(jaxpr: core.Jaxpr) -> int:
    """FLOPs of all products and convolutions of a program, loops counted by their lengths."""
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: core.JaxprEqn) -> int:
    """FLOPs of one operation of a program, the programs inside it counted along."""
    kind, params = equation.primitive.name, equation.params
    results = 0
    if equation.outvars:
        results = math.prod(_shape(equation.outvars[0]))

    # [m, k] x [k, n]: each of the m n results is a sum of k products, 2 FLOPs each.
    if kind == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = _shape(equation.invars[0])
        terms = math.prod(shape[axis] for axis in contracted)
        return 2 * results * terms

    # Each result is a sum over the kernel's taps and input channels: all of the kernel but its
    # axis of output channels.
    if kind == "conv_general_dilated":
        kernel = _shape(equation.invars[1])
        out_axis = params["dimension_numbers"].rhs_spec[0]
        terms = math.prod(kernel) // kernel[out_axis]
        return 2 * results * terms

    # What holds programs: a loop, a choice (one of them runs), a call.
    if kind == "scan":
        return params["length"] * product_flops(params["jaxpr"].jaxpr)
    if "branches" in params:
        branches = [product_flops(branch.jaxpr) for branch in params["branches"]]
        # By platform they compute the same. One may multiply zeros too where that is faster, which
        # is no work of the layer.
        by_platform = params.get("branches_platforms") is not None
        return min(branches) if by_platform else max(branches)
    total = 0
    for program in core.jaxprs_in_params(params):
        total += product_flops(getattr(program, "jaxpr", program))
    return total


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(variable.aval.shape)
