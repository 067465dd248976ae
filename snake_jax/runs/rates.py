"""Which node trains what, planned anew before each cycle from how fast nodes were measured to be.

What is measured differs from run to run, so each plan is kept with the checkpoint: a run that goes
on keeps to it.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from snake_jax.algorithms import schedule
from snake_jax.algorithms.chain import ON_CLOUD, ON_SERVER, Role
from snake_jax.algorithms.schedule import Plan
from snake_jax.algorithms.visits import Outcome, Round
from snake_jax.nodes.fleet import Fleet
from snake_jax.runs.setup import Setup

Plans = Mapping[int, tuple[int, ...]]
"""`{cycle: the node of each of its groups of layers, in the order of the first cycle}`."""


class MeasuredRate(NamedTuple):
    """What a node was seen to compute: FLOPs as the formula counts them, and the seconds."""

    flops: float = 0.0
    seconds: float = 0.0


def measured_after(
    measured: Mapping[int, MeasuredRate],
    outcomes: Sequence[Outcome],
    flops: Sequence[Mapping[Role, int]],
) -> dict[int, MeasuredRate]:
    """What nodes were seen to compute, a round of these outcomes included.

    Args:
      measured: before it.
      outcomes: of its visits.
      flops: of each of them, by role.
    """
    found = dict(measured)
    for outcome, by_role in zip(outcomes, flops, strict=True):
        if outcome.train_s > 0:
            before = found.get(outcome.visit.node, MeasuredRate())
            elsewhere = by_role.get(ON_SERVER, 0) + by_role.get(ON_CLOUD, 0)
            own = sum(by_role.values()) - elsewhere
            after = MeasuredRate(before.flops + own, before.seconds + outcome.train_s)
            found[outcome.visit.node] = after
    return found


def fleet_as_measured(fleet: Fleet, measured: Mapping[int, MeasuredRate]) -> Fleet:
    """The fleet with the rates that were measured.

    A node that was not seen to work has its stated rate times what the others' measured rates are
    of their stated ones, in the median.
    """
    rates = {}
    for node, seen in measured.items():
        if seen.flops and seen.seconds:
            rates[node] = seen.flops / seen.seconds
    if not rates:
        return fleet
    ratios = [rate / fleet.nodes[node].flops_per_s for node, rate in rates.items()]
    ratio = statistics.median(ratios)
    nodes = []
    for node, figures in enumerate(fleet.nodes):
        rate = rates.get(node, figures.flops_per_s * ratio)
        nodes.append(figures._replace(flops_per_s=max(rate, 1.0)))
    return fleet._replace(nodes=tuple(nodes))


def plans_after(
    setup: Setup, plans: Plans, measured: Mapping[int, MeasuredRate], cycle: int, following: int
) -> Plans:
    """The plans, with one for the next cycle where it begins and rates are to be measured.

    Args:
      setup: of the run.
      plans: so far.
      measured: so far.
      cycle: of the round that is finished.
      following: of the next one.
    """
    wanted = setup.config.rates == "measured" and bool(setup.plan.visitors)
    if not wanted or following == cycle or following in plans:
        return plans
    job = setup.job._replace(fleet=fleet_as_measured(setup.fleet, measured))
    visitors, _ = job.task.visitors(job, setup.steps)
    groups = schedule.serpentine(setup.plan, 0)
    return {**plans, following: tuple(visitors[layers] for layers in groups)}


def plan_of(setup: Setup, plans: Plans, cycle: int) -> Plan:
    """The run's plan, with the nodes that a cycle's own plan assigns where it has one."""
    if cycle not in plans:
        return setup.plan
    groups = schedule.serpentine(setup.plan, 0)
    return setup.plan._replace(visitors=dict(zip(groups, plans[cycle], strict=True)))


def replanned(setup: Setup, plans: Plans, visits: Round) -> Round:
    """The visits of a round at the nodes that their cycle's plan says; who takes over is left."""
    first = visits[0]
    if first.cycle not in plans or first.event:
        return visits
    visitors = plan_of(setup, plans, first.cycle).visitors
    return tuple(visit._replace(node=visitors[visit.layers]) for visit in visits)
