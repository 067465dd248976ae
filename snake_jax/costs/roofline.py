"""What a device can do at most, measured on it, and what share of that a function reaches."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from snake_jax.costs.timing import interleaved

PRODUCT_SIDE = {"cpu": 2048}
COPY_BYTES = {"cpu": 2**28}


class Peaks(NamedTuple):
    """Of this device: FLOP/s of a product of two large matrices, bytes/s read and written by a
    copy.
    """

    flops_s: float
    bytes_s: float

    def least_s(self, flops: float, moved_bytes: float) -> float:
        """The time below which nothing of so many FLOPs and bytes can be."""
        return max(flops / self.flops_s, moved_bytes / self.bytes_s)


def measured(
    repeats: int, dtypes: Sequence[DTypeLike] = (jnp.bfloat16, jnp.float32), device: Any = None
) -> Peaks:
    """The fastest of `repeats` products in each dtype, summed in float32, and of as many copies.

    Where bfloat16 is not in hardware, products of it are the slower ones, and libraries compute
    them in float32.

    Args:
      repeats: of each.
      dtypes: of the matrices.
      device: of this machine; None: the default one.
    """
    device = device or jax.devices()[0]
    side, size = PRODUCT_SIDE.get(device.platform, 8192), COPY_BYTES.get(device.platform, 2**30)
    product, copy = (
        jax.jit(functools.partial(jnp.dot, preferred_element_type=jnp.float32)),
        jax.jit(lambda x: x + 1),
    )
    *sides, source = jax.device_put(
        [*(jnp.ones((side, side), d) for d in dtypes), jnp.ones(size // 4)], device
    )
    calls = {f"product {i}": functools.partial(product, a, a) for i, a in enumerate(sides)}
    taken = interleaved({**calls, "copy": lambda: copy(source)}, repeats)
    fastest = {name: min(s.wall_s for s in samples) for name, samples in taken.items()}
    return Peaks(2 * side**3 / min(fastest[name] for name in calls), 2 * size / fastest["copy"])


def stored_bytes(tree: object) -> int:
    """Of arrays or their shapes; 4-bit ones at 4 bits."""
    return sum(
        leaf.size * jax.dtypes.itemsize_bits(leaf.dtype) // 8 for leaf in jax.tree.leaves(tree)
    )
