"""Who comes and goes after a round of a run, and what is noted of it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from snake_jax.algorithms import pool
from snake_jax.algorithms.pool import Absent, Move, Served
from snake_jax.algorithms.visits import Round
from snake_jax.engines.contract import Engine
from snake_jax.errors import UserError
from snake_jax.runs import events
from snake_jax.runs.carry import Carried
from snake_jax.runs.events import Event
from snake_jax.runs.rates import MeasuredRate
from snake_jax.runs.setup import Setup
from snake_jax.runs.state import State

REQUESTS = "requests.jsonl"
"""In a run's folder: a line a request, as `{"node": 2, "do": "leave"}` or `"join"`."""


class Request(NamedTuple):
    """Somebody asks that a node leaves, or joins again."""

    node: int
    joins: bool


class Membership(NamedTuple):
    """See the attributes of `State` of the same names."""

    moves: tuple[Move, ...]
    served: Mapping[int, Served]
    requests: int


def after_round(
    setup: Setup, state: State, visits: Round, carried: Carried, requests: Sequence[Request]
) -> Membership:
    """Who has left or joined once a round is merged.

    Args:
      setup: of the run.
      state: before the round.
      visits: of it.
      carried: what came of them.
      requests: all so far, those that were heard before too.
    """
    config, rounds = setup.config, state.rounds + 1
    losses, accepted = {}, set(carried.accepted)
    for outcome in carried.outcomes:
        if outcome.visit in accepted:
            losses[outcome.visit] = outcome.loss
    # It grows with the nodes, so it is kept where it is asked for only.
    served = state.served
    if pool.is_asked(config):
        served = pool.served_after(served, visits, losses)
    if "leave" not in setup.algorithm.flags:
        return Membership(state.moves, served, len(requests))

    # Who visited may have reached what it stays for.
    moves = list(state.moves)
    for node in sorted({visit.node for visit in visits}):
        before = state.served.get(node, Served())
        why = pool.why_leaves(config, before, served.get(node, before), node)
        if why and node not in pool.gone(setup.plan, moves, rounds):
            moves.append(Move(rounds, node, False, why))
    # What was asked for since the last round; who is refused stays refused.
    for node, joins in requests[state.requests :]:
        is_gone = node in pool.gone(setup.plan, moves, rounds)
        if joins == is_gone and node not in setup.plan.refused:
            moves.append(Move(rounds, node, joins, "on request"))
    return Membership(tuple(moves), served, len(requests))


def noted(
    setup: Setup,
    engine: Engine,
    state: State,
    visits: Round,
    carried: Carried,
    unfinished: Mapping[int, int],
    moves: Sequence[Move],
    following: Round | None,
    absent: Sequence[Absent],
) -> tuple[Event, ...]:
    """What happened to nodes in a round and after it.

    Args:
      setup: of the run.
      engine: that carried it out.
      state: before the round.
      visits: of it.
      carried: what came of them.
      unfinished: `{turn: node}` of visits of the round before that were not finished.
      moves: of nodes, with those after the round.
      following: the next round; None: there is none.
      absent: visits of the round whose nodes are away by the clock.
    """
    number, turn = state.rounds, visits[0].turn
    found = events.at_start(setup.plan, setup.about_nodes) if number == 0 else []
    found += events.of_absent(number, absent)
    found += events.of_round(setup.config, number, visits, carried.lost, unfinished)
    found += events.of_engine(number, turn, engine.happened())
    found += events.of_ends(number, carried.outcomes)
    found += events.of_moves(moves[len(state.moves) :], turn)
    if following is not None:
        found += events.of_timetable(setup.plan, number, turn, following[0].turn)
    return tuple(found)


# In files


def read_requests(text: str) -> list[Request]:
    """The requests of a file's whole lines; who writes may be in the middle of the last one.

    Raises:
      UserError: a line is no request.
    """
    found = []
    for line in text.split("\n")[:-1]:
        try:
            row = json.loads(line)
            node, do = row["node"], row["do"]
        except (ValueError, TypeError, KeyError):
            node, do = None, ""
        if isinstance(node, bool) or not isinstance(node, int) or do not in ("leave", "join"):
            raise UserError(
                f"{REQUESTS}: {line[:80]!r} is no request: want "
                '{"node": 2, "do": "leave"} or "join", one a line'
            )
        found.append(Request(node, do == "join"))
    return found


def to_json(state: State) -> dict[str, Any]:
    """What a checkpoint keeps of who came, left and did what."""
    return {
        "moves": [list(move) for move in state.moves],
        "served": {str(node): list(one) for node, one in state.served.items()},
        "requests": state.requests,
        "measured": {str(node): list(one) for node, one in state.measured.items()},
        "steps": state.steps,
        "plans": {str(cycle): list(nodes) for cycle, nodes in state.plans.items()},
        "ended": state.ended,
        "begun_s": list(state.begun_s),
    }


def restored(state: State, kept: Mapping[str, Any]) -> State:
    """The state with what `to_json` gave."""
    moves = tuple(Move(*move) for move in kept["moves"])
    served = {int(node): Served(*one) for node, one in kept["served"].items()}
    measured = {int(node): MeasuredRate(*one) for node, one in kept["measured"].items()}
    plans = {int(cycle): tuple(nodes) for cycle, nodes in kept["plans"].items()}
    heard = kept["requests"]
    state = state._replace(ended=kept.get("ended", ""))
    begun_s = tuple(kept["begun_s"])
    return state._replace(
        moves=moves,
        served=served,
        requests=heard,
        measured=measured,
        plans=plans,
        begun_s=begun_s,
        steps=kept["steps"],
    )
