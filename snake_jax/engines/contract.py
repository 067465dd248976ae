"""What a run asks of an engine, and what it gets: orders in, outcomes out, in any order of arrival.

The loop (`snake_jax.runs.loop`) knows this and nothing below it: not whether a node is a call in
this process, a place on a device, a process or a machine.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from snake_jax.algorithms.visits import Lost, Order, Outcome, Round, Visit
from snake_jax.params import Params, PyTree
from snake_jax.training.optimizers import OptimizerStates


class Compilations(NamedTuple):
    """How many programs were compiled or are asked for, the seconds that was waited for them, and a
    node's greatest compiled memory (None: unknown).
    """

    programs: int
    seconds: float
    peak_bytes: int | None


class Progress(NamedTuple):
    """How far a visit that is under way has come, as its node last said.

    Attributes:
      visit: which.
      steps: optimizer steps that are done of it.
      seconds: since the node began it.
      load: of the node's machine: runnable processes for each core, the mean of a minute.
      memory_bytes: that the node's process holds.
      compiling: whether it compiles a program, for which no step is done.
    """

    visit: Visit
    steps: int
    seconds: float
    load: float
    memory_bytes: int
    compiling: bool = False


class Happened(NamedTuple):
    """What happened to a node beside its visits: its number, a word of `runs.events`, and why."""

    node: int
    event: str
    cause: str


class NodeInfo(NamedTuple):
    """What an engine says of a node: how many examples it holds, and whether it is there."""

    examples: int
    alive: bool = True


class Scores(NamedTuple):
    """Of a model on the held-out data: accuracy in [0, 1] and mean loss.

    Attributes:
      accuracy: share of images, or of tokens, that the model is right about.
      loss: mean over them.
      nodes: the same of what each node has held out itself; None of one that has nothing. Empty
        where nodes hold nothing out.
      exact: share of texts that greedy decoding would write as they are; None of images.
    """

    accuracy: float
    loss: float
    nodes: "tuple[Scores | None, ...]" = ()
    exact: float | None = None


class Held(NamedTuple):
    """A value and which version of it that is: equal versions of one name are equal values."""

    version: int
    value: PyTree


class Holdings(NamedTuple):
    """What orders name by version, in the hands of the one who gives them.

    Attributes:
      layers: all that may train, in full precision; left as it is.
      states: optimizer states that travel, by layer.
      memory: what nodes remember for the method's client, by node.
      shared: what the server tells all nodes for it.
    """

    layers: Mapping[str, Held]
    states: Mapping[str, Held] = {}
    memory: Mapping[int, Held] = {}
    shared: Held = Held(0, {})

    def order(self, visit: Visit, learning_rate: float) -> Order:
        """The order of a visit that starts from all this."""
        remembered = self.memory.get(visit.node)
        return Order(
            visit,
            learning_rate,
            _versions(self.layers),
            _versions(self.states),
            None if remembered is None else remembered.version,
            self.shared.version,
        )


def _versions(held: Mapping[str, Held]) -> dict[str, int]:
    return {name: one.version for name, one in held.items()}


def unversioned(params: Params, states: OptimizerStates) -> Holdings:
    """Holdings that nothing comes after, so that all is of version 0."""
    layers = {name: Held(0, value) for name, value in params.items()}
    return Holdings(layers, {name: Held(0, value) for name, value in states.items()})


class Engine(Protocol):
    """Carries out visits.

    It is told what is held, and takes orders that name it by version. Orders of a round are
    submitted together, and may then be carried out side by side; `next` gives their outcomes, one
    for each order, in any order of arrival. No order is lost without a word: what does not come
    back is `Lost`. Where a node is a process, nothing of its data leaves it, and only what it
    lacks is sent to it.
    """

    @property
    def by_node(self) -> bool:
        """Whether it depends on the nodes of planned visits what it gets ready for them."""

    def nodes(self) -> Sequence[NodeInfo]:
        """The nodes, by number."""

    def expect(
        self,
        rounds: Sequence[Round],
        params: Params,
        done: int = 0,
        shared: PyTree = None,
        wait: bool = False,
    ) -> None:
        """Is told what a run is going to ask for, so that programs can be compiled ahead.

        Args:
          rounds: of a run as planned: all of them, or, unless the engine goes `by_node`, some that
            stand for all, and then some that stand for those that are left.
          params: all that may train; shapes suffice.
          done: how many of these rounds are not asked for any more.
          shared: what the server is going to tell all nodes for the method's client; shapes
            suffice. None: not known yet, or there is no client.
          wait: whether to return when all that is known is compiled; else it is compiled in the
            background, in the order of the rounds, and what goes wrong is raised by a later call.
        """

    def hold(self, holdings: Holdings) -> None:
        """Is told what orders may name from now on; those submitted before keep what they named."""

    def submit(self, order: Order) -> None:
        """Takes an order; never waits."""

    def next(self, timeout_s: float | None = None) -> Outcome | Lost | None:
        """The next outcome; None where `timeout_s` passed without one, or nothing is under way."""

    def progress(self) -> Sequence[Progress]:
        """How far the visits under way have come, as far as their nodes have said."""

    def happened(self) -> Sequence[Happened]:
        """What happened to nodes beside their visits, since this was last asked."""

    def evaluate(self, params: Params) -> Scores:
        """Scores of a model on the held-out data."""

    @property
    def compilations(self) -> Compilations:
        """What was compiled so far."""

    def close(self) -> None:
        """Lets go of devices, processes and connections."""


def run_round(engine: Engine, orders: Sequence[Order]) -> list[Outcome]:
    """The outcomes of a round, in the order of its visits; all of them are held.

    Raises:
      RuntimeError: a node was lost, or the engine forgot an order.
    """
    for order in orders:
        engine.submit(order)
    found: dict[Visit, Outcome] = {}
    for _ in orders:
        done = engine.next()
        if not isinstance(done, Outcome):
            raise RuntimeError(f"an outcome is missing: {done.why if done else 'nothing is left'}")
        found[done.visit] = done
    return [found[order.visit] for order in orders]


def run_visits(
    engine: Engine,
    visits: Sequence[Visit],
    params: Params,
    states: OptimizerStates,
    learning_rate: float,
) -> list[Outcome]:
    """The visits of a round whose nodes remember nothing, all starting from `params`.

    Args:
      engine: carries them out.
      visits: who trains what.
      params: all that is read or trains, in full precision; left as it is.
      states: optimizer states to go on from, by layer; layers not in it start afresh.
      learning_rate: of all their steps.
    """
    holdings = unversioned(params, states)
    engine.hold(holdings)
    return run_round(engine, [holdings.order(visit, learning_rate) for visit in visits])
