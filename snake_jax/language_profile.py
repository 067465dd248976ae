"""The real compiler's memory for a step of a language model, on a chip that need not be there, from shapes alone.

The TPU compiler runs on any machine where `libtpu` is installed: `jax.experimental.topologies` describes chips,
programs are compiled for them, and what does not fit is refused as on the chip.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from snake_jax import lora, quantization, stack
from snake_jax.errors import UserError
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

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}  # the least that there is


class CompiledMemory(NamedTuple):
    """What the compiler reserves on a device, in bytes: arguments, results not in their place, and temporaries."""

    arguments: int
    results: int
    temporaries: int

    @property
    def peak(self) -> int:
        """The sum."""
        return sum(self)


class Refused(NamedTuple):
    """The compiler's reason why the program does not fit."""

    reason: str


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


def compiled_memory(step: LanguageStep, arguments: tuple[Any, ...], target: str) -> CompiledMemory | Refused:
    """Compiles the step for a target: this machine's device (`cpu`, `gpu`), or `tpu:v5e`, `tpu:v4`, ...

    Raises:
      UserError: an unknown target, no such device, or no TPU compiler here.
    """
    with _device(target) as device:
        place = SingleDeviceSharding(device)
        placed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), arguments)
        lowered = jax.jit(train_step(step, tuple(arguments[0])), donate_argnums=(0, 1)).lower(*placed)
        try:
            memory: Any = lowered.compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return Refused(_reason(str(error)))
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return CompiledMemory(memory.argument_size_in_bytes, results, memory.temp_size_in_bytes)


def _reason(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if "Used" in line or "Exceeded" in line or "exceed" in line]
    return " ".join(lines[:1] or text.splitlines()[:1])[:200]


@contextmanager
def _device(target: str) -> Iterator[Any]:
    """A device to compile for."""
    kind, _, chip = target.partition(":")
    if kind == "tpu":
        yield _tpu(target, chip)
        return
    if chip or kind not in ("cpu", "gpu"):
        raise UserError(f"--target={target}: want cpu, gpu or tpu:CHIP with CHIP of {', '.join(TOPOLOGIES)}")
    try:
        yield jax.devices(kind)[0]
    except RuntimeError:
        raise UserError(f"--target={target}: there is no {kind} here; tpu targets compile anywhere") from None


def _tpu(target: str, chip: str) -> Any:
    if chip not in TOPOLOGIES:
        raise UserError(f"--target={target}: want tpu:CHIP with CHIP of {', '.join(TOPOLOGIES)}")
    # Without these the TPU library asks the network for a machine that is not there.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        return topologies.get_topology_desc(TOPOLOGIES[chip], platform="tpu").devices[0]
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"--target={target}: no TPU compiler here ({reason}); pip install libtpu") from None


def _frozen(subtree: PyTree, dtype: str) -> PyTree:
    return jax.eval_shape(lambda tree: quantization.freeze(tree, dtype), subtree)


def _stack(subtree: PyTree, count: int) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), subtree)
