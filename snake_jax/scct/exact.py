"""The small timescale solved to the optimum in one compiled call in float64, batched over samples
and candidate split points: arrays made ready, and handed to the loop of `snake_jax/scct/search.py`.
"""

from contextlib import AbstractContextManager
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax.errors import UserError
from snake_jax.scct.relaxed import relaxed
from snake_jax.scct.search import FIRST, JUST_BELOW, LoopState, RowInputs, run


class Exact(NamedTuple):
    """The optimum of every row: V [B], its subcarriers [B, N], and the loop's steps."""

    level_s: np.ndarray
    subcarriers: np.ndarray
    steps: int


class Tables(NamedTuple):
    """Link times of samples, padded and in float64: what all split points have in common.

    Attributes:
      link_s: [Q, N, K + 2]; index b is b subcarriers, infinite for none.
      least_s: [Q, N], with as many subcarriers as one device can have.
      start: [N], the subcarriers of an equal allocation.
      real: [N], whether a column is a device.
      shape: Q, N and K before padding.
    """

    link_s: jax.Array
    least_s: jax.Array
    start: np.ndarray
    real: np.ndarray
    shape: tuple[int, int, int]


def equal_subcarriers(nodes: int, subcarriers: int) -> np.ndarray:
    """[N]: K // N each, the remainder to the first."""
    each, left = divmod(subcarriers, nodes)
    return each + (np.arange(nodes) < left)


def tables(link_s: np.ndarray) -> Tables:
    """Link times [Q, N, K] of 1 to K subcarriers, made ready for `solve`.

    Sizes are rounded up, so that scenarios of nearly the same size share one program. A device that
    pads has nothing to do and one subcarrier, which it cannot give.
    """
    samples, nodes, subcarriers = link_s.shape
    width = _rounded(subcarriers, 16) + 2
    padded = np.zeros((_rounded(samples, 32), _rounded(nodes, 4), width))
    padded[..., 0] = np.inf
    padded[:samples, :nodes, 1 : subcarriers + 1] = link_s
    padded[:samples, :nodes, subcarriers + 1 :] = link_s[..., -1:]
    start = np.ones(padded.shape[1], np.int32)
    start[:nodes] = equal_subcarriers(nodes, subcarriers)
    with jax.enable_x64(True), _host():
        return Tables(
            jnp.asarray(padded),
            jnp.asarray(padded[..., subcarriers - nodes + 1]),
            start,
            np.arange(len(start)) < nodes,
            (samples, nodes, subcarriers),
        )


def solve(ready: Tables, device_s: np.ndarray, whole_edge_s: np.ndarray) -> Exact:
    """The optimum of S candidates on Q samples, in one compiled call in float64.

    Args:
      ready: of the samples.
      device_s: c [S, Q, N].
      whole_edge_s: a [S, Q, N].

    Returns:
      Rows of [S Q], candidate by candidate.

    Raises:
      RuntimeError: the search did not end, which is a bug.
    """
    samples, nodes, _ = ready.shape
    count = len(device_s) * samples
    # Rows that pad repeat others, columns that pad have nothing to do.
    rows, columns = _rounded(count, 32), (0, len(ready.start) - nodes)
    sample = np.resize(np.arange(samples, dtype=np.int32), rows)
    fixed = np.resize(device_s, (rows, nodes))
    whole = np.resize(whole_edge_s, (rows, nodes))
    fixed, whole = (np.pad(array.T, (columns, (0, 0))) for array in (fixed, whole))
    with jax.enable_x64(True), _host():
        found = _search(*ready[:4], sample, fixed, whole)
        level_s, best, steps, done = jax.device_get(found)
    if not done.all():
        raise RuntimeError(f"the search for the best allocation did not end in {steps} steps")
    return Exact(level_s[:count], best[:nodes, :count].T, int(steps))


def _rounded(size: int, least: int) -> int:
    """The next power of two from the least up to 32, the next multiple of 8 above."""
    if size > 32:
        return -(-size // 8) * 8
    return max(least, 1 << (size - 1).bit_length())


def _host() -> AbstractContextManager[object]:
    """The CPU: thousands of tiny steps one after the other are no work for an accelerator.

    Raises:
      UserError: JAX was told to leave the CPU alone.
    """
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        raise UserError(
            "JAX_PLATFORMS leaves out the CPU, which this solver needs: add cpu to it"
        ) from None


@jax.jit
def _search(
    link_s: jax.Array,
    least_s: jax.Array,
    start: jax.Array,
    real: jax.Array,
    sample: jax.Array,
    device_s: jax.Array,
    whole_edge_s: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """V, its subcarriers, the steps and whether each row is done."""
    rows = len(sample)
    nodes = jnp.arange(len(start))[:, None]

    def looked_up(subcarriers: jax.Array) -> jax.Array:
        return link_s[sample, nodes, subcarriers]

    equal = jnp.broadcast_to(start[:, None], device_s.shape)
    begun = relaxed(looked_up, equal, real, device_s, whole_edge_s)
    alone_s = device_s + least_s[sample].T + whole_edge_s
    none_s = jnp.full(rows, jnp.inf)
    no = jnp.zeros(rows, bool)
    first = LoopState(
        steps=jnp.zeros((), int),
        spare=start.sum() - begun.subcarriers.sum(axis=0),
        subcarriers=begun.subcarriers,
        fewer_s=looked_up(begun.subcarriers - 1),
        link_s=looked_up(begun.subcarriers),
        more_s=looked_up(begun.subcarriers + 1),
        best=begun.subcarriers,
        level_s=none_s,
        fall_s=none_s,
        # No device is faster than with the whole edge and all subcarriers that others can spare.
        refuted_s=alone_s.max(axis=0) * (1 - JUST_BELOW),
        target_s=begun.level_s * FIRST,
        rooting=no,
        near=no,
        done=no,
    )
    last = run(first, link_s, RowInputs(sample, device_s, whole_edge_s))
    return last.level_s, last.best, last.steps, last.done
