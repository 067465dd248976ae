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

from snake_jax.algorithms import schedule
from snake_jax.algorithms.schedule import UNFINISHED, Plan, struck
from snake_jax.algorithms.visits import Round, Visit
from snake_jax.config import RunConfig
from snake_jax.errors import UserError

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


def manned(plan: Plan, away: frozenset[int], visits: Round) -> Round:
    """The visits of a round at nodes that are there, struck as the flags say.

    Of several side by side those of absent nodes are left out, unless they train other layers, as
    several snakes do: those go to nodes that have no visit in the round, as long as there are some.
    One alone, or a round of absent ones only, goes to the next node that can hold it. Empty where
    nobody is there.

    Args:
      plan: of the run.
      away: see `gone`.
      visits: as the method planned them.

    Raises:
      UserError: no node that is there can hold it.
    """
    there = present(plan, away, visits[0].turn)
    if len(there) < plan.config.nodes:
        kept = _manned_apart(plan, there, visits)
        visits = kept if kept else _moved(plan, there, visits[0])
    return struck(plan.config, visits)


def _manned_apart(plan: Plan, there: Sequence[int], visits: Round) -> Round:
    """The visits of a round at nodes that are there, in their order; see `manned`."""
    present_ones = [visit for visit in visits if visit.node in there]
    trained = {visit.layers for visit in present_ones}
    busy = {visit.node for visit in present_ones}
    idle = [node for node in there if node not in busy]
    kept = []
    for visit in visits:
        if visit.node in there:
            kept.append(visit)
            continue
        # Layers that no other visit of the round trains; in a round of absent ones alone it is all.
        able = plan.able.get(visit.layers, idle)
        free = [node for node in idle if node in able]
        if present_ones and visit.layers not in trained and free:
            idle.remove(free[0])
            kept.append(visit._replace(node=free[0]))
    return tuple(kept)


def _moved(plan: Plan, there: Sequence[int], visit: Visit) -> Round:
    """The visit at the next node that is there and can hold it.

    Raises:
      UserError: none can.
    """
    if not there:
        return ()
    for node in schedule.candidates(plan, visit):
        if node in there:
            return (visit._replace(node=node),)
    raise UserError(
        f"visit {visit.turn} (layers {', '.join(visit.layers)}): none of the nodes that are there "
        f"({', '.join(map(str, there))}) can hold it: raise memory_bytes in --node_file, or let "
        "fewer nodes leave"
    )


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


def why_leaves(config: RunConfig, before: Served, now: Served) -> str:
    """Why a node leaves that did this so far; empty where it stays.

    Args:
      config: of the run.
      before: its last round.
      now: after it.
    """
    epochs = now.visits * config.local_epochs
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
