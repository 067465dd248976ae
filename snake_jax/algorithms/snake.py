"""Snake Learning: node after node, serpentine over the layers, each trains a few layers only.

Yu et al., "Snake Learning: A Communication- and Computation-Efficient Distributed Learning
Framework for 6G", IEEE Communications Magazine 2025 (and arXiv 2405.03372), sections "Layer
Assignment" and "Local Training".

The papers' sequence costs time. With `--snakes=S` the middle layers are cut into S runs of
neighbours, and S nodes train a layer of each at the same time, all from the same model. What they
train is disjoint, so the server puts it together and averages nothing.
"""

from collections.abc import Sequence

from snake_jax.algorithms import neighbours
from snake_jax.algorithms.base import RELAY_FLAGS, REPLACE, Algorithm, every_cycle
from snake_jax.algorithms.neighbours import TOPOLOGY_FLAGS
from snake_jax.algorithms.pool import POOL_FLAGS
from snake_jax.algorithms.proximal import proximal_client
from snake_jax.algorithms.schedule import Plan, relay, serpentine, taken_over
from snake_jax.algorithms.traffic import RELAY
from snake_jax.algorithms.visits import Rounds, Visit
from snake_jax.config import RunConfig
from snake_jax.errors import UserError
from snake_jax.params import LayerNames

_OWN_FLAGS = frozenset(
    {
        "order",
        "layers_per_visit",
        "always_train",
        "frozen_dtype",
        "parallel",
        "snakes",
        "assign",
        "assign_objective",
        "rates",
        "stand_in",
    }
)


def _course(plan: Plan) -> Rounds:
    """From cycle to cycle, or where nodes have neighbours from hop to hop."""
    if neighbours.is_graph(plan.config):
        return neighbours.relay_over_graph(plan, serpentine)
    return every_cycle(_rounds)(plan)


def _rounds(plan: Plan, cycle: int) -> Rounds:
    """Every middle layer once a cycle; `parallel` nodes train it side by side."""
    assignments = serpentine(plan, cycle)
    if plan.config.snakes > 1:
        return _several(plan, cycle, assignments)
    nodes: list[int] | None = None
    if plan.visitors:
        nodes = [plan.visitors[layers] for layers in assignments]
    return relay(plan, cycle, assignments, nodes)


def _several(plan: Plan, cycle: int, assignments: Sequence[LayerNames]) -> Rounds:
    """A visit of every snake in each round, until all have gone through their part."""
    parts = _parts(assignments, plan.config.snakes)
    turn = cycle * len(assignments)
    for step in range(len(parts[0])):
        visits = []
        for part in parts:
            # Parts may differ by one visit; turns follow each other, so no node has two of them.
            if step < len(part):
                visits.append(Visit(turn, cycle, turn % plan.config.nodes, part[step]))
                turn += 1
        endings = yield tuple(visits)
        for ending in endings:
            yield from taken_over(plan, ending)


def _parts(assignments: Sequence[LayerNames], snakes: int) -> list[Sequence[LayerNames]]:
    """The visits of a cycle in so many runs of about equal length, the longest first."""
    each, left_over = divmod(len(assignments), snakes)
    parts = []
    start = 0
    for number in range(snakes):
        stop = start + each
        if number < left_over:
            stop += 1
        parts.append(assignments[start:stop])
        start = stop
    return parts


def _check(config: RunConfig) -> None:
    """Several snakes train disjoint layers at several nodes, and a server puts them together."""
    neighbours.check(config)
    if config.snakes == 1:
        return
    flag = f"--snakes={config.snakes}"
    if config.snakes > config.nodes:
        raise UserError(f"{flag} is more than --nodes={config.nodes}")
    if getattr(config, "always_train", "none") != "none":
        raise UserError(
            f"{flag}: layers of --always_train would be trained by all snakes at once; say "
            "--always_train=none"
        )
    if config.parallel > 1:
        raise UserError(f"{flag}: nodes train unlike layers side by side; leave --parallel out")
    if config.mode == "peer_to_peer":
        raise UserError(
            f"{flag}: the server puts together what they train; leave --mode=client_server"
        )
    if config.assign != "serpentine":
        raise UserError(f"{flag}: nodes take turns; leave --assign=serpentine")


SNAKE = Algorithm(
    name="snake",
    rounds=_course,
    cycle=_rounds,
    traffic=RELAY,
    merge=REPLACE,
    client=proximal_client,
    check=_check,
    flags=RELAY_FLAGS | POOL_FLAGS | TOPOLOGY_FLAGS | _OWN_FLAGS,
)
