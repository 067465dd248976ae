"""What tells one compiled program of an engine from another."""

from typing import Any, NamedTuple


class Program(NamedTuple):
    """Which program.

    Attributes:
      kind: train, evaluate, score (what nodes hold out) or prefix.
      names: of what trains, as the layout calls them.
      lead: leading axes of its nodes; none for one node.
      shape: see `feeds.Chunk`.
    """

    kind: str
    names: tuple[str, ...] = ()
    lead: tuple[int, ...] = ()
    shape: Any = ()
