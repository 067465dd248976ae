"""What a device can do at most, measured on it, and what share of that a function reaches."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from snake_jax.costs.timing import interleaved

# By platform, where others than these would take too long: elsewhere 8192 and a GiB.
PRODUCT_SIDE = {"cpu": 2048}
COPY_BYTES = {"cpu": 2**28}


class Peaks(NamedTuple):
    """What a device was seen to do at best.

    Attributes:
      flops_s: FLOP/s of a product of two large matrices.
      bytes_s: bytes/s read and written by a copy.
    """

    flops_s: float
    bytes_s: float

    def least_s(self, flops: float, moved_bytes: float) -> float:
        """The time below which nothing of so many FLOPs and bytes can be."""
        return max(flops / self.flops_s, moved_bytes / self.bytes_s)


def measured_peaks(
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
    side = PRODUCT_SIDE.get(device.platform, 8192)
    size = COPY_BYTES.get(device.platform, 2**30)
    product = jax.jit(functools.partial(jnp.dot, preferred_element_type=jnp.float32))
    source = jax.device_put(jnp.ones(size // 4), device)  # float32: 4 bytes each

    # All in turns, so that load that comes and goes falls on all alike.
    calls: dict[str, Callable[[], object]] = {"copy": functools.partial(_copy, source)}
    for dtype in dtypes:
        square = jax.device_put(jnp.ones((side, side), dtype), device)
        calls[f"product {jnp.dtype(dtype).name}"] = functools.partial(product, square, square)
    samples = interleaved(calls, repeats)
    fastest_s = {}
    for name, taken in samples.items():
        fastest_s[name] = min(sample.wall_s for sample in taken)

    # A product of n x n matrices is 2 n^3 FLOPs; a copy reads and writes every byte.
    copy_s = fastest_s.pop("copy")
    product_s = min(fastest_s.values())
    return Peaks(2 * side**3 / product_s, 2 * size / copy_s)


@jax.jit
def _copy(source: jax.Array) -> jax.Array:
    """Reads and writes every number; the addition keeps compilers from leaving it out."""
    return source + 1
