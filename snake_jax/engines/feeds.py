"""Feeds: which batches a visit's epoch is, and what one call of a program trains of them.

Images lie on the device, and a visit's epoch is indices into them: one call trains it whole
(`image_feed`). Rows of text lie on the host, and one call trains one batch of them (`text_feed`).
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from snake_jax.algorithms.visits import Outcome, Visit
from snake_jax.engines.contract import NodeInfo, Scores
from snake_jax.engines.emulations import Axes, Emulation
from snake_jax.training.text_step import TextBatch

RunPrefix = Callable[[Hashable, TextBatch], jax.Array]
"""`(shape, rows) -> [B, T, D]`, the input of the first block that trains: see `text_step.prefix`.
"""


class Chunk(NamedTuple):
    """What one call of a program trains.

    Attributes:
      shape: tells apart chunks that need programs of their own.
      arrays: arguments of the program, between what a visit starts from and its key.
      number: which of the epoch's, where an epoch has several; None: it is the epoch.
    """

    shape: Hashable
    arrays: tuple[Any, ...]
    number: int | None = None


class Epoch(NamedTuple):
    """An epoch of visits side by side: how many steps each does, and the chunks, made as they are
    asked for. `factors` are the sums of what their learning rates are multiplied by; None: all by
    1.
    """

    steps: list[int]
    chunks: Iterator[Chunk]
    factors: list[float] | None = None


class Reading(Protocol):
    """The batches of visits side by side."""

    def epoch(self, number: int, over: Sequence[bool]) -> Epoch:
        """An epoch; a visit that is over has no steps in it."""

    def told(self, node: int, outcome: Outcome) -> Outcome:
        """The outcome of a visit, by its number among these, with what only its feed counts."""


class Feed(Protocol):
    """Data of all nodes, and what is made of it.

    Attributes:
      ahead: whether all chunks have the shape of `nobody`, so that programs can be compiled before
        there is a visit.
      axes: of a chunk's arrays.
    """

    @property
    def ahead(self) -> bool: ...

    @property
    def axes(self) -> Axes: ...

    def nodes(self) -> list[NodeInfo]:
        """The nodes, by number."""

    def program(self, names: tuple[str, ...], lead: tuple[int, ...]) -> Callable[..., Any]:
        """What a call does for one node, to be compiled: trains these names on a chunk."""

    def read(
        self,
        visits: Sequence[Visit],
        lead: tuple[int, ...],
        how: Emulation,
        run_prefix: RunPrefix | None,
    ) -> Reading:
        """Begins to read for visits.

        Args:
          visits: that one program carries out.
          lead: leading axes of its nodes; empty for one node.
          how: the emulation.
          run_prefix: where what lies below the trained blocks can be kept; else None.
        """

    def nobody(self, lead: tuple[int, ...]) -> Chunk:
        """A chunk of no visit."""

    def evaluation(self) -> Callable[..., Any]:
        """What scores held-out data, to be compiled; its last argument is the data."""

    def prefix(self) -> Callable[..., Any]:
        """What `RunPrefix` calls, to be compiled."""

    def held_out(self) -> Iterator[Chunk]:
        """The held-out data, a call of `evaluation` after the other."""

    def scores(self, results: Sequence[Any]) -> Scores:
        """What the calls gave, as one."""

    def scoring(self) -> Callable[..., Any]:
        """What scores what nodes hold out themselves, to be compiled; see `evaluation`."""

    def at_nodes(self) -> Iterator[Chunk]:
        """What nodes hold out themselves, a call of `scoring` after the other."""

    def node_scores(self, results: Sequence[Any]) -> tuple[Scores | None, ...]:
        """What those calls gave, by node; see `Scores.nodes`."""

    def other_bytes(self) -> int:
        """Bytes of arguments that a node of its own would not have: all other nodes' data."""
