"""What a node holds out of its own data, to have the model scored on it (`--evaluate_nodes`)."""

import numpy as np

from snake_jax import streams


def held_out(count: int, share: float, seed: int, node: int) -> np.ndarray:
    """`[count]` bool: which of a node's examples it does not train on.

    Args:
      count: examples that it has.
      share: of them to hold out, at least one; 0: none.
      seed: of the run.
      node: which node, from 0.
    """
    is_held = np.zeros(count, bool)
    # Of one example none is left to train on.
    if not share or count < 2:
        return is_held
    wanted = min(max(round(share * count), 1), count - 1)
    drawn = streams.generator(seed, "nodes/hold_out", node).permutation(count)
    is_held[drawn[:wanted]] = True
    return is_held
