"""Places: where layers lie, work is done and messages start and end. A node, server or cloud.

The server is near the nodes (the edge, where there is a cloud too), the cloud behind the server.

A place is a kind and a number within its kind. In files (the ledger's rows) it is one word: the
kind and the number, as node3; of a kind that has one place only, the kind alone, as server.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from snake_jax.errors import UserError

Kind = Literal["node", "server", "cloud"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SINGLE: frozenset[Kind] = frozenset({"server", "cloud"})
"""Kinds with one place each."""

_WORD = re.compile(r"([a-z]+)(0|[1-9][0-9]*)?")


@dataclass(frozen=True, order=True)
class Place:
    """A place of a run; `str` gives its word.

    Attributes:
      kind: one of KINDS.
      index: from 0; always 0 where the kind has one place only.
    """

    kind: Kind
    index: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind in SINGLE else f"{self.kind}{self.index}"


SERVER = Place("server")
CLOUD = Place("cloud")


def node(index: int) -> Place:
    """The node of this number."""
    return Place("node", index)


def from_word(word: str) -> Place:
    """The place that `str` writes as this word.

    Raises:
      UserError: it writes none so.
    """
    match = _WORD.fullmatch(word)
    if match:
        number = match.group(2)
        for kind in KINDS:
            if kind == match.group(1) and (kind in SINGLE) == (number is None):
                return Place(kind, int(number or 0))
    raise UserError(f"{word!r} is no place: want server, cloud, or a node as node0, node1, ...")
