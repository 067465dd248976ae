"""What a method is: rounds of visits, where the layers lie, what travels, and a merge.

A method is one file beside this one that fills in an `Algorithm` and a line in `registry.py`.
Nothing in it knows whether a node is a call in this process, a process or a machine.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np

from snake_jax.algorithms.chain import ON_CLOUD, ON_NODE, ON_SERVER, Chain, Segment
from snake_jax.algorithms.neighbours import is_graph
from snake_jax.algorithms.pool import manned
from snake_jax.algorithms.schedule import UNFINISHED, Plan
from snake_jax.algorithms.traffic import Traffic
from snake_jax.algorithms.visits import Ending, Outcome, Round, Rounds
from snake_jax.config import RunConfig
from snake_jax.errors import UserError
from snake_jax.params import LayerNames, Params, PyTree, select
from snake_jax.training.update import Client

Shards = Sequence[np.ndarray]
Sum = TypeVar("Sum")

NETWORK_FLAGS = frozenset({"cached"})
INTERRUPTION_FLAGS = frozenset({"interrupt", "fault_rate", "interruption"})
RELAY_FLAGS = (
    NETWORK_FLAGS | INTERRUPTION_FLAGS | {"mode", "distill", "carry_optimizer_state", "proximal"}
)


class Merge(NamedTuple, Generic[Sum]):
    """How the outcomes of a round become the next model, one by one: no round holds all of them.

    Attributes:
      init: `(plan, visits, params, memory) -> sum` of no outcome yet.
      add: `(sum, outcome) -> sum`.
      finish: `(plan, visits, params, memory, sum) -> (params, memory)` after a round; of some
        visits there may have been no outcome.
    """

    init: Callable[[Plan, Round, Params, PyTree], Sum]
    add: Callable[[Sum, Outcome], Sum]
    finish: Callable[[Plan, Round, Params, PyTree, Sum], tuple[Params, PyTree]]


def all_on_node(plan: Plan) -> Chain:
    """All layers on the visiting node."""
    return (Segment(ON_NODE, 0, len(plan.model_layers)),)


def no_memory(config: RunConfig, params: Params) -> dict[str, PyTree]:
    """Of a server that remembers nothing from round to round."""
    del config, params
    return {}


def nothing_shared(memory: PyTree) -> dict[str, PyTree]:
    """Of a server that tells the nodes nothing beside the model."""
    del memory
    return {}


def no_client(config: RunConfig) -> Client | None:
    """Nodes do the plain step."""
    del config
    return None


def as_they_lie(shards: Shards) -> Shards:
    """Every node trains on its own data."""
    return shards


def any_config(config: RunConfig) -> None:
    """Nothing to refuse."""
    del config


class Algorithm(NamedTuple):
    """A method as pure functions.

    Attributes:
      name: the value of `--algorithm`.
      rounds: `plan -> generator of rounds`; the visits of one run side by side from the same
        parameters. It is sent how each round went.
      cycle: `(plan, cycle) -> generator of its rounds`, where all cycles have as many rounds of as
        many visits and train the same layers in them, if not in one order: then what a run needs is
        known from its first cycle. None: cycles differ.
      traffic: what is sent before a visit and after a round.
      merge: of the outcomes of a round.
      memory: `(config, params) -> memory` of the server, a tree of arrays that `merge` is given and
        gives back.
      shared: `memory -> tree` that the server tells every node of a round, see `Client`.
      client: `config -> Client` or None: what a node does beside the plain step, and remembers.
      companions: kinds of items that travel with every trained layer and are as large as it, as
        SCAFFOLD's `control`.
      chain: `plan -> chain`, where the layers of a visit lie.
      local_losses: both sides of the chain's cut have a loss of their own: an auxiliary head below,
        no gradient back.
      shards: `shards -> shards`, where the data is not trained on as it lies on the nodes.
      at_server: data and model are in one place, the server's, so nothing travels.
      trains_ends: every visit trains both ends of the model.
      unit: what a line of metrics is called: a visit, or a round of several.
      check: refuses configurations that the method cannot work with, by a `UserError`.
      flags: those of the flags not meant for every method that it has a use for (`RELAY_FLAGS`).
    """

    name: str
    rounds: Callable[[Plan], Rounds]
    traffic: Traffic
    merge: Merge[Any]
    cycle: Callable[[Plan, int], Rounds] | None = None
    memory: Callable[[RunConfig, Params], PyTree] = no_memory
    shared: Callable[[PyTree], PyTree] = nothing_shared
    client: Callable[[RunConfig], Client | None] = no_client
    companions: tuple[str, ...] = ()
    chain: Callable[[Plan], Chain] = all_on_node
    local_losses: bool = False
    shards: Callable[[Shards], Shards] = as_they_lie
    at_server: bool = False
    trains_ends: bool = False
    unit: str = "visit"
    check: Callable[[RunConfig], None] = any_config
    flags: frozenset[str] = frozenset()

    @property
    def trains_parts(self) -> bool:
        """Whether a visit trains some of the layers, as `--always_train` and others say."""
        return "always_train" in self.flags


def every_cycle(rounds_of: Callable[[Plan, int], Rounds]) -> Callable[[Plan], Rounds]:
    """The rounds of a run from those of a cycle."""
    return functools.partial(_cycle_after_cycle, rounds_of)


def _cycle_after_cycle(rounds_of: Callable[[Plan, int], Rounds], plan: Plan) -> Rounds:
    for cycle in range(plan.config.cycles):
        yield from rounds_of(plan, cycle)


def planned_rounds(algorithm: Algorithm, plan: Plan) -> list[Round]:
    """All rounds of a run, in order, where nothing fails but what the flags ask for."""
    return list(_walked(algorithm.rounds(plan), plan))


def _walked(course: Rounds, plan: Plan) -> Iterator[Round]:
    """The rounds of a schedule, one after the other, as flags have them go."""
    away = frozenset(plan.refused)
    visits = manned(plan, away, next(course))
    while True:
        yield visits
        # A method decides what comes next when it is told how a round went.
        endings = []
        for visit in visits:
            event = visit.event if visit.event in UNFINISHED else ""
            endings.append(Ending(visit, event))
        try:
            visits = manned(plan, away, course.send(tuple(endings)))
        except StopIteration:
            return


class Outline(NamedTuple):
    """What a run is as planned, without all its rounds.

    Attributes:
      rounds: how many there are.
      turns: how many turns they have.
      kinds: rounds that stand for all: none of the run has more visits that train the same layers.
      left: likewise of the rounds that are not finished, in the order in which they come.
    """

    rounds: int
    turns: int
    kinds: tuple[Round, ...]
    left: tuple[Round, ...]


def outline(algorithm: Algorithm, plan: Plan, done: int = 0) -> Outline:
    """What a run is as planned: where its cycles are alike, without going through them.

    Args:
      algorithm: the method.
      plan: of the run.
      done: how many rounds are finished.
    """
    config = plan.config
    disturbed = config.interrupt or config.fault_rate or config.leave or config.join
    if algorithm.cycle is None or disturbed or plan.refused or is_graph(config):
        return _outline_of_all(algorithm, plan, done)

    # The first cycle stands for all, the last one knows the last turn, and of what is left as many
    # rounds as a cycle has stand for the others.
    kinds = tuple(_walked(algorithm.cycle(plan, 0), plan))
    last = _walked(algorithm.cycle(plan, config.cycles - 1), plan)
    turns = 1 + max(visit.turn for visits in last for visit in visits)
    rounds = config.cycles * len(kinds)
    left = list[Round]()
    cycle, begun = divmod(done, len(kinds))
    if cycle < config.cycles:
        left += [*_walked(algorithm.cycle(plan, cycle), plan)][begun:]
    if begun and cycle + 1 < config.cycles:
        left += [*_walked(algorithm.cycle(plan, cycle + 1), plan)][:begun]
    return Outline(rounds, turns, kinds, tuple(left))


def _outline_of_all(algorithm: Algorithm, plan: Plan, done: int) -> Outline:
    """The outline of a run whose cycles differ: all its rounds are gone through, and few kept."""
    most: dict[LayerNames, int] = {}
    most_left: dict[LayerNames, int] = {}
    kinds, left = [], []
    rounds, turns = 0, 0
    for visits in _walked(algorithm.rounds(plan), plan):
        if _adds(most, visits):
            kinds.append(visits)
        if rounds >= done and _adds(most_left, visits):
            left.append(visits)
        rounds += 1
        turns = max([turns, *(1 + visit.turn for visit in visits)])
    return Outline(rounds, turns, tuple(kinds), tuple(left))


def _adds(most: dict[LayerNames, int], visits: Round) -> bool:
    """Whether a round has more visits that train some layers than any before; notes it."""
    sizes: dict[LayerNames, int] = {}
    for visit in visits:
        sizes[visit.layers] = sizes.get(visit.layers, 0) + 1
    adds = False
    for layers, size in sizes.items():
        if size > most.get(layers, 0):
            most[layers] = size
            adds = True
    return adds


class Mean(NamedTuple):
    """A running mean of each trained layer, weighted by the examples that its nodes hold.

    Attributes:
      layers: the mean so far; `{}` of nothing.
      examples: `{layer: examples}` that the nodes hold which trained it.
    """

    layers: Params
    examples: Mapping[str, int]


def no_mean(plan: Plan, visits: Round, params: Params, memory: PyTree) -> Mean:
    """Of no outcome yet."""
    del plan, visits, params, memory
    return Mean({}, {})


def add_to_mean(mean: Mean, outcome: Outcome) -> Mean:
    """The mean with one outcome more.

    `m + (held / all) (w - m)`: of one outcome it is that outcome, bit for bit, and of equal ones
    it is any of them. The visits of a round train the same layers, or disjoint ones.
    """
    held = outcome.examples_held
    examples = dict(mean.examples)
    for name in outcome.layers:
        examples[name] = examples.get(name, 0) + held
    # The first outcome is taken as it is: a mean with zeros would round.
    trained = tuple(outcome.layers)
    if not trained or trained[0] not in mean.layers:
        return Mean({**mean.layers, **outcome.layers}, examples)
    share = np.float32(held / examples[trained[0]])
    moved = _towards(select(mean.layers, trained), outcome.layers, share)
    return Mean({**mean.layers, **moved}, examples)


@jax.jit
def _towards(mean: Params, layers: Params, share: jax.Array) -> Params:
    """`m + share (w - m)` of all arrays; one compiled program a structure."""

    def moved(m: jax.Array, w: jax.Array) -> jax.Array:
        return m + share * (w - m)

    return jax.tree.map(moved, mean, layers)


def put_mean(
    plan: Plan, visits: Round, params: Params, memory: PyTree, mean: Mean
) -> tuple[Params, PyTree]:
    """The trained layers, or their mean, in the place of the old ones."""
    del plan, visits
    return {**params, **mean.layers}, memory


REPLACE = Merge(no_mean, add_to_mean, put_mean)
"""The trained layers replace the old ones: their mean where several nodes trained them."""


def node_and_server(plan: Plan) -> Chain:
    """The first layers, up to `--cut`, on the node, the rest on the server.

    With `--cloud_cut` the server's part ends there, and what is above lies in the cloud. With
    `--tail` so many last layers are on the node again.

    Raises:
      UserError: the flags leave a place without a layer, or name none of the model's.
    """
    names = plan.model_layers
    config = plan.config
    cut = _cut_index("cut", config.cut, "node", names)
    end = len(names) - config.tail
    if not 0 < cut < end:
        raise UserError(
            f"--cut={config.cut} with --tail={config.tail}: node and server need at least one of "
            f"the {len(names)} layers each: {', '.join(names)}"
        )

    # Beyond the node: all of it on the server, or the upper part in the cloud.
    found = [Segment(ON_NODE, 0, cut), Segment(ON_SERVER, cut, end)]
    if config.cloud_cut:
        upper = _cut_index("cloud_cut", config.cloud_cut, "server", names)
        if not cut < upper < end:
            raise UserError(
                f"--cloud_cut={config.cloud_cut} with --cut={config.cut} and --tail="
                f"{config.tail}: server and cloud need at least one of the {len(names)} layers "
                f"each: {', '.join(names)}"
            )
        found[1:] = [Segment(ON_SERVER, cut, upper), Segment(ON_CLOUD, upper, end)]
    if config.tail:
        found.append(Segment(ON_NODE, end, len(names)))
    return tuple(found)


def _cut_index(flag: str, text: str, place: str, names: LayerNames) -> int:
    """How many layers a cut leaves below it, from a number of them or the last one's name.

    Raises:
      UserError: neither.
    """
    if text in names:
        return names.index(text) + 1
    if text.isdecimal():
        return int(text)
    raise UserError(
        f"--{flag}={text}: want a number of layers or the name of the {place}'s last one: "
        f"{', '.join(names)}"
    )
