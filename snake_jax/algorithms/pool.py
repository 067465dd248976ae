"""Who serves a run: nodes that are refused, that leave and that join, and whose visits these are.

A method says which node would train what; here the visits of nodes that are away go to others. That
depends on flags, on who was refused before the run, and on moves that are decided after a round and
kept: a run that goes on after a kill decides nothing anew. Nodes come and go between rounds only,
when what was trained is merged (snake_learning_magazine, "Node Management": nodes "proactively
request the PC to exit [...] upon reaching the designated training epochs, predefined threshold
training metrics, or detecting trivial performance improvement").
"""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from snake_jax.algorithms import schedule, stand_ins
from snake_jax.algorithms.schedule import TAKEOVER, UNFINISHED, WAITED, Plan, struck
from snake_jax.algorithms.visits import Round, Visit
from snake_jax.config import RunConfig
from snake_jax.errors import UserError
from snake_jax.nodes import presence
from snake_jax.nodes.presence import Moment

POOL_FLAGS = frozenset(
    {
        "leave",
        "join",
        "leave_epochs",
        "leave_loss",
        "leave_gain",
        "leave_lost",
        "min_examples",
        "min_flops_per_s",
        "min_memory_bytes",
        "share_labels",
        "max_label_divergence",
        "max_dropped",
        "follow_clock",
        "node_epochs",
    }
)


class Move(NamedTuple):
    """A node leaves or joins.

    Attributes:
      rounds: that were finished when it did.
      node: which.
      joins: whether it joins; else it leaves.
      why: in words.
    """

    rounds: int
    node: int
    joins: bool
    why: str


class Served(NamedTuple):
    """What a node did so far: visits that were merged, visits that were lost, and the training loss
    of the last merged one (None: there is none).
    """

    visits: int = 0
    lost: int = 0
    loss: float | None = None


def gone(plan: Plan, moves: Sequence[Move], rounds: int) -> frozenset[int]:
    """The nodes that are not there whatever the turn: refused ones, and those that left.

    Args:
      plan: of the run.
      moves: so far, in order.
      rounds: that are finished; later moves do not count.
    """
    away = set(plan.refused)
    for move in moves:
        if move.rounds > rounds:
            continue
        if move.joins:
            away.discard(move.node)
        else:
            away.add(move.node)
    return frozenset(away)


def present(plan: Plan, away: frozenset[int], turn: int) -> Sequence[int]:
    """The nodes that are there in a turn, by number.

    Args:
      plan: of the run.
      away: see `gone`.
      turn: of the run.
    """
    config = plan.config
    absent = away | away_in(config, turn)
    # Where all are there a round's work does not grow with them.
    if not absent:
        return range(config.nodes)
    return tuple(node for node in range(config.nodes) if node not in absent)


def manned(plan: Plan, away: frozenset[int], visits: Round, moment: Moment | None = None) -> Round:
    """The visits of a round at nodes that are there, struck as the flags say.

    Of several side by side those of absent nodes are left out, unless they train other layers, as
    several snakes do: those go to nodes that have no visit in the round, as long as there are some.
    One alone, or a round of absent ones only, goes to the best stand-in. Empty where nobody is
    there. A visit that is to be taken over goes to another node than its own, or waits for that.

    Args:
      plan: of the run.
      away: see `gone`.
      visits: as the method planned them.
      moment: of the clock, by which nodes are away too (`--follow_clock`): they are waited for
        where nobody else can take a visit. A visit that its node leaves in the middle of is cut.
        None: what the clock says changes nothing.

    Raises:
      UserError: no node that is there can hold it.
    """
    there = present(plan, away, visits[0].turn)
    here = there
    if moment is not None:
        here = tuple(node for node in there if presence.is_there(moment, node))
    if visits[0].event == TAKEOVER:
        return _taken_over(plan, there, here, visits[0], moment)
    if len(here) < plan.config.nodes:
        kept = _manned_apart(plan, here, visits, moment)
        visits = kept if kept else _moved(plan, there, here, visits[0], moment)
    visits = struck(plan.config, visits)
    if moment is None:
        return visits
    return tuple(_cut(plan, visit, moment) for visit in visits)


def _manned_apart(plan: Plan, here: Sequence[int], visits: Round, moment: Moment | None) -> Round:
    """The visits of a round at nodes that are there, in their order; see `manned`."""
    present_ones = [visit for visit in visits if visit.node in here]
    trained = {visit.layers for visit in present_ones}
    busy = {visit.node for visit in present_ones}
    idle = [node for node in here if node not in busy]
    kept = []
    for visit in visits:
        if visit.node in here:
            kept.append(visit)
            continue
        # Layers that no other visit of the round trains; in a round of absent ones alone it is all.
        free = stand_ins.candidates(plan, idle, visit, moment)
        if present_ones and visit.layers not in trained and free:
            idle.remove(free[0])
            kept.append(visit._replace(node=free[0]))
    return tuple(kept)


def _taken_over(
    plan: Plan, there: Sequence[int], here: Sequence[int], visit: Visit, moment: Moment | None
) -> Round:
    """A visit that was not finished, at a stand-in, or at its own node where there is none.

    Raises:
      UserError: that is gone too, and nobody who is there can hold it.
    """
    found = stand_ins.candidates(plan, here, visit, moment)
    if found:
        return (visit._replace(node=found[0]),)
    if moment is None and visit.node in there:
        return (visit._replace(event=WAITED),)
    return _moved(plan, there, here, visit, moment)


def _moved(
    plan: Plan, there: Sequence[int], here: Sequence[int], visit: Visit, moment: Moment | None
) -> Round:
    """The visit at the best stand-in for a node that is gone; none where nobody is there.

    Where the clock alone has nodes away, it waits for the one that is the soonest done. Where the
    nodes of the assignment are all gone, that is void: then anybody who can hold it. Over a graph
    whose nodes near by are all gone it goes to the nearest of the others, from node to node.

    Raises:
      UserError: none can.
    """
    if not there:
        return ()
    for one in (plan, plan._replace(visitors={})):
        found = stand_ins.candidates(one, here, visit, moment)
        if found:
            return (visit._replace(node=found[0]),)
        if moment is not None:
            found = stand_ins.candidates(one, there, visit, moment, own=True)
        if found:
            return (visit._replace(node=found[0], event=WAITED),)
    void = plan._replace(visitors={})
    found = stand_ins.candidates(void, here, visit, moment, nearest=True)
    if found:
        return (visit._replace(node=found[0]),)
    found = stand_ins.candidates(void, there, visit, moment, nearest=True)
    if found:
        return (visit._replace(node=found[0], event=WAITED),)
    raise UserError(
        f"visit {visit.turn} (layers {', '.join(visit.layers)}): none of the nodes that are there "
        f"({', '.join(map(str, there))}) can hold it: raise memory_bytes in --node_file, or let "
        "fewer nodes leave"
    )


def _cut(plan: Plan, visit: Visit, moment: Moment) -> Visit:
    """The visit, cut short where its node leaves before it would be done.

    Who takes over, or was waited for, is never cut: its visit stands still, so every turn ends.
    """
    if visit.event:
        return visit
    seconds = stand_ins.seconds_of(plan, visit).get(visit.node, 0.0)
    left_s = presence.leaving(moment, visit.node).at_s - moment.now_s
    if left_s >= seconds:
        return visit
    event = "interrupted" if plan.config.interruption == "upload" else "lost"
    return visit._replace(share=(0.0, left_s / seconds), event=event)


class Absent(NamedTuple):
    """A visit whose node is away by the clock.

    Attributes:
      visit: as it was planned.
      until_s: when its node is back, in seconds of the run.
      by: the node that has it in its place; None: it is left out.
    """

    visit: Visit
    until_s: float
    by: int | None


def absent(planned: Round, manned_ones: Round, moment: Moment) -> tuple[Absent, ...]:
    """The visits of a round, as planned, whose nodes are away by the clock."""
    found = []
    for visit in planned:
        until_s = presence.back_s(moment, visit.node)
        if visit.event or until_s <= moment.now_s:
            continue
        # Nodes side by side on the same layers have one turn: who is there has a visit of his own.
        by = None
        planned_nodes = {other.node for other in planned}
        for other in manned_ones:
            is_same = (other.turn, other.layers) == (visit.turn, visit.layers)
            is_stand_in = other.node not in planned_nodes or len(planned) == 1
            if is_same and (is_stand_in or other.node == visit.node):
                by = other.node
        found.append(Absent(visit, until_s, by))
    return tuple(found)


# When nodes come and go by flags


def away_in(config: RunConfig, turn: int) -> frozenset[int]:
    """The nodes that `--leave` and `--join` have away in a turn."""
    away = set()
    for node, changes in _timetable(config.leave, config.join).items():
        # Who is first heard of when it joins was not there before.
        is_there = not changes[0][1]
        for since, joins in changes:
            if since <= turn:
                is_there = joins
        if not is_there:
            away.add(node)
    return frozenset(away)


@functools.lru_cache(maxsize=16)
def _timetable(leave: str, join: str) -> Mapping[int, list[tuple[int, bool]]]:
    """`{node: [(turn, whether it joins)]}`, in the order of turns.

    Raises:
      UserError: a flag is not of the form NODE@TURN, ....
    """
    table: dict[int, list[tuple[int, bool]]] = {}
    for flag, text, joins in (("leave", leave, False), ("join", join, True)):
        for word in filter(None, text.split(",")):
            node, turn = _node_at(flag, word.strip())
            table.setdefault(node, []).append((turn, joins))
    for node, changes in table.items():
        changes.sort()
        # In turns, or it would be asked twice for the same.
        for earlier, later in itertools.pairwise(changes):
            if earlier[1] == later[1] or earlier[0] == later[0]:
                raise UserError(
                    f"--leave={leave} --join={join}: node {node} must leave and join by turns, at "
                    "visits of their own"
                )
    return table


def _node_at(flag: str, word: str) -> tuple[int, int]:
    """Node and turn of a word such as `2@5`.

    Raises:
      UserError: it is no such word.
    """
    node, _, turn = word.partition("@")
    if not (node.isdecimal() and turn.isdecimal()):
        raise UserError(
            f"--{flag}={word}: want NODE@VISIT, comma-separated: 2@5 is node 2 from visit 5 on"
        )
    return int(node), int(turn)


def check(plan: Plan, turns: int) -> None:
    """Refuses flags that name nodes or visits that there are not, or that leave nobody.

    Args:
      plan: of the run.
      turns: of the run as planned.

    Raises:
      UserError: there is one.
    """
    config = plan.config
    for node, changes in _timetable(config.leave, config.join).items():
        flag = f"--leave={config.leave} --join={config.join}"
        if node >= config.nodes:
            raise UserError(f"{flag}: there is no node {node}; the last is {config.nodes - 1}")
        last, _ = changes[-1]
        if last >= turns:
            raise UserError(f"{flag}: there is no visit {last}; the last is {turns - 1}")
    away = frozenset(plan.refused)
    if len(away) == config.nodes:
        node, why = next(iter(plan.refused.items()))
        raise UserError(f"no node is admitted; node {node} {why}: ask for less")
    for turn in range(turns):
        if not present(plan, away, turn):
            raise UserError(
                f"--leave={config.leave}: nobody is left to train visit {turn}; have one stay"
            )


# When nodes go because of how the run went


def is_asked(config: RunConfig) -> bool:
    """Whether it decides anything what nodes did so far: whether flags have nodes leave by it."""
    by_work = config.leave_epochs or config.leave_lost
    by_loss = config.leave_loss or config.leave_gain
    return bool(by_work or by_loss)


def served_after(
    served: Mapping[int, Served],
    visits: Round,
    losses: Mapping[Visit, float],
) -> dict[int, Served]:
    """What nodes did so far, a round of these visits included.

    Args:
      served: before it.
      visits: of the round.
      losses: training loss of those that were merged; the others were lost.
    """
    found = dict(served)
    for visit in visits:
        before = found.get(visit.node, Served())
        if visit not in losses:
            found[visit.node] = before._replace(lost=before.lost + 1)
        elif visit.event not in UNFINISHED:
            found[visit.node] = Served(before.visits + 1, before.lost, losses[visit])
    return found


def why_leaves(config: RunConfig, before: Served, now: Served, node: int = 0) -> str:
    """Why a node leaves that did this so far; empty where it stays.

    Args:
      config: of the run.
      before: its last round.
      now: after it.
      node: which.
    """
    epochs = now.visits * schedule.epochs_of(config, node)
    if config.leave_lost and now.lost >= config.leave_lost > before.lost:
        return f"{now.lost} of its visits were lost"
    if now.visits == before.visits or now.loss is None or not math.isfinite(now.loss):
        return ""
    if config.leave_epochs and epochs >= config.leave_epochs:
        return f"it trained its {config.leave_epochs} epochs"
    if config.leave_loss and now.loss <= config.leave_loss:
        return f"its loss of {now.loss:.4g} is at most --leave_loss={config.leave_loss:g}"
    if not config.leave_gain or before.loss is None:
        return ""
    if before.loss - now.loss >= config.leave_gain * abs(before.loss):
        return ""
    return (
        f"its loss went from {before.loss:.4g} to {now.loss:.4g}, by less than "
        f"--leave_gain={config.leave_gain:g}"
    )
