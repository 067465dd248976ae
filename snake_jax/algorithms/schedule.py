"""Who trains what when: visits as a pure function of (configuration, cycle).

A visit is one node training some layers on its own data; a round is the visits that run side by
side before the results are merged. Learning rates belong here too: constant inside a cycle, changed
between cycles (snake_learning_magazine, "Local Training").
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from snake_jax import streams
from snake_jax.algorithms.visits import Round, Visit
from snake_jax.config import RunConfig
from snake_jax.errors import UserError


class Plan(NamedTuple):
    """What a schedule depends on.

    Attributes:
      config: of the run.
      layer_names: the model's order.
      always: the layers that train at every visit.
      visitors: `{layers: node}` of a cycle's visits, where they were assigned; empty: nodes take
        turns.
    """

    config: RunConfig
    layer_names: tuple[str, ...]
    always: tuple[str, ...]
    visitors: Mapping[tuple[str, ...], int] = {}


def serpentine(plan: Plan, cycle: int) -> tuple[tuple[str, ...], ...]:
    """The assignments of a cycle: every layer outside `always` once, in order, `layers_per_visit`
    at a time.

    With first and last layer always trained these are the paper's middle layers 2 .. N-1 (magazine,
    "Layer Assignment"). Where all layers always train the cycle is one visit.
    """
    config = plan.config
    middle = [name for name in plan.layer_names if name not in plan.always]
    size = config.layers_per_visit
    groups = [middle[i : i + size] for i in range(0, len(middle), size)] or [[]]
    if config.order == "reverse":
        groups.reverse()
    elif config.order == "random":
        shuffle = streams.generator(config.seed, "schedule/layers", cycle).permutation(len(groups))
        groups = [groups[i] for i in shuffle]
    return tuple(
        tuple(n for n in plan.layer_names if n in group or n in plan.always) for group in groups
    )


def relay(
    plan: Plan,
    cycle: int,
    assignments: Sequence[tuple[str, ...]],
    nodes: Sequence[int] | None = None,
) -> tuple[Round, ...]:
    """One visit after the other, or `parallel` nodes side by side; an interrupted turn is taken
    over by the next node.

    Args:
      plan: of the run.
      cycle: from 0.
      assignments: the layers of each turn.
      nodes: the node of each turn; None: turn v is node `v mod nodes`, or the `parallel` nodes that
        follow the last.
    """
    config, first = plan.config, cycle * len(assignments)
    rounds: list[Round] = []
    for index, layers in enumerate(assignments):
        turn = first + index
        start = turn * config.parallel if nodes is None else nodes[index]
        side = [
            Visit(turn, cycle, (start + k) % config.nodes, layers) for k in range(config.parallel)
        ]
        rounds += (
            [tuple(side)]
            if config.parallel > 1
            else [(visit,) for visit in _with_takeover(side[0], config)]
        )
    return tuple(rounds)


def shuffled_nodes(config: RunConfig, cycle: int) -> list[int]:
    """All nodes in the random order of a cycle."""
    return (
        streams.generator(config.seed, "schedule/nodes", cycle).permutation(config.nodes).tolist()
    )


def learning_rate(config: RunConfig, cycle: int, done: float = 0.0) -> float:
    """The learning rate of a visit.

    Args:
      config: of the run.
      cycle: of the visit; the papers' schedule is constant within one.
      done: share of all rounds finished before it, for the schedule that follows those.
    """
    if config.lr_schedule == "cosine_visits":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    if config.lr_schedule == "factor":
        return config.learning_rate * config.lr_decay**cycle
    if config.lr_schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * cycle / config.cycles))
    return config.learning_rate


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
    words = [word.strip() for word in config.interrupt.split(",")] if config.interrupt else []
    shares = dict(_interruption(word) for word in words)
    if len(shares) < len(words):
        raise UserError(f"--interrupt={config.interrupt}: names a visit twice")
    return shares


def _interruption(word: str) -> tuple[int, float]:
    turn, at, share = word.partition("@")
    try:
        parsed = int(turn), float(share if at else 0.5)
    except ValueError:
        parsed = -1, 0.0
    if parsed[0] < 0 or not 0 <= parsed[1] < 1:
        raise UserError(
            f"--interrupt={word}: want VISIT or VISIT@SHARE with VISIT from 0 and SHARE in [0, "
            f"1), as 4@0.25"
        )
    return parsed


def _with_takeover(planned: Visit, config: RunConfig) -> list[Visit]:
    share = interruptions(config).get(planned.turn)
    if share is None and config.fault_rate:
        chance, drawn = streams.generator(config.seed, "schedule/faults", planned.turn).random(2)
        share = float(drawn) if chance < config.fault_rate else None
    if share is None:
        return [planned]
    kept = config.interruption == "upload"
    stopped = planned._replace(share=(0.0, share), event="interrupted" if kept else "lost")
    idle = (planned.node + 1) % config.nodes
    return [
        stopped,
        planned._replace(node=idle, share=(share if kept else 0.0, 1.0), event="takeover"),
    ]
