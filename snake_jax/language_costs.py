"""FLOPs and bytes of fine-tuning a language model: counted from shapes, a block at a time.

docs/accounting.md says what each number holds.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from snake_jax import quantization
from snake_jax.accounting import product_flops
from snake_jax.executor.visits import Passed
from snake_jax.language_step import ADAPTERS, ENDS, LanguageStep, own_dtype
from snake_jax.layers import Params, PyTree, num_bytes, num_params, without
from snake_jax.models.language import Hidden
from snake_jax.network import Sizes, optimizer_item
from snake_jax.optimizers import init_states


class RowCosts(NamedTuple):
    """FLOPs of one row of text. Backward passes include what is computed again for them (`LanguageStep.recompute`).

    Attributes:
      forward: of one block.
      through: the backward pass of a block that does not train: its input's gradient.
      trained: of one that trains: the gradients of its input and of its own part.
      lowest: of one that trains alone, with nothing below to go on to: its own part's gradient.
      head: of the output matrix once (final projections included): forward, input gradient or weight gradient.
    """

    forward: int
    through: int
    trained: int
    lowest: int
    head: int


class Trains(NamedTuple):
    """Which blocks train: the first, how many; and which ends."""

    first: int
    blocks: int
    ends: tuple[str, ...] = ()


def row_costs(step: LanguageStep, base: PyTree, own: PyTree, length: int) -> RowCosts:
    """The costs of a row of `length` tokens; attention counts whole squares, causal or not.

    Args:
      step: the local step.
      base: shapes of a block's base; `{}` where there is none.
      own: shapes of its own part.
      length: T.
    """
    architecture = step.model.architecture
    values = jax.ShapeDtypeStruct((1, length, architecture.hidden_size), jnp.float32)
    context = (jnp.zeros((1, length), jnp.int32), None)

    def forward(own: PyTree, values: jax.Array, base: PyTree) -> jax.Array:
        return step.block.apply(base, own, values, context, None)

    def backward(argnums: tuple[int, ...]) -> int:
        def pull(own: PyTree, values: jax.Array, base: PyTree) -> Any:
            return jax.value_and_grad(lambda *args: forward(*args).sum(), argnums)(own, values, base)

        jaxpr = jax.make_jaxpr(pull)(own, values, base).jaxpr
        if step.recompute == "none":
            return product_flops(jaxpr) - once
        # The block's last product is not computed again: no gradient reads it.
        return product_flops(partial_eval.dce_jaxpr(jaxpr, [False] + [True] * (len(jaxpr.outvars) - 1))[0])

    once = product_flops(jax.make_jaxpr(forward)(own, values, base).jaxpr)
    return RowCosts(once, backward((1,)), backward((0, 1)), backward((0,)), _head_flops(step, length))


def _head_flops(step: LanguageStep, length: int) -> int:
    model = step.model
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    values = jax.ShapeDtypeStruct((1, length, model.architecture.hidden_size), jnp.float32)
    context = (jnp.zeros((1, length), jnp.int32), None)
    head = {name: subtree for name, subtree in shapes["head"].items() if name != "lm_head"}
    projected = product_flops(jax.make_jaxpr(lambda h, v: model.finish(h, Hidden(v, *context)))(head, values).jaxpr)
    rows, width = model.table(shapes).shape
    return projected + 2 * length * rows * width


def passed_flops(step: LanguageStep, costs: RowCosts, trains: Trains, passed: Passed) -> int:
    """FLOPs of rows that a visit passed, what is computed again in the backward pass included.

    Every block runs forward; the backward pass goes from the loss down to the lowest trained block and, where that
    trains alone, ends inside it. The output matrix is always run again: its logits are never kept.
    """
    if passed.prefix:
        return passed.rows * trains.first * costs.forward
    blocks, to_bottom = step.model.num_blocks, "embed" in trains.ends
    forward = blocks - (trains.first if passed.given else 0)
    through = blocks - trains.blocks - (0 if to_bottom else trains.first)
    alone = trains.blocks == 1 and not to_bottom
    matrix_trains = ("embed" if step.model.tied else "head") in trains.ends
    head = 3 + matrix_trains  # forward, again, input gradient
    if step.distillation is not None:
        entered_anew = step.model.stochastic or to_bottom
        forward += blocks - (0 if entered_anew else trains.first)
        head += 2  # the teacher's logits, forward and again
    backward = through * costs.through + (costs.lowest if alone else trains.blocks * costs.trained)
    return passed.rows * (forward * costs.forward + backward + head * costs.head)


def trained(items: Sequence[str], layers: Sequence[str]) -> Trains:
    """Which blocks and ends a visit trains; `items` are the names of all blocks' own parts."""
    places = [place for place, item in enumerate(items) if item in layers]
    return Trains(places[0], len(places), tuple(name for name in ENDS if name in layers))


def transfer_sizes(params: Params, base: Params, frozen_dtype: str, states: dict[str, Any]) -> Sizes:
    """Bytes of everything that may travel, in full precision and as stored frozen.

    Args:
      params: shapes of what may train.
      base: shapes of what never does; it travels as it is stored.
      frozen_dtype: see `quantization.freeze`.
      states: optimizer states, where they travel.
    """
    adapted = any(name.endswith(ADAPTERS) for name in params)

    def frozen_bytes(name: str, subtree: PyTree) -> int:
        dtype = frozen_dtype if name in ENDS or not name.endswith(ADAPTERS) else own_dtype(frozen_dtype, adapted)
        return num_bytes(jax.eval_shape(lambda tree: quantization.freeze(tree, dtype), subtree))

    everything = {**params, **base}
    frozen = {name: frozen_bytes(name, subtree) for name, subtree in everything.items()}
    full = {name: num_bytes(subtree) for name, subtree in params.items()} | {name: frozen[name] for name in base}
    optimizer = {optimizer_item(name): num_bytes(state) for name, state in states.items()}
    return Sizes(full | optimizer, frozen | optimizer)


class StateBytes(NamedTuple):
    """What a node holds through a visit, by kind: frozen weights, trained weights in float32, their gradients, their
    optimizer states, and the trained weights as received where a teacher or a proximal term needs them.
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
