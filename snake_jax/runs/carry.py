"""Has a round's orders carried out, checks what comes back, and adds it up."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from snake_jax.algorithms import visits as visiting
from snake_jax.algorithms.visits import Lost, Order, Outcome, Round, Visit
from snake_jax.config import RunConfig
from snake_jax.engines import updates
from snake_jax.engines.contract import Engine, Progress
from snake_jax.errors import UserError
from snake_jax.params import PyTree
from snake_jax.runs.setup import Setup
from snake_jax.runs.state import State
from snake_jax.training.optimizers import OptimizerStates

Watch = Callable[[Sequence[Progress]], None]
"""Is told from time to time how far the visits that are under way have come."""
_TOLD_S = 1.0


class Diverged(RuntimeError):
    """A visit's loss or parameters are not finite; the message names the visit."""


class Carried(NamedTuple):
    """What came of a round's visits, the trained layers already added up.

    Of a lost visit there is an outcome too, of nothing.
    """

    outcomes: list[Outcome]
    lost: tuple[Lost, ...]
    accepted: list[Visit]
    total: Any
    states: OptimizerStates
    nodes: Mapping[int, PyTree]


def carry_out(
    setup: Setup,
    engine: Engine,
    state: State,
    orders: Sequence[Order],
    refused: Counter[int],
    keep: Callable[[State], None],
    watch: Watch | None = None,
) -> Carried:
    """Has a round's orders carried out; adds up what each visit trained and lets go of it.

    Args:
      setup: of the run.
      engine: carries the orders out.
      state: before the round.
      orders: of its visits.
      refused: `{turn: updates that were refused in it}`, counted on.
      keep: is called with the state before the run ends on divergence or on refusals.
      watch: is told how far visits have come; None: nobody is.

    Raises:
      Diverged: a visit's loss is not finite and `--on_divergence=stop`.
      UserError: as many updates of one turn were refused as there are nodes.
    """
    algorithm, config = setup.algorithm, setup.config
    visits = tuple(order.visit for order in orders)
    for order in orders:
        engine.submit(order)
    total = algorithm.merge.init(setup.plan, visits, state.params, state.memory)
    states, nodes = state.states, dict(state.nodes)
    remembers = algorithm.client(config) is not None
    found, lost, accepted = list[Outcome](), list[Lost](), list[Visit]()
    for order, came in zip(orders, _in_order(engine, visits, watch), strict=True):
        outcome = _checked(config, order, came, state, refused, keep)
        if isinstance(outcome, Lost):
            lost.append(outcome)
            found.append(visiting.nothing_of(outcome.visit))
            continue
        if _is_good(outcome, config, state, keep) and outcome.visit.event != "lost":
            accepted.append(outcome.visit)
            total = algorithm.merge.add(total, outcome)
            if config.carry_optimizer_state:
                states = {**states, **outcome.states}
            if remembers:
                nodes[outcome.visit.node] = outcome.memory
        # What is left is numbers: no round holds the layers of all its visits.
        found.append(outcome._replace(layers={}, states={}, memory=None, report=None))
    return Carried(found, tuple(lost), accepted, total, states, nodes)


def _in_order(engine: Engine, visits: Round, watch: Watch | None) -> Iterator[Outcome | Lost]:
    """What comes of submitted orders, in the order of their visits.

    A running mean depends in its last bits on who comes first, and which node is faster is chance:
    so who is early waits.
    """
    early: dict[Visit, Outcome | Lost] = {}
    for visit in visits:
        while visit not in early:
            outcome = engine.next() if watch is None else engine.next(_TOLD_S)
            if outcome is not None:
                early[outcome.visit] = outcome
                continue
            assert watch is not None, "an engine gives an outcome for every order"
            watch(engine.progress())
        yield early.pop(visit)


def _checked(
    config: RunConfig,
    order: Order,
    outcome: Outcome | Lost,
    state: State,
    refused: Counter[int],
    keep: Callable[[State], None],
) -> Outcome | Lost:
    """The outcome, or that its visit is lost because it must not be merged.

    Raises:
      UserError: as many updates of the turn were refused as there are nodes.
    """
    # What flags lose is trained and thrown away, whatever it is.
    if isinstance(outcome, Lost) or outcome.visit.event == "lost":
        return outcome
    why = updates.refusal(outcome, order, state.params, config.max_update_norm)
    if not why:
        return outcome
    # Where every node's update is refused the fault is no node's, and handing on has no end.
    visit = outcome.visit
    refused[visit.turn] += 1
    if refused[visit.turn] >= config.nodes:
        keep(state)
        raise UserError(
            f"visit {visit.turn} (layers {', '.join(visit.layers)}): {config.nodes} updates were "
            f"refused, the last because {why}; the state before it is kept. Raise "
            "--max_update_norm or lower --learning_rate in a new --workdir, or go on with other "
            "nodes by the same command"
        )
    return Lost(visit, f"its update was refused: {why}")


def _is_good(
    outcome: Outcome, config: RunConfig, state: State, keep: Callable[[State], None]
) -> bool:
    """Whether a visit's outcome is usable; a diverged one ends the run unless it is skipped."""
    if outcome.finite or outcome.visit.event == "lost":
        return outcome.finite
    if config.on_divergence == "stop":
        keep(state)
        visit = outcome.visit
        raise Diverged(
            f"visit {visit.turn} (node {visit.node}, layers {', '.join(visit.layers)}) diverged: "
            "its loss is not finite; the state before it is kept. Go on from it with "
            "--on_divergence=skip, or lower --learning_rate or set a --clip_norm in a new --workdir"
        )
    return False
