"""What a run carries from round to round, and what it says of each."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from snake_jax.algorithms.pool import Move, Served
from snake_jax.algorithms.visits import Lost
from snake_jax.nodes.ledger import Network, Transfer
from snake_jax.params import Params, PyTree
from snake_jax.runs.events import Event
from snake_jax.runs.rates import MeasuredRate
from snake_jax.training.optimizers import OptimizerStates


class State(NamedTuple):
    """All that a run carries from round to round.

    Attributes:
      params: the model in full precision.
      states: optimizer states by layer, where they travel.
      memory: what the server remembers for its method.
      nodes: `{node: what it remembers for its method}`, of nodes that have been visited.
      network: who holds what.
      failures: `{number of a round: event of each of its visits}`, of the rounds in which one was
        interrupted or lost: with it the schedule is where it was.
      rounds: finished so far.
      clock_s: simulated seconds so far.
      moves: of nodes that left or came back because of how the run went, or on request.
      served: `{node: what it did so far}`, where nodes leave by it.
      requests: how many requests to leave or join were heard so far.
      measured: `{node: what it was seen to compute}`, with `--rates=measured`.
      plans: who trains what in cycles that were planned from that.
      begun_s: simulated seconds at the start of each finished round, where the schedule follows the
        clock: with them it is where it was.
      ended: why the run is over before its planned rounds; empty: it is not.
      steps: optimizer steps so far, of each round those of its longest visit.
    """

    params: Params
    states: OptimizerStates
    memory: PyTree
    nodes: Mapping[int, PyTree]
    network: Network
    failures: Mapping[int, tuple[str, ...]]
    rounds: int
    clock_s: float = 0.0
    moves: tuple[Move, ...] = ()
    served: Mapping[int, Served] = {}
    requests: int = 0
    measured: Mapping[int, MeasuredRate] = {}
    plans: Mapping[int, tuple[int, ...]] = {}
    begun_s: tuple[float, ...] = ()
    ended: str = ""
    steps: int = 0


class Report(NamedTuple):
    """A finished round: a line of metrics, its transfers, the state after it, whom it lost, and
    what else happened to nodes.
    """

    record: dict[str, Any]
    transfers: list[Transfer]
    state: State
    lost: tuple[Lost, ...] = ()
    events: tuple[Event, ...] = ()
