"""Which rounds a process of nodes gets ready for: those of its own, and what it may take over."""

from collections.abc import Callable, Collection, Sequence

from snake_jax.algorithms.visits import Round, Visit

StandIn = Callable[[Visit], int | None]
"""Who would take over a visit of another's; None: nobody."""


def own_and_others(
    rounds: Sequence[Round], nodes: Collection[int], stand_in: StandIn
) -> tuple[list[Round], list[Round]]:
    """The visits of these nodes, round by round, and the rounds of one visit that they would take
    over were it lost, by the rule as nodes are now.

    Args:
      rounds: as planned.
      nodes: whose process it is.
      stand_in: who would take over.
    """
    own: list[Round] = []
    others: list[Round] = []
    for visits in rounds:
        mine = tuple(visit for visit in visits if visit.node in nodes)
        if mine:
            own.append(mine)
        elif len(visits) == 1 and stand_in(visits[0]) in nodes:
            others.append(visits)
    return own, others
