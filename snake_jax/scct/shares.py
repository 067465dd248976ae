"""The edge's shares for given subcarriers: the least V that all devices reach with shares of one
whole, by Newton's method. Equations 23 to 25 of the paper, whose KKT conditions say just that all
devices that need the edge are equally slow.
"""

import numpy as np

_TURNS = 100


def level_s(whole_edge_s: np.ndarray, rest_s: np.ndarray) -> np.ndarray:
    """V [...]: the root of sum_n a_n / (V - e_n) = 1, or the slowest device without edge layers.

    With S(V) the sum, 1 / S is concave (a harmonic mean of lines) and S > 1 left of the root. The
    tangent of a concave function lies above it, so from the left Newton's steps on 1 / S - 1 never
    pass the root, and one step is exact where all e_n are alike.

    Args:
      whole_edge_s: a [..., N], seconds with the whole edge; 0 where all layers are on the device.
      rest_s: e [..., N], all other seconds.
    """
    # Left of the root: no device can have more than the whole edge.
    level = (rest_s + whole_edge_s).max(axis=-1)
    for _ in range(_TURNS):
        step = newton_step(whole_edge_s, rest_s, level)
        # A step below the spacing of floats is none.
        going = step > 4e-16 * level
        if not going.any():
            return level
        level = np.where(going, level + step, level)
    raise RuntimeError(f"Newton's method took more than {_TURNS} steps for a scalar")


def newton_step(whole_edge_s: np.ndarray, rest_s: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Newton's step [...] on 1 / S - 1 at a level [...] left of the root: S (S - 1) / -S'."""
    # Left of V, but at least a_n above e_n: rounding may not say otherwise.
    bracket = np.maximum(level[..., None] - rest_s, whole_edge_s)
    used = whole_edge_s > 0
    share = np.where(used, whole_edge_s / np.where(used, bracket, 1.0), 0.0)
    slope = np.where(used, share / np.where(used, bracket, 1.0), 0.0).sum(axis=-1)
    total = share.sum(axis=-1)
    return total * (total - 1) / np.where(slope > 0, slope, 1.0)


def shares(whole_edge_s: np.ndarray, rest_s: np.ndarray, level: np.ndarray) -> np.ndarray:
    """The least alpha [..., N] with which every device is done by V [...]; at most one in sum."""
    used = whole_edge_s > 0
    bracket = np.maximum(level[..., None] - rest_s, whole_edge_s)
    least = np.where(used, whole_edge_s / np.where(used, bracket, 1.0), 0.0)
    # V is a root up to rounding: what is above one whole is taken from all.
    total = least.sum(axis=-1, keepdims=True)
    return least / np.maximum(1.0, total * (1 + 1e-15))
