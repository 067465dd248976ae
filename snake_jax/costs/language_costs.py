"""FLOPs and bytes of fine-tuning a language model: counted from shapes, a block at a time.

docs/accounting.md says what each number holds.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from snake_jax.algorithms.visits import Passed
from snake_jax.costs.accounting import StateBytes, StepFlops, product_flops
from snake_jax.models.language import Hidden
from snake_jax.nodes.ledger import Sizes, optimizer_item
from snake_jax.params import Params, PyTree, num_bytes, num_params, without
from snake_jax.train import quantization
from snake_jax.train.optimizers import init_states
from snake_jax.train.text_step import ADAPTERS, ENDS, LanguageStep, own_dtype

Counter = Callable[..., int]  # `(function, *shapes of its arguments) -> FLOPs`


class Backward(NamedTuple):
    """FLOPs of a block's backward pass: what is computed again for it (`LanguageStep.recompute`),
    gradients that pass through to its input or to lower weights of its own, and gradients of its
    own part.
    """

    recomputed: int
    inputs: int
    weights: int

    @property
    def total(self) -> int:
        """The sum."""
        return sum(self)


class RowCosts(NamedTuple):
    """FLOPs of one row of text.

    Attributes:
      forward: of one block.
      through: the backward pass of a block that does not train: its input's gradient.
      trained: of one that trains: the gradients of its input and of its own part.
      lowest: of one that trains alone, with nothing below to go on to: its own part's gradient.
      head: of the output matrix once (final projections included): forward, input gradient or
        weight gradient.
    """

    forward: int
    through: Backward
    trained: Backward
    lowest: Backward
    head: int


class Trains(NamedTuple):
    """Which blocks train: the first, how many; and which ends."""

    first: int
    blocks: int
    ends: tuple[str, ...] = ()


def products(function: Callable[..., Any], *shapes: PyTree) -> int:
    """FLOPs of the matrix products of a function, read from its jaxpr; what no result needs is left
    out.
    """
    jaxpr = jax.make_jaxpr(function)(*shapes).jaxpr
    return product_flops(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def row_costs(step: LanguageStep, base: PyTree, own: PyTree, length: int) -> RowCosts:
    """The costs of a row of `length` tokens; attention counts whole squares, causal or not.

    Args:
      step: the local step.
      base: shapes of a block's base; `{}` where there is none.
      own: shapes of its own part.
      length: T.
    """
    kept = block_costs(step._replace(recompute="none"), base, own, length, products)
    again = (
        block_costs(step, base, own, length, products)[1:]
        if step.recompute == "block"
        else kept[1:]
    )
    once, through, trained, lowest = kept
    more = [total - without for total, without in zip(again, kept[1:], strict=True)]
    weights = trained - through
    return RowCosts(
        once,
        Backward(more[0], through, 0),
        Backward(more[1], through, weights),
        Backward(more[2], lowest - weights, weights),
        _head_flops(step, length),
    )


def block_costs(
    step: LanguageStep, base: PyTree, own: PyTree, length: int, count: Counter
) -> tuple[int, int, int, int]:
    """FLOPs of a block's forward pass, and of the three backward passes of `RowCosts`, for a row of
    `length` tokens.

    Each is one program without loops. With `step.recompute` of `block` what is computed again is in
    the backward ones; the block's last product is not among that, since no gradient reads it.
    """
    width = step.model.architecture.hidden_size
    values = jax.ShapeDtypeStruct((1, length, width), jnp.float32)
    context = (jnp.zeros((1, length), jnp.int32), None)

    def forward(own: PyTree, values: jax.Array, base: PyTree) -> jax.Array:
        return step.block.apply(base, own, values, context, None)

    def backward(argnums: tuple[int, ...]) -> int:
        def pull(own: PyTree, values: jax.Array, base: PyTree) -> Any:
            value, gradients = jax.value_and_grad(lambda *args: forward(*args).sum(), argnums)(
                own, values, base
            )
            return gradients if step.recompute == "block" else (value, gradients)

        return count(pull, own, values, base) - (once if step.recompute == "none" else 0)

    once = count(forward, own, values, base)
    return once, backward((1,)), backward((0, 1)), backward((0,))


def _head_flops(step: LanguageStep, length: int) -> int:
    model = step.model
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    values = jax.ShapeDtypeStruct((1, length, model.architecture.hidden_size), jnp.float32)
    context = (jnp.zeros((1, length), jnp.int32), None)
    head = {name: subtree for name, subtree in shapes["head"].items() if name != "lm_head"}
    projected = products(lambda h, v: model.finish(h, Hidden(v, *context)), head, values)
    rows, width = model.table(shapes).shape
    return projected + 2 * length * rows * width


def passed_flops(step: LanguageStep, costs: RowCosts, trains: Trains, passed: Passed) -> int:
    """FLOPs of rows that a visit passed: the sum of `passed_parts`."""
    return passed_parts(step, costs, trains, passed).total


def passed_parts(step: LanguageStep, costs: RowCosts, trains: Trains, passed: Passed) -> StepFlops:
    """FLOPs of rows that a visit passed, by what they are for.

    Every block runs forward; the backward pass goes from the loss down to the lowest trained block
    and, where that trains alone, ends inside it. The output matrix is always run again: its logits
    are never kept.
    """
    if passed.prefix:
        return StepFlops(passed.rows * trains.first * costs.forward, 0, 0, 0, 0)
    blocks, to_bottom = step.model.num_blocks, "embed" in trains.ends
    through = blocks - trains.blocks - (0 if to_bottom else trains.first)
    alone = trains.blocks == 1 and not to_bottom
    back = [(through, costs.through), (trains.blocks, costs.lowest if alone else costs.trained)]
    matrix_trains = ("embed" if step.model.tied else "head") in trains.ends
    parts = StepFlops(
        forward=(blocks - (trains.first if passed.given else 0)) * costs.forward + costs.head,
        recomputed=sum(count * cost.recomputed for count, cost in back) + costs.head,
        input_gradients=sum(count * cost.inputs for count, cost in back) + costs.head,
        weight_gradients=sum(count * cost.weights for count, cost in back)
        + matrix_trains * costs.head,
        teacher=_taught_flops(step, costs, trains),
    )
    return StepFlops(*(passed.rows * part for part in parts))


def _taught_flops(step: LanguageStep, costs: RowCosts, trains: Trains) -> int:
    """Of a row's pass through the teacher, and of its logits, forward and again."""
    if step.distillation is None:
        return 0
    entered_anew = step.model.stochastic or "embed" in trains.ends
    return (
        step.model.num_blocks - (0 if entered_anew else trains.first)
    ) * costs.forward + 2 * costs.head


def trained(items: Sequence[str], layers: Sequence[str]) -> Trains:
    """Which blocks and ends a visit trains; `items` are the names of all blocks' own parts."""
    places = [place for place, item in enumerate(items) if item in layers]
    return Trains(places[0], len(places), tuple(name for name in ENDS if name in layers))


def transfer_sizes(
    params: Params, base: Params, frozen_dtype: str, states: dict[str, Any]
) -> Sizes:
    """Bytes of everything that may travel, in full precision and as stored frozen.

    Args:
      params: shapes of what may train.
      base: shapes of what never does; it travels as it is stored.
      frozen_dtype: see `quantization.freeze`.
      states: optimizer states, where they travel.
    """
    adapted = any(name.endswith(ADAPTERS) for name in params)

    def frozen_bytes(name: str, subtree: PyTree) -> int:
        dtype = (
            frozen_dtype
            if name in ENDS or not name.endswith(ADAPTERS)
            else own_dtype(frozen_dtype, adapted)
        )
        leaves, structure = jax.tree.flatten(subtree)
        return _stored_bytes(
            structure, tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves), dtype
        )

    everything = {**params, **base}
    frozen = {name: frozen_bytes(name, subtree) for name, subtree in everything.items()}
    full = {name: num_bytes(subtree) for name, subtree in params.items()} | {
        name: frozen[name] for name in base
    }
    optimizer = {optimizer_item(name): num_bytes(state) for name, state in states.items()}
    return Sizes(full | optimizer, frozen | optimizer)


@functools.lru_cache(maxsize=256)
def _stored_bytes(structure: Any, leaves: tuple[Any, ...], dtype: str) -> int:
    """Of a subtree of these shapes; blocks are alike, so most are counted once."""
    stored = jax.eval_shape(
        lambda tree: quantization.freeze(tree, dtype), jax.tree.unflatten(structure, leaves)
    )
    return num_bytes(stored)


def visit_state(
    step: LanguageStep, shapes: Params, like: Params, layers: Sequence[str], frozen_dtype: str
) -> StateBytes:
    """What a node holds through a visit that trains these items.

    Args:
      step: the local step.
      shapes: of the whole model.
      like: shapes of all that may train.
      layers: what the visit trains.
      frozen_dtype: see `quantization.freeze`.
    """
    trainable = {name: like[name] for name in layers}
    sizes = transfer_sizes(like, without(shapes, like), frozen_dtype, {})
    frozen = sum(sizes.frozen[name] for name in {**shapes, **like} if name not in trainable)
    states = jax.eval_shape(lambda tree: init_states(step.rule, tree, tuple(tree)), trainable)
    weights = num_bytes(trainable)
    received = weights if step.needs_received else 0
    return StateBytes(frozen, weights, 4 * num_params(trainable), num_bytes(states), received)
