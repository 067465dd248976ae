"""Who takes a visit whose node is away or did not finish it: one rule, whatever carries visits out.

The Process Controller ensures continuity by "dynamically reallocating the training task to
candidate nodes with available resources" (snake_learning_magazine, "Node Management"). A candidate
is there, idle, can hold the visit, and was not avoided by the assignment; of them the one is taken
whose visit is the soonest done by the clock's figures. Over a graph of neighbours it is a neighbour
of the node that hands the model over: a next hop is one of "adjacent nodes" (snake_learning_arxiv,
"Updated Parameter Transmission"). Where there is none the visit waits for its own node.
"""

from collections.abc import Collection, Mapping, Sequence

from snake_jax.algorithms import neighbours
from snake_jax.algorithms.schedule import Plan
from snake_jax.algorithms.visits import Visit
from snake_jax.nodes import presence, topology
from snake_jax.nodes.presence import Moment


def seconds_of(plan: Plan, visit: Visit) -> Mapping[int, float]:
    """`{node: seconds of the visit there}` of the nodes that can hold it.

    Where no figures are known all nodes can, and are alike.
    """
    known = plan.able.get(visit.layers)
    if known is None:
        # A visit of fewer layers than all is held wherever all are.
        known = plan.able.get(plan.layer_names)
    if known is None:
        known = dict.fromkeys(range(plan.config.nodes), 0.0)
    return known


def avoided(plan: Plan) -> frozenset[int]:
    """The nodes that the assignment left out, though there was a visit for each that can hold one.

    Where there are fewer visits than nodes some have none and are avoided by nobody.
    """
    able: set[int] = set()
    for nodes in plan.able.values():
        able.update(nodes)
    if not plan.visitors or len(plan.visitors) < len(able):
        return frozenset()
    return frozenset(able - set(plan.visitors.values()))


def candidates(
    plan: Plan,
    there: Collection[int],
    visit: Visit,
    moment: Moment | None = None,
    own: bool = False,
    nearest: bool = False,
) -> Sequence[int]:
    """The nodes that may take a visit of another's, the one first that is to.

    Those with visits of their own in the assignment go before those with none. Equals take it in
    turn, from the visit's own node on.

    Args:
      plan: of the run.
      there: nodes that are there and idle, or that are waited for.
      visit: as it was planned or carried out.
      moment: of the clock, whose windows and absences count too; None: they do not.
      own: whether the visit's own node may be it.
      nearest: over a graph, whether those that are no neighbours may be it where they are the
        nearest of all: for visits whose node does not come back.
    """
    seconds = seconds_of(plan, visit)
    near = _adjacent(plan, visit)
    left_out = avoided(plan)
    assigned = set(plan.visitors.values()) or set(there)
    count = plan.config.nodes
    keyed = []
    for node in there:
        is_own = node == visit.node
        if node not in seconds or (is_own and not own) or (node in left_out and not is_own):
            continue
        if near is not None and not nearest and node not in near and not is_own:
            continue
        in_turn = (node - visit.node) % count
        done_s = seconds[node] if plan.config.stand_in == "soonest" else 0.0
        if moment is not None and plan.config.stand_in == "soonest":
            done_s = presence.done_s(moment, node, done_s)
        hops = _hops(plan, visit, node) if nearest else 0
        keyed.append((hops, node not in assigned, done_s, in_turn, node))
    keyed.sort()
    return [key[-1] for key in keyed]


def _adjacent(plan: Plan, visit: Visit) -> Collection[int] | None:
    """The nodes that whoever has the model for a visit can send it to; None: any."""
    if visit.giver is None:
        return None
    return neighbours.graph_of(plan.config)[visit.giver]


def _hops(plan: Plan, visit: Visit, node: int) -> int:
    """How far a node is from the one that hands over a visit's model, which is itself the last."""
    if visit.giver is None:
        return 0
    if node == visit.giver:
        return plan.config.nodes
    return topology.distance(neighbours.graph_of(plan.config), visit.giver, node)
