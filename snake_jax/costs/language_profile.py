"""Shapes of everything that a step of a language model takes, for compilers and formulas: no
weights are made.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from snake_jax.costs import language_costs, targets
from snake_jax.costs.language_costs import Backward, RowCosts, StateBytes, visit_state
from snake_jax.costs.targets import Compiled, Refused
from snake_jax.errors import UserError
from snake_jax.models import lora
from snake_jax.models.language import Hidden, LanguageModel
from snake_jax.params import Params, PyTree
from snake_jax.train import quantization, sharding, stack
from snake_jax.train.optimizers import init_states
from snake_jax.train.text_step import (
    ADAPTERS,
    ENDS,
    Frozen,
    LanguageStep,
    Rows,
    block_roles,
    own_dtype,
    own_items,
    train_step,
)


def visit_items(step: LanguageStep, blocks: int, ends: Sequence[str] = ()) -> tuple[str, ...]:
    """The items of a visit that trains the first `blocks` blocks, or their adapters, and ends; in
    the model's order.
    """
    items = own_items(step.model, step.adapted)[:blocks]
    return (*ENDS[:1][: "embed" in ends], *items, *ENDS[1:][: "head" in ends])


@functools.lru_cache(maxsize=8)
def model_shapes(model: LanguageModel) -> Params:
    """Shapes of all layers."""
    return jax.eval_shape(model.init, jax.random.key(0))


def block_shapes(step: LanguageStep, settings: lora.Lora | None) -> tuple[PyTree, PyTree]:
    """Shapes of a block's base, `{}` where there is none, and of its own part."""
    name, item = own_items(step.model, False)[0], own_items(step.model, step.adapted)[0]
    return model_shapes(step.model)[name] if step.adapted else {}, trainable_shapes(step, settings)[
        item
    ]


def trainable_shapes(
    step: LanguageStep, settings: lora.Lora | None, ends: Sequence[str] = ()
) -> Params:
    """Shapes of all that may train: whole blocks, or their adapters, and ends."""
    shapes = model_shapes(step.model)
    blocks = own_items(step.model, False)
    chosen = {name: shapes[name] for name in ends}
    if settings is None:
        return chosen | {name: shapes[name] for name in blocks}
    fresh = jax.eval_shape(lambda: lora.init(jax.random.key(0), shapes[blocks[0]], settings))
    return chosen | {name + ADAPTERS: fresh for name in blocks}


def state_bytes(
    step: LanguageStep, settings: lora.Lora | None, layers: Sequence[str], frozen_dtype: str
) -> StateBytes:
    """What a node holds through a visit that trains these items, without activations."""
    shapes = model_shapes(step.model)
    ends = [name for name in layers if name in ENDS]
    return visit_state(step, shapes, trainable_shapes(step, settings, ends), layers, frozen_dtype)


def step_arguments(
    step: LanguageStep,
    settings: lora.Lora | None,
    layers: Sequence[str],
    frozen_dtype: str,
    rows: tuple[int, int],
    packed: bool = False,
) -> tuple[Any, ...]:
    """Shapes of the arguments of `language_step.train_step`.

    Args:
      step: the local step.
      settings: of the adapters; None: whole blocks train.
      layers: what the visit trains, see `visit_items`.
      frozen_dtype: see `quantization.freeze`.
      rows: `(B, T)`.
      packed: whether rows hold several texts.
    """
    shapes = model_shapes(step.model)
    ends = [name for name in ENDS if name in layers]
    like = trainable_shapes(step, settings, ends)
    items = own_items(step.model, step.adapted)
    trained = [name for name in items if name in layers]
    one, block = like[items[0]], shapes[own_items(step.model, False)[0]]
    trainable = dict.fromkeys(block_roles(len(trained)), one) | {
        name: shapes[name] for name in ends
    }
    base = _stack(_frozen(block, frozen_dtype), len(items)) if step.adapted else {}
    rest = _stack(_frozen(one, own_dtype(frozen_dtype, step.adapted)), len(items) - len(trained))
    first: Any = jax.ShapeDtypeStruct((), jnp.int32)
    blocks = stack.Frozen(base, rest, first)
    frozen = Frozen(
        blocks, {name: _frozen(shapes[name], frozen_dtype) for name in ENDS if name not in ends}
    )
    states = jax.eval_shape(lambda tree: init_states(step.rule, tree, tuple(tree)), trainable)
    whole: Any = jax.ShapeDtypeStruct((1, *rows), jnp.int32)
    weight: Any = jax.ShapeDtypeStruct((1, *rows), jnp.float32)
    texts = Rows(whole, whole, weight, whole, whole if packed else None)
    received = trainable if step.needs_received else {}
    key = jax.eval_shape(lambda: jax.random.key(0))
    return trainable, states, frozen, received, texts, key, jax.ShapeDtypeStruct((), jnp.float32)


def compiled_step(
    step: LanguageStep, arguments: tuple[Any, ...], target: str
) -> Compiled | Refused:
    """Compiles the step for the first device of a target (see `targets.devices`), or for the step's
    mesh.

    Raises:
      UserError: an unknown target, no such device, or no TPU compiler here.
    """
    mesh = step.mesh
    placed = (
        targets.on(targets.devices(target)[0], arguments)
        if mesh is None
        else sharding.on(mesh, arguments)
    )
    return targets.compiled(train_step(step, tuple(arguments[0])), placed, donate=(0, 1))


def zeros(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arrays of these shapes on the default device, to run a step with: what it computes with does
    not change its time.

    Args:
      arguments: from `step_arguments`.
    """

    def zero(leaf: Any) -> jax.Array:
        return (
            jax.random.key(0)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else jnp.zeros(leaf.shape, leaf.dtype)
        )

    return jax.jit(lambda: jax.tree.map(zero, arguments))()


def counted_costs(
    step: LanguageStep, base: PyTree, own: PyTree, length: int, device: Any
) -> RowCosts:
    """`language_costs.row_costs` as a device's compiler counts it, of one block and of the output
    matrix with its loss.

    The step's own loops it would count once, whatever their length. Of backward passes only the sum
    is told.

    Raises:
      UserError: a block by itself does not fit.
    """

    def count(function: Callable[..., Any], *shapes: PyTree) -> int:
        built = targets.compiled(function, targets.on(device, shapes))
        if isinstance(built, Refused):
            raise UserError(f"{step.model.name}: one block does not fit by itself: {built.reason}")
        return int(built.flops)

    once, *backward = language_costs.block_costs(step, base, own, length, count)
    through, trained, lowest = (Backward(0, total, 0) for total in backward)
    return RowCosts(once, through, trained, lowest, count(*_loss_of(step, length)))


def _loss_of(step: LanguageStep, length: int) -> tuple[Any, ...]:
    """The output matrix and its loss for a row, as a function and its arguments' shapes."""
    model, shapes = step.model, model_shapes(step.model)
    values: Any = jax.ShapeDtypeStruct((1, length, model.architecture.hidden_size), jnp.float32)
    ids: Any = jax.ShapeDtypeStruct((1, length), jnp.int32)
    head = {name: subtree for name, subtree in shapes["head"].items() if name != "lm_head"}

    def loss(head: PyTree, table: jax.Array, values: jax.Array, ids: jax.Array) -> jax.Array:
        hidden = model.finish(head, Hidden(values, ids, None))
        return optax.softmax_cross_entropy_with_integer_labels(hidden @ table.T, ids).sum()

    return loss, head, model.table(shapes), values, ids


def _frozen(subtree: PyTree, dtype: str) -> PyTree:
    return jax.eval_shape(lambda tree: quantization.freeze(tree, dtype), subtree)


def _stack(subtree: PyTree, count: int) -> PyTree:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), subtree
    )
