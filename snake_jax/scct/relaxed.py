"""Where the exact search begins: the optimum with fractional subcarriers and rates linear in them.

With t_n = theta_n / beta_n, and w_n = 1 / (V - c_n), the least sum of shares for a target V has a
closed form. Lagrange's condition for it, a theta / (beta (V - c) - theta)^2 = lambda, gives, with
u = lambda^-1/2,

    beta_n = w_n (theta_n + u sqrt(a_n theta_n)),   alpha_n = w_n (a_n + sqrt(a_n theta_n) / u).

Summed, with A, T and S for the sums of w a, w theta and w sqrt(a theta): K = T + u S and
1 = A + S / u, so V is the root of S^2 = (1 - A) (K - T).

theta is not constant, since a rate is not linear in its subcarriers: it is read again at each beta.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

_ROUNDS = 3
_HALVINGS = 12


class Relaxed(NamedTuple):
    """V [B] and subcarriers [N, B], rounded to at least one each; their sum may miss K."""

    level_s: jax.Array
    subcarriers: jax.Array


def relaxed(
    looked_up: Callable[[jax.Array], jax.Array],
    first: jax.Array,
    real: jax.Array,
    device_s: jax.Array,
    whole_edge_s: jax.Array,
) -> Relaxed:
    """The relaxation's optimum of B rows.

    Args:
      looked_up: link times [N, B] of subcarriers [N, B].
      first: [N, B], subcarriers at which theta is read first; their sum over `real` is K.
      real: [N], whether a column is a device.
      device_s: c [N, B].
      whole_edge_s: a [N, B].
    """
    real = real[:, None]
    total = jnp.where(real, first, 0).sum(axis=0)
    most = total - real.sum() + 1  # the others need one each
    found = Relaxed(jnp.zeros(device_s.shape[1]), first)
    for _ in range(_ROUNDS):
        theta = found.subcarriers * looked_up(found.subcarriers)
        both = jnp.sqrt(whole_edge_s * theta)
        level_s = _root(total, device_s, whole_edge_s, theta, both)
        weight = 1 / (level_s - device_s)
        spare = total - (weight * theta).sum(axis=0)
        factor = spare / jnp.maximum((weight * both).sum(axis=0), 1e-300)
        fractional = weight * (theta + factor * both)
        # A device with all layers has nothing but its link to be in time by.
        whole = jnp.where(whole_edge_s > 0, jnp.round(fractional), jnp.ceil(fractional))
        rounded = jnp.clip(whole, 1, most).astype(first.dtype)
        found = Relaxed(level_s, jnp.where(real, rounded, first))
    return found


def _root(
    total: jax.Array,
    device_s: jax.Array,
    whole_edge_s: jax.Array,
    theta: jax.Array,
    both: jax.Array,
) -> jax.Array:
    """V [B] of S^2 = (1 - A) (K - T), by halving an interval.

    Were all c alike, x = 1 / (V - c) would solve (A T - S^2) x^2 - (A K + T) x + K = 0 with the
    sums at w = 1; so V lies between 1 / x above the least c and 1 / x above the greatest.
    """
    edge, link, mixed = whole_edge_s.sum(axis=0), theta.sum(axis=0), both.sum(axis=0)
    # By Cauchy's inequality A T >= S^2: both roots are positive, and the smaller one is wanted.
    square, linear = edge * link - mixed**2, edge * total + link
    root = jnp.sqrt(jnp.maximum(linear**2 - 4 * square * total, 0.0))
    above = (linear + root) / (2 * total)
    low = jnp.maximum(device_s.min(axis=0) + above, device_s.max(axis=0))
    high = device_s.max(axis=0) + above

    def halved(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        weight = 1 / jnp.maximum(middle - device_s, 1e-300)
        edge = (weight * whole_edge_s).sum(axis=0)
        link = (weight * theta).sum(axis=0)
        mixed = (weight * both).sum(axis=0)
        enough = (edge < 1) & (link < total) & (mixed**2 <= (1 - edge) * (total - link))
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    return jax.lax.fori_loop(0, _HALVINGS, halved, (low, high))[1]
