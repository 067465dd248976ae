"""Who takes a visit whose node is away or did not finish it: one rule, whatever carries visits out.

The Process Controller ensures continuity by "dynamically reallocating the training task to
candidate nodes with available resources" (snake_learning_magazine, "Node Management"). A candidate
is there, idle, can hold the visit, and was not avoided by the assignment; of them the one is taken
whose visit is the soonest done by the clock's figures. Where there is none the visit waits for its
own node.
"""

from collections.abc import Collection, Mapping, Sequence

from snake_jax.algorithms.schedule import Plan
from snake_jax.algorithms.visits import Visit
from snake_jax.nodes import presence
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
    """
    seconds = seconds_of(plan, visit)
    left_out = avoided(plan)
    assigned = set(plan.visitors.values()) or set(there)
    count = plan.config.nodes
    keyed = []
    for node in there:
        is_own = node == visit.node
        if node not in seconds or (is_own and not own) or (node in left_out and not is_own):
            continue
        in_turn = (node - visit.node) % count
        done_s = seconds[node] if plan.config.stand_in == "soonest" else 0.0
        if moment is not None and plan.config.stand_in == "soonest":
            done_s = presence.done_s(moment, node, done_s)
        keyed.append((node not in assigned, done_s, in_turn, node))
    keyed.sort()
    return [key[-1] for key in keyed]
