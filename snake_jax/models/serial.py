"""Serial adapters: small layers put into the blocks of a frozen model.

"Parameter-Efficient Transfer Learning for NLP" (Houlsby et al., arXiv 1902.00751, section 2.1):
after the attention of a block and after its MLP, before the residual sum, stands a bottleneck
`x + up(gelu(down(x)))`, down `[D, r]` and up `[r, D]`. Adapters of a block are a tree
`{"attention": ..., "mlp": ...}`, each with `{"down": {"kernel", "bias"}, "up": {"kernel",
"bias"}}`. `up` is zero at the start, so a block with fresh adapters computes what it computes
without; without them it is the base model's, bit for bit.

A block is given its adapters under the name `serial` of its adapter tree, beside LoRA's pairs
(`snake_jax.models.lora`): `{"serial": ...}`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from snake_jax.errors import UserError
from snake_jax.models.linear import PyTree

SERIAL = "serial"
"""The name of serial adapters in a block's adapter tree."""
BRANCHES = ("attention", "mlp")
"""After what of a block an adapter stands."""


def init(key: jax.Array, block_names: Sequence[str], hidden: int, width: int) -> dict[str, PyTree]:
    """Fresh adapters of all blocks, `{layer name: {"serial": ...}}`, float32.

    `down` is normal with 1 / sqrt(D), biases and `up` are zero.

    Args:
      key: a block's values depend on it and on the block's place in the order alone.
      block_names: the model's blocks in order.
      hidden: D, their width.
      width: r, of the bottleneck.

    Raises:
      UserError: no width.
    """
    if width < 1:
        raise UserError(f"--adapter_width={width}: serial adapters need a width of at least 1")
    adapters = {}
    for index, name in enumerate(block_names):
        block_key = jax.random.fold_in(key, index)
        branches = {}
        for number, branch in enumerate(BRANCHES):
            branch_key = jax.random.fold_in(block_key, number)
            branches[branch] = _bottleneck(branch_key, hidden, width)
        adapters[name] = {SERIAL: branches}
    return adapters


def adapted(block: nn.Module, branch: str, x: jax.Array) -> jax.Array:
    """A branch's output `[B, T, D]` behind its adapter; itself where the block was given none.

    Args:
      block: from within its `__call__`.
      branch: one of `BRANCHES`.
      x: `[B, T, D]`, before the residual sum.
    """
    if not block.has_variable(SERIAL, branch):
        return x
    given: Mapping[str, Any] = block.get_variable(SERIAL, branch)
    narrow = jax.nn.gelu(affine(given["down"], x))
    return x + affine(given["up"], narrow)


def _bottleneck(key: jax.Array, hidden: int, width: int) -> PyTree:
    down = jax.random.normal(key, (hidden, width)) / math.sqrt(hidden)
    return {
        "down": {"kernel": down, "bias": jnp.zeros(width)},
        "up": {"kernel": jnp.zeros((width, hidden)), "bias": jnp.zeros(hidden)},
    }


def affine(weights: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    """`x @ kernel + bias`, in the dtype of x."""
    return x @ weights["kernel"].astype(x.dtype) + weights["bias"].astype(x.dtype)
