"""Which node trains which group of layers in a cycle, from what visits cost and what nodes can do.

A group is what one visit trains. A relay has one visit at a time, so a node needs memory for one
group at a time, and a group fits a node or does not, whatever else the node trains. An assignment
is a tuple with the node of each group, in the groups' order.

Time and energy are all that is weighed here. A node that is given no group adds none of its data to
the model, and nothing but `makespan` and `greedy` makes methods spread the groups: where one node
is the cheapest for every group, `duration` and `energy` choose it for all.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from snake_jax.errors import UserError
from snake_jax.nodes.fleet import Fleet, Node
from snake_jax.params import LayerNames

Nodes = tuple[int, ...]
_BRANCHES = 2000  # of the solver; a limit in seconds would make the result depend on the machine
_OPTIMAL = 0  # the solver's status
LESS_MEMORY = (
    "raise memory_bytes in --node_file, or lower --layers_per_visit or --width, or set "
    "--frozen_dtype=int8"
)


class AssignmentProblem(NamedTuple):
    """What an assignment is computed from.

    Attributes:
      groups: a label for each group, for messages.
      seconds: `[G, N]` of a group's visit at each node.
      joules_cost: `[G, N]` its joules, each at its price.
      bytes: `[G, N]` a node needs for the visit.
      memory_bytes: `[N]` a node has.
    """

    groups: tuple[str, ...]
    seconds: np.ndarray
    joules_cost: np.ndarray
    bytes: np.ndarray
    memory_bytes: np.ndarray


def make_problem(
    assignments: Sequence[LayerNames],
    step_flops: Sequence[Sequence[int]],
    state_bytes: Sequence[Sequence[int]],
    steps: Sequence[int],
    fleet: Fleet,
    transfer_bytes: Sequence[tuple[int, int]] | None = None,
    up_bytes: Sequence[Sequence[int]] | None = None,
) -> AssignmentProblem:
    """The costs of a cycle's visits at every node.

    Args:
      assignments: the layers that each visit trains.
      step_flops: `[G, N]` FLOPs of one step of each of them; `[G, 1]`: the same at every node.
      state_bytes: `[G, N]` or `[G, 1]`, what a node needs for each of them (parameters, optimizer
        states, frozen layers).
      steps: optimizer steps of a visit at each node.
      fleet: the nodes.
      transfer_bytes: `(down, up)` of each visit, between node and server; None: left out, as for
        `greedy`, which is told of hops apart.
      up_bytes: `[G, N]` of each visit at each node, where nodes of unlike ranks hand in unlike
        columns; None: all hand in alike.
    """
    transferred = np.zeros((len(assignments), 2))  # [G, 2]
    if transfer_bytes:
        transferred[:] = transfer_bytes
    down = transferred[:, [0]]  # [G, 1]
    up = transferred[:, [1]]
    if transfer_bytes and up_bytes is not None:
        up = np.array(up_bytes, np.float64)  # [G, N]

    # A node does its own number of steps of each group: [G, 1] FLOPs times [N] steps is [G, N].
    flops = np.array(step_flops, np.float64) * np.array(steps, np.float64)
    seconds = flops / _column(fleet, "flops_per_s")
    if transfer_bytes is not None:
        to_node_s = _link_s([fleet.server], fleet.nodes, down)
        to_server_s = _link_s(fleet.nodes, [fleet.server], up)
        seconds = seconds + to_node_s + to_server_s

    # Both ends of a transfer spend energy, each at its own price.
    server = fleet.server
    server_cost = (down + up) * server.joules_per_byte * server.energy_price
    joules = flops * _column(fleet, "joules_per_flop")
    joules = joules + (down + up) * _column(fleet, "joules_per_byte")
    cost = joules * _column(fleet, "energy_price") + server_cost

    needed = np.broadcast_to(np.array(state_bytes, np.float64), seconds.shape)
    groups = tuple(map("+".join, assignments))
    memory_bytes = _column(fleet, "memory_bytes")
    return AssignmentProblem(groups, seconds, cost, needed, memory_bytes)


def make_hops(fleet: Fleet, hop_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds, and the cost of joules, of sending this from each node to each node.

    Both are `[N + 1, N]`; the last row is the server's. A node sends nothing to itself.
    """
    senders = (*fleet.nodes, fleet.server)
    sent_bytes = np.array(hop_bytes)
    rows, prices = [], []
    for sender in senders:
        rows.append(_link_s([sender], fleet.nodes, sent_bytes))
        prices.append(hop_bytes * sender.joules_per_byte * sender.energy_price)
    seconds = np.array(rows)

    # The sender pays for sending, the receiver, a node, for receiving.
    of_sender = np.array(prices)
    of_receiver = of_sender[:-1]
    cost = of_sender[:, None] + of_receiver
    diagonal = np.arange(len(fleet.nodes))
    seconds[diagonal, diagonal] = 0.0
    cost[diagonal, diagonal] = 0.0
    return seconds, cost


def _column(fleet: Fleet, name: str) -> np.ndarray:
    """`[N]` a figure of each node."""
    return _figures(fleet.nodes, name)


def _figures(nodes: Sequence[Node], name: str) -> np.ndarray:
    return np.array([getattr(node, name) for node in nodes], np.float64)


def _link_s(
    senders: Sequence[Node], receivers: Sequence[Node], sent_bytes: np.ndarray
) -> np.ndarray:
    """Seconds of a message from each to each; one of the two sides is a single place."""
    up = _figures(senders, "up_bytes_per_s")
    down = _figures(receivers, "down_bytes_per_s")
    slower = np.minimum(up, down)
    latency_s = _figures(senders, "latency_s") + _figures(receivers, "latency_s")
    return sent_bytes / slower + latency_s


def makespan(problem: AssignmentProblem, nodes: Nodes) -> float:
    """Seconds of the busiest node in a cycle."""
    seconds = _chosen(problem.seconds, nodes)
    busy_s = np.bincount(nodes, weights=seconds)
    return float(busy_s.max())


def duration(problem: AssignmentProblem, nodes: Nodes) -> float:
    """Seconds of all visits, one after the other: what a relay's cycle takes."""
    return float(_chosen(problem.seconds, nodes).sum())


def energy(problem: AssignmentProblem, nodes: Nodes) -> float:
    """Joules of all visits, each at its price."""
    return float(_chosen(problem.joules_cost, nodes).sum())


OBJECTIVES = {"makespan": makespan, "duration": duration, "energy": energy}


def _chosen(values: np.ndarray, nodes: Nodes) -> np.ndarray:
    """`[G]` each group's value at its node, of values `[G, N]`."""
    groups = np.arange(len(nodes))
    return values[groups, list(nodes)]


def check_memory(problem: AssignmentProblem, nodes: Nodes) -> None:
    """Says whether an assignment that was made without regard to memory can be carried out.

    Raises:
      UserError: a node cannot hold its group.
    """
    for group, node in enumerate(nodes):
        needed = problem.bytes[group, node]
        held = problem.memory_bytes[node]
        if needed > held:
            raise UserError(
                f"{problem.groups[group]} with its optimizer needs {_human(needed)}; node{node} "
                f"has {_human(held)}: --assign=proportional, milp and greedy heed memory"
            )


def _fits(problem: AssignmentProblem) -> np.ndarray:
    """`[G, N]` whether a node can hold a group.

    Raises:
      UserError: a group fits no node.
    """
    memory = problem.memory_bytes
    fits = problem.bytes <= memory
    for group, name in enumerate(problem.groups):
        if fits[group].any():
            continue
        largest = int(memory.argmax())
        needed = problem.bytes[group, largest]
        raise UserError(
            f"{name} with its optimizer needs {_human(needed)}; none of the {len(memory)} nodes "
            f"can hold it, the largest (node{largest}) has {_human(memory[largest])}: "
            f"{LESS_MEMORY}"
        )
    return fits


def _human(count: float) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.3g} B"


def in_turns(groups: int, nodes: int, first: int = 0) -> Nodes:
    """The papers' order: the group of turn v at node `v mod nodes`, from turn `first`.

    It knows no memory: see `check_memory`.
    """
    return tuple((first + group) % nodes for group in range(groups))


def proportional(problem: AssignmentProblem) -> Nodes:
    """Load in proportion to capability, among the nodes that can hold a group.

    Largest processing time first (Graham 1969, on unequal machines): groups in falling order of
    their seconds, each to the node that would be done with all its groups the earliest. Where
    groups are many, all nodes are busy for about the same seconds, so that a node's share of the
    work is its share of the rate.

    Raises:
      UserError: a group fits no node.
    """
    seconds = np.where(_fits(problem), problem.seconds, np.inf)
    num_groups, num_nodes = seconds.shape
    least_s = seconds.min(axis=1)
    longest_first = np.argsort(-least_s, kind="stable")
    busy_s = np.zeros(num_nodes)
    chosen = np.zeros(num_groups, np.int64)
    for group in longest_first:
        done_s = busy_s + seconds[group]
        node = done_s.argmin()
        chosen[group] = node
        busy_s[node] = done_s[node]
    return tuple(chosen.tolist())


def milp(problem: AssignmentProblem, objective: str) -> Nodes:
    """The assignment of least `makespan`, `duration` or `energy`, by a mixed-integer program.

    x[g, n] is 1 where node n trains group g: each group once, none where it does not fit, and for
    the makespan t no node's seconds above t. On equal values the proportional assignment is kept.
    Branching ends after a fixed number of nodes of the search, the same on every machine; then the
    result is the best found, not proven the least.

    Raises:
      UserError: a group fits no node, or the solver fails.
    """
    value = OBJECTIVES[objective]
    fits = _fits(problem)
    costs = problem.joules_cost if objective == "energy" else problem.seconds

    # What is known without a search: its best bounds every cost of a better assignment.
    possible = np.where(fits, costs, np.inf)
    cheapest = possible.argmin(axis=1)
    known = [proportional(problem), tuple(cheapest.tolist())]
    bound = min(value(problem, nodes) for nodes in known)
    if bound > 0:
        # In units of a value that can be had, the solver's absolute tolerances are relative ones;
        # and no single visit of a better assignment costs more than all of this one.
        allowed = fits & (costs <= bound * (1 + 1e-9))
        known += _solve(costs / bound, allowed, objective == "makespan")
    return min(known, key=functools.partial(value, problem))


def _solve(costs: np.ndarray, allowed: np.ndarray, is_makespan: bool) -> list[Nodes]:
    """The solver's assignment for scaled costs `[G, N]`; none where its branches found none.

    The unknowns are x[g, n], group after group, and last the makespan t, which only the makespan
    makes use of.
    """
    from scipy import optimize, sparse  # slow to load, for the one assignment that asks for it

    num_groups, num_nodes = costs.shape
    # A pair that is not allowed is 0 by its bound; its cost, which may be huge, would only spoil
    # the matrix.
    scaled = np.where(allowed, costs, 0.0)

    # Each group once: sum_n x[g, n] = 1.
    of_group = sparse.kron(sparse.eye(num_groups), np.ones((1, num_nodes)))
    once = sparse.hstack([of_group, np.zeros((num_groups, 1))])
    constraints = [optimize.LinearConstraint(once, 1, 1)]

    if is_makespan:
        # No node works longer than t: sum_g costs[g, n] x[g, n] - t <= 0. Minimise t, which is at
        # least the seconds of the hardest group at the node where it is the easiest.
        loads = [*map(sparse.diags, scaled), -np.ones((num_nodes, 1))]
        constraints.append(optimize.LinearConstraint(sparse.hstack(loads), -np.inf, 0))
        possible = np.where(allowed, costs, np.inf)
        easiest_s = possible.min(axis=1)
        least_s = min(1.0, float(easiest_s.max()))
        weights = np.append(np.zeros(costs.size), 1.0)
    else:
        least_s = 0.0
        weights = np.append(scaled.ravel(), 0.0)

    # Every x is 0 or 1, and 0 where it is not allowed; t is any number from its least on.
    least = np.append(np.zeros(costs.size), least_s)
    most = np.append(allowed.ravel(), np.inf)
    result = optimize.milp(
        c=weights,
        integrality=np.append(np.ones(costs.size), 0),
        bounds=optimize.Bounds(least, most),
        constraints=constraints,
        options={"mip_rel_gap": 0.0, "node_limit": _BRANCHES},
    )
    # Out of branches has no status of its own in scipy: it is among the others (4), by its count.
    branches = result.get("mip_node_count") or 0
    if result.status != _OPTIMAL and branches < _BRANCHES:
        raise UserError(
            f"--assign=milp: the solver failed ({result.message}): use --assign=proportional"
        )
    if result.x is None:
        return []
    x = result.x[:-1].reshape(costs.shape)
    chosen = x.argmax(axis=1)  # 1 up to the solver's tolerance
    return [tuple(chosen.tolist())]


def greedy(
    problem: AssignmentProblem,
    hop_seconds: np.ndarray,
    hop_cost: np.ndarray,
    *,
    energy_weight: float = 1.0,
    holder: int = -1,
) -> Nodes:
    """The next hop, chosen anew at each: for peer to peer, where nobody plans the cycle.

    Group after group, the holder of the model passes it to the node with the least hop + visit
    seconds plus `energy_weight` times the hop's and visit's cost of joules. Eligible are, of the
    nodes that can hold the group, those with the fewest visits in this cycle so far: all are
    visited before one is visited twice, as far as memory lets them.

    Args:
      problem: of a cycle, transfers left out.
      hop_seconds: `[N + 1, N]` from each node, last the server, to each; `make_hops` gives both.
      hop_cost: the same of joules at their price.
      energy_weight: seconds that a unit of cost is worth.
      holder: the node that has the model; -1: the server.

    Raises:
      UserError: a group fits no node.
    """
    # Seconds and joules as one price, in seconds: of visits [G, N], of hops [N + 1, N].
    score = problem.seconds + energy_weight * problem.joules_cost
    hop = hop_seconds + energy_weight * hop_cost

    # The last row of hops is the server's, so that holder -1 is its index.
    fits = _fits(problem)
    visits = np.zeros(len(problem.memory_bytes))
    chosen = []
    for group in range(len(problem.groups)):
        fewest = visits[fits[group]].min()
        eligible = fits[group] & (visits == fewest)
        price = hop[holder] + score[group]
        price = np.where(eligible, price, np.inf)
        holder = int(price.argmin())
        visits[holder] += 1
        chosen.append(holder)
    return tuple(chosen)
