"""What a run asks of an engine, and what it gets: orders in, outcomes out, in any order of arrival.

The loop (`snake_jax.runs.loop`) knows this and nothing below it: not whether a node is a call in
this process, a place on a device, a process or a machine.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from snake_jax.algorithms.visits import Lost, Order, Outcome, Round
from snake_jax.params import Params


class Compilations(NamedTuple):
    """How many programs were compiled, the seconds that took, and a node's greatest compiled memory
    (None: unknown).
    """

    programs: int
    seconds: float
    peak_bytes: int | None


class NodeInfo(NamedTuple):
    """What an engine says of a node: how many examples it holds, and whether it is there."""

    examples: int
    alive: bool = True


class Scores(NamedTuple):
    """Of a model on the held-out data: accuracy in [0, 1] and mean loss."""

    accuracy: float
    loss: float


class Engine(Protocol):
    """Carries out visits.

    Orders of a round are submitted together, and may then be carried out side by side; `next` gives
    their outcomes, one for each order. No order is lost without a word: what does not come back is
    `Lost`.
    """

    def nodes(self) -> Sequence[NodeInfo]:
        """The nodes, by number."""

    def expect(self, rounds: Sequence[Round], params: Params, done: int = 0) -> None:
        """Is told what a run is going to ask for, so that programs can be compiled ahead.

        Args:
          rounds: all of a run as planned.
          params: all that may train; shapes suffice.
          done: how many of the rounds are finished.
        """

    def submit(self, order: Order) -> None:
        """Takes an order; never waits."""

    def next(self, timeout_s: float | None = None) -> Outcome | Lost | None:
        """The next outcome; None where `timeout_s` passed without one, or nothing is under way."""

    def evaluate(self, params: Params) -> Scores:
        """Scores of a model on the held-out data."""

    @property
    def compilations(self) -> Compilations:
        """What was compiled so far."""

    def close(self) -> None:
        """Lets go of devices, processes and connections."""
