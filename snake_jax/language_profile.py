"""Shapes of everything that a step of a language model takes, for compilers and formulas: no weights are made."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from snake_jax import lora, quantization, stack, targets
from snake_jax.language_costs import StateBytes, visit_state
from snake_jax.language_step import (
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
from snake_jax.layers import Params, PyTree
from snake_jax.optimizers import init_states
from snake_jax.targets import Compiled, Refused


def visit_items(step: LanguageStep, blocks: int, ends: Sequence[str] = ()) -> tuple[str, ...]:
    """The items of a visit that trains the first `blocks` blocks, or their adapters, and ends."""
    return (*(name for name in ENDS if name in ends), *own_items(step.model, step.adapted)[:blocks])


def trainable_shapes(step: LanguageStep, settings: lora.Lora | None, ends: Sequence[str] = ()) -> Params:
    """Shapes of all that may train: whole blocks, or their adapters, and ends."""
    shapes = jax.eval_shape(step.model.init, jax.random.key(0))
    blocks = own_items(step.model, False)
    chosen = {name: shapes[name] for name in ends}
    if settings is None:
        return chosen | {name: shapes[name] for name in blocks}
    fresh = jax.eval_shape(lambda: lora.init(jax.random.key(0), shapes[blocks[0]], settings))
    return chosen | {name + ADAPTERS: fresh for name in blocks}


def state_bytes(step: LanguageStep, settings: lora.Lora | None, layers: Sequence[str], frozen_dtype: str) -> StateBytes:
    """What a node holds through a visit that trains these items, without activations."""
    shapes = jax.eval_shape(step.model.init, jax.random.key(0))
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
    shapes = jax.eval_shape(step.model.init, jax.random.key(0))
    ends = [name for name in ENDS if name in layers]
    like = trainable_shapes(step, settings, ends)
    items = own_items(step.model, step.adapted)
    trained = [name for name in items if name in layers]
    one, block = like[items[0]], shapes[own_items(step.model, False)[0]]
    trainable = dict.fromkeys(block_roles(len(trained)), one) | {name: shapes[name] for name in ends}
    base = _stack(_frozen(block, frozen_dtype), len(items)) if step.adapted else {}
    rest = _stack(_frozen(one, own_dtype(frozen_dtype, step.adapted)), len(items) - len(trained))
    first: Any = jax.ShapeDtypeStruct((), jnp.int32)
    blocks = stack.Frozen(base, rest, first)
    frozen = Frozen(blocks, {name: _frozen(shapes[name], frozen_dtype) for name in ENDS if name not in ends})
    states = jax.eval_shape(lambda tree: init_states(step.rule, tree, tuple(tree)), trainable)
    whole: Any = jax.ShapeDtypeStruct((1, *rows), jnp.int32)
    weight: Any = jax.ShapeDtypeStruct((1, *rows), jnp.float32)
    texts = Rows(whole, whole, weight, whole, whole if packed else None)
    received = trainable if step.needs_received else {}
    key = jax.eval_shape(lambda: jax.random.key(0))
    return trainable, states, frozen, received, texts, key, jax.ShapeDtypeStruct((), jnp.float32)


def compiled_step(step: LanguageStep, arguments: tuple[Any, ...], target: str) -> Compiled | Refused:
    """Compiles the step for the first device of a target: see `targets.devices`.

    Raises:
      UserError: an unknown target, no such device, or no TPU compiler here.
    """
    placed = targets.on(targets.devices(target)[0], arguments)
    return targets.compiled(train_step(step, tuple(arguments[0])), placed, donate=(0, 1))


def _frozen(subtree: PyTree, dtype: str) -> PyTree:
    return jax.eval_shape(lambda tree: quantization.freeze(tree, dtype), subtree)


def _stack(subtree: PyTree, count: int) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), subtree)
