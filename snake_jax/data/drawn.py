"""Virtual nodes: as many as one likes, each with examples that it draws from all of them.

Nodes may share examples, so their number is not bounded by the data, and no list of who holds what
is kept: a node's indices are drawn, by its number alone, when it is visited.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from snake_jax import streams
from snake_jax.errors import UserError

KIND = "drawn"


@dataclass(frozen=True)
class Drawn(Sequence[np.ndarray]):
    """The shards of virtual nodes: of node k, sorted int32 indices `[N_k]`, no two alike.

    Attributes:
      examples: how many there are to draw from.
      sizes: `[K]`, how many each node holds.
      seed: of the draws.
    """

    examples: int
    sizes: np.ndarray
    seed: int

    def __len__(self) -> int:
        """How many nodes there are."""
        return len(self.sizes)

    @overload
    def __getitem__(self, node: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, node: slice) -> list[np.ndarray]: ...
    def __getitem__(self, node: int | slice) -> np.ndarray | list[np.ndarray]:
        """The shard of the node of this number."""
        if isinstance(node, slice):
            return [self[number] for number in range(len(self))[node]]
        number = range(len(self))[node]
        rng = streams.generator(self.seed, "partition/drawn", number)
        chosen = rng.choice(self.examples, int(self.sizes[number]), replace=False)
        return np.sort(chosen.astype(np.int32))


def drawn(kind: str, examples: int, nodes: int, seed: int) -> Drawn:
    """The shards of virtual nodes whose sizes are drawn evenly from a range.

    Args:
      kind: `drawn:LEAST-MOST`, the range of examples a node holds.
      examples: how many there are to draw from.
      nodes: how many.
      seed: of the draws.

    Raises:
      UserError: the range is none, or goes beyond the examples.
    """
    least, _, most = kind.removeprefix(f"{KIND}:").partition("-")
    in_range = least.isdecimal() and most.isdecimal() and 1 <= int(least) <= int(most) <= examples
    if not in_range:
        raise UserError(
            f"--partition={kind}: want {KIND}:LEAST-MOST examples a node, as {KIND}:20-400, with "
            f"LEAST from 1 and MOST up to the {examples} training examples"
        )
    if nodes < 1 or seed < 0:
        raise UserError(f"--nodes={nodes} --seed={seed}: want at least one node, and a seed from 0")
    rng = streams.generator(seed, "partition/drawn_sizes")
    return Drawn(examples, rng.integers(int(least), int(most) + 1, nodes), seed)


def shard_sizes(shards: Sequence[np.ndarray]) -> list[int]:
    """How many examples each node holds; of virtual nodes without drawing them."""
    if isinstance(shards, Drawn):
        return shards.sizes.tolist()
    return [len(shard) for shard in shards]
