"""Who trains what when: rounds of visits, decided one after the other.

A visit is one node training some layers on its own data; a round is the visits that run side by
side before the results are merged. A schedule is a generator of rounds that is sent how each went,
so a hand-over is decided when a node is lost and not before the run. It depends on nothing but the
configuration and those endings: a run that goes on after a kill sends them again and is where it
was.

Learning rates belong here too: constant inside a cycle, changed between cycles
(snake_learning_magazine, "Local Training").
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from snake_jax import streams
from snake_jax.algorithms.visits import Ending, Round, Rounds, Visit
from snake_jax.config import RunConfig
from snake_jax.errors import UserError
from snake_jax.nodes.fleet import Fleet
from snake_jax.params import LayerNames

UNFINISHED = ("interrupted", "lost")
TAKEOVER, WAITED = "takeover", "waited"
_WAITS = 3
_MOST_EPOCHS = 1000


class Hop(NamedTuple):
    """What hops from node to node cost, where each is chosen by that: places and a whole model."""

    fleet: Fleet
    model_bytes: int


class Plan(NamedTuple):
    """What a schedule depends on.

    Attributes:
      config: of the run.
      layer_names: what may train, in the model's order.
      always: the layers that train at every visit.
      visitors: `{layers: node}` of a cycle's visits, where they were assigned; empty: nodes take
        turns.
      able: `{layers: {node: seconds of the visit there}}` of the nodes that can hold it, by the
        clock's figures; empty: all can, and are alike.
      refused: `{node: why}`, nodes that were not admitted.
      order: all of the model's layers, in order, where not all of them may train; empty: they do.
      hop: where the next node is chosen among neighbours by what it costs; None: it is not.
    """

    config: RunConfig
    layer_names: LayerNames
    always: LayerNames
    visitors: Mapping[LayerNames, int] = {}
    able: Mapping[LayerNames, Mapping[int, float]] = {}
    refused: Mapping[int, str] = {}
    order: LayerNames = ()
    hop: Hop | None = None

    @property
    def model_layers(self) -> LayerNames:
        """All of the model's layers, in order."""
        return self.order or self.layer_names


def serpentine(plan: Plan, cycle: int) -> tuple[LayerNames, ...]:
    """The assignments of a cycle: every layer outside `always` once, `layers_per_visit` at a time,
    or with `--assign=segments` as many as the node can.

    With first and last layer always trained these are the paper's middle layers 2 .. N-1 (magazine,
    "Layer Assignment"). Where all layers always train the cycle is one visit.
    """
    config = plan.config
    middle = [name for name in plan.layer_names if name not in plan.always]
    size = config.layers_per_visit
    groups = []
    if config.assign == "segments" and plan.visitors:
        # Nodes have been given runs of layers, in the model's order.
        for layers in plan.visitors:
            groups.append([name for name in layers if name not in plan.always])
    else:
        for start in range(0, len(middle), size):
            groups.append(middle[start : start + size])
    if not groups:
        groups.append([])

    # The serpent goes up the layers; others go down, or in an order drawn for the cycle.
    if config.order == "reverse":
        groups.reverse()
    elif config.order == "random":
        rng = streams.generator(config.seed, "schedule/layers", cycle)
        drawn = rng.permutation(len(groups))
        groups = [groups[index] for index in drawn]

    # A visit trains its group and what always trains, in the model's order.
    assignments = []
    for group in groups:
        trained = {*group, *plan.always}
        assignments.append(tuple(name for name in plan.layer_names if name in trained))
    return tuple(assignments)


def relay(
    plan: Plan,
    cycle: int,
    assignments: Sequence[LayerNames],
    nodes: Sequence[int] | None = None,
) -> Rounds:
    """One visit after the other, or `parallel` nodes side by side.

    A visit that was interrupted or lost is taken over by another node; of several nodes side by
    side the others suffice.

    Args:
      plan: of the run.
      cycle: from 0.
      assignments: the layers of each turn.
      nodes: the node of each turn; None: turn v is node `v mod nodes`, or the `parallel` nodes that
        follow the last.
    """
    # Turns are counted through the run: in them, not in cycles, nodes take turns.
    config = plan.config
    first = cycle * len(assignments)
    for index, layers in enumerate(assignments):
        turn = first + index
        start = turn * config.parallel if nodes is None else nodes[index]
        visits = []
        for offset in range(config.parallel):
            node = (start + offset) % config.nodes
            visits.append(Visit(turn, cycle, node, layers))
        endings = yield tuple(visits)

        # A lone node's turn goes on until somebody has finished it.
        if len(visits) == 1:
            (ending,) = endings
            yield from taken_over(plan, ending)


def taken_over(plan: Plan, ending: Ending) -> Rounds:
    """The rounds in which a visit is finished, until it is; none where it went well.

    After an upload another node goes on where the first one stopped; after a loss it starts again
    from the model before the visit (snake_learning_magazine, "Node Management"; arXiv 2405.03372).
    Which node that is the pool says: here it is the visit's own.

    Raises:
      UserError: its own node waited for it and lost it again, several times.
    """
    # Who takes over may be lost too: then the next one does, until somebody is done.
    waited = 0
    while ending.event in UNFINISHED:
        visit = ending.visit
        waited = waited + 1 if visit.event == WAITED else 0
        if waited > _WAITS:
            raise UserError(
                f"visit {visit.turn} (node {visit.node}, layers {', '.join(visit.layers)}) was "
                f"lost {waited} times at a node that no other can stand in for: raise "
                "memory_bytes in --node_file, or give more nodes, and go on by the same command"
            )
        began, ended = visit.share
        done = ended if ending.event == "interrupted" else began
        (ending,) = yield (visit._replace(share=(done, 1.0), event=TAKEOVER),)


def in_periods(plan: Plan, place: int, cycle: int, layers: LayerNames) -> Visit:
    """A visit to the one place that has all data: `periods` of them share a turn's steps.

    Args:
      plan: of the run.
      place: which visit of the run, from 0.
      cycle: that it is in.
      layers: that it trains.
    """
    turn, part = divmod(place, plan.config.periods)
    share = part / plan.config.periods, (part + 1) / plan.config.periods
    return Visit(turn, cycle, 0, layers, share)


def whole_side_by_side(plan: Plan, cycle: int) -> Rounds:
    """A cycle is one round of all or the sampled nodes, which train the whole model."""
    return side_by_side(plan, cycle, plan.layer_names)


def side_by_side(plan: Plan, cycle: int, layers: LayerNames) -> Rounds:
    """A cycle is one round of all or the sampled nodes, which train these layers."""
    visits = []
    for node in sampled_nodes(plan.config, cycle):
        visits.append(Visit(cycle, cycle, node, layers))
    yield tuple(visits)


def sampled_nodes(config: RunConfig, cycle: int) -> list[int]:
    """The nodes of a round: all, or `nodes_per_round` of them drawn without replacement."""
    if not config.nodes_per_round:
        return list(range(config.nodes))
    rng = streams.generator(config.seed, "schedule/sampled", cycle)
    drawn = rng.choice(config.nodes, config.nodes_per_round, replace=False)
    return sorted(drawn.tolist())


def shuffled_nodes(config: RunConfig, cycle: int) -> list[int]:
    """All nodes in the random order of a cycle."""
    rng = streams.generator(config.seed, "schedule/nodes", cycle)
    return rng.permutation(config.nodes).tolist()


def epochs_of(config: RunConfig, node: int) -> int:
    """Passes over a node's data in one of its visits.

    Raises:
      UserError: `--node_epochs` is no list of whole numbers from 1.
    """
    if not config.node_epochs:
        return config.local_epochs
    words = [word.strip() for word in config.node_epochs.split(",")]
    for word in words:
        if not word.isdecimal() or not 0 < int(word) < _MOST_EPOCHS:
            raise UserError(
                f"--node_epochs={config.node_epochs}: {word or 'a gap'} is no number of passes "
                f"from 1 to {_MOST_EPOCHS - 1}"
            )
    return int(words[node % len(words)])


def rates_follow_length(config: RunConfig) -> bool:
    """Whether the learning rate of a visit depends on how many cycles the run has."""
    return config.lr_schedule in ("cosine", "cosine_visits")


def learning_rate(config: RunConfig, cycle: int, done: float = 0.0) -> float:
    """The learning rate of a visit.

    Args:
      config: of the run.
      cycle: of the visit; the papers' schedule is constant within one.
      done: share of all turns before it, for the schedule that follows those. Turns and not rounds,
        so that a visit that another node takes over has the rate that it would have had.
    """
    start = config.learning_rate
    if config.lr_schedule == "factor":
        return start * config.lr_decay**cycle
    # Half a cosine from 1 to 0, over the turns or over the cycles.
    if config.lr_schedule == "cosine_visits":
        return start * 0.5 * (1 + math.cos(math.pi * done))
    if config.lr_schedule == "cosine":
        return start * 0.5 * (1 + math.cos(math.pi * cycle / config.cycles))
    return start


def struck(config: RunConfig, visits: Round) -> Round:
    """The visits of a round as the flags' faults leave them: cut short, and named what they are.

    Who takes over is never struck again, so every turn ends.
    """
    # A node that is told in time hands in what it has; else its work is lost.
    event = "interrupted" if config.interruption == "upload" else "lost"
    found = []
    for visit in visits:
        if visit.event:
            found.append(visit)
            continue
        share = share_struck(config, visit.turn)
        if share is not None:
            visit = visit._replace(share=(0.0, share), event=event)
        found.append(visit)
    return tuple(found)


def share_struck(config: RunConfig, turn: int) -> float | None:
    """The share of a turn's steps after which flags interrupt it; None: they do not.

    What they name goes before what falls to a turn by chance.
    """
    return interruptions(config).get(turn, _fault(config, turn))


def _fault(config: RunConfig, turn: int) -> float | None:
    """The share after which a turn is interrupted by chance, or None."""
    if not config.fault_rate:
        return None
    chance, share = streams.generator(config.seed, "schedule/faults", turn).random(2)
    return float(share) if chance < config.fault_rate else None


def interruptions(config: RunConfig) -> dict[int, float]:
    """`{turn: share of its steps after which it is interrupted}` from the `interrupt` flag.

    Raises:
      UserError: not of the form VISIT or VISIT@SHARE, a visit named twice, or no other node could
        take over.
    """
    if (config.interrupt or config.fault_rate) and config.nodes < 2:
        raise UserError(
            "--interrupt and --fault_rate need an idle node to take over: set --nodes to at least 2"
        )
    shares: dict[int, float] = {}
    if not config.interrupt:
        return shares
    for word in config.interrupt.split(","):
        turn, share = _interruption(word.strip())
        if turn in shares:
            raise UserError(f"--interrupt={config.interrupt}: names a visit twice")
        shares[turn] = share
    return shares


def _interruption(word: str) -> tuple[int, float]:
    """The turn and the share of a word such as `4@0.25`; half where it says no share.

    Raises:
      UserError: it is no such word.
    """
    # Turn -1 stands for what cannot be read.
    number, at, part = word.partition("@")
    try:
        turn = int(number)
        share = float(part) if at else 0.5
    except ValueError:
        turn, share = -1, 0.0
    if turn < 0 or not 0 <= share < 1:
        raise UserError(
            f"--interrupt={word}: want VISIT or VISIT@SHARE with VISIT from 0 and SHARE in [0, 1), "
            "as 4@0.25"
        )
    return turn, share
