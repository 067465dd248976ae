"""Which node takes which visit, of images and of text: `--assign`."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from snake_jax.algorithms import assignment, neighbours, schedule, segments
from snake_jax.nodes import columns, presence
from snake_jax.nodes.fleet import Fleet
from snake_jax.nodes.ledger import Sizes
from snake_jax.params import LayerNames
from snake_jax.runs.job import Job, Visitors, bytes_of

# Flags of methods whose visits may go to another node than the planned one.
_GOES_ELSEWHERE = frozenset({"assign", "interrupt", "leave"})


class VisitCost(NamedTuple):
    """What a visit costs a node.

    Attributes:
      state_bytes: of parameters, gradients, optimizer states, frozen layers and teacher, without
        activations.
      step_flops: of a step.
    """

    state_bytes: int
    step_flops: int


def is_asked(job: Job) -> bool:
    """Whether a run has use for `visitors`: counting what visits cost takes a second."""
    # Generated nodes without a spread are alike but for their data: see `alike`. Where the schedule
    # follows the clock it has to know a visit's seconds.
    config = job.config
    wanted = config.assign != "serpentine" or bool(config.node_file) or bool(config.node_spread)
    wanted = wanted or config.follow_clock
    # Of a cut model a node holds a part, which is another one in each method.
    wanted = wanted and len(job.chain) == 1
    return wanted and bool(_GOES_ELSEWHERE & job.algorithm.flags)


def alike(job: Job, steps: Sequence[int]) -> Visitors:
    """Of nodes that differ in nothing but the steps of a visit: they take turns, and all can hold
    what one can. Nothing is counted: the seconds are in units of a step's.
    """
    if not _GOES_ELSEWHERE & job.algorithm.flags:
        return {}, {}
    of_nodes = dict(enumerate(map(float, steps)))
    return {}, dict.fromkeys(_groups(job), of_nodes)


Cost = Callable[[LayerNames, int], VisitCost]
"""`(layers, node) -> what a visit costs that trains them there`: of adapters a node trains the
columns of its rank; in all else nodes are alike.
"""


def _groups(job: Job) -> Sequence[LayerNames]:
    """The layers of each visit of a cycle; of methods that do not share them out, all."""
    if "assign" in job.algorithm.flags:
        return schedule.serpentine(job.plan, 0)
    return (job.plan.layer_names,)


def visitors(job: Job, steps: Sequence[int], cost: Cost) -> Visitors:
    """Which node takes which visit of a cycle (empty: they take turns), and which can.

    Args:
      job: of a run that `is_asked`.
      steps: optimizer steps of a visit at each node.
      cost: of a visit that trains these layers at a node.

    Raises:
      UserError: a node cannot hold what it is to train.
    """
    config = job.config
    if config.assign == "segments":
        return _segments(job, steps, cost)
    # A node without the memory for a visit cannot take it over either, so who can is kept.
    groups = _groups(job)
    problem, model_bytes = _problem(job, groups, steps, cost)
    able = {}
    for index, layers in enumerate(groups):
        able[layers] = _able(problem, index)

    # When a visit will come to a node is not known yet, so its windows count by their mean.
    if config.follow_clock:
        problem = _with_windows(problem, job.fleet)

    # Nodes that take turns need no assignment, but each must hold what comes to it, where that is
    # stated.
    if "assign" not in job.algorithm.flags:
        return {}, able
    if neighbours.is_graph(config):
        return {}, able
    if config.assign == "serpentine":
        if not config.node_file:
            return {}, able
        in_turn = assignment.in_turns(len(groups), config.nodes)
        assignment.check_memory(problem, in_turn)
        return {}, able
    if config.assign == "proportional":
        nodes = assignment.proportional(problem)
    elif config.assign == "milp":
        nodes = assignment.milp(problem, config.assign_objective)
    else:
        hops = assignment.make_hops(job.fleet, model_bytes)
        nodes = assignment.greedy(problem, *hops)
    return dict(zip(groups, nodes, strict=True)), able


def _able(problem: assignment.AssignmentProblem, group: int) -> dict[int, float]:
    """`{node: seconds of the group's visit}` of the nodes that can hold it."""
    found = {}
    holds = problem.bytes[group] <= problem.memory_bytes
    for node, seconds in enumerate(problem.seconds[group].tolist()):
        if holds[node]:
            found[node] = seconds
    return found


def _segments(job: Job, steps: Sequence[int], cost: Cost) -> Visitors:
    """A visit a node and cycle, of as many layers as its capability says."""
    # What is shared out are the groups of --layers_per_visit, from the model's first on.
    cost = functools.cache(cost)
    order = dataclasses.replace(job.config, order="sequential")
    units = schedule.serpentine(job.plan._replace(config=order), 0)
    single, _ = _problem(job, units, steps, cost)
    if job.config.follow_clock:
        single = _with_windows(single, job.fleet)
    seconds = single.seconds.mean(axis=0).tolist()
    fits = (single.bytes <= single.memory_bytes).any(axis=0)
    most = np.where(fits, len(units), 0).tolist()

    # Layers are unlike, so whether a run fits is seen when it is known; then its node has fewer.
    while True:
        counts = segments.shared_out(seconds, most, len(units))
        given = {}
        for node, (start, stop) in segments.runs(counts).items():
            given[_together(job, units[start:stop])] = node
        problem, _ = _problem(job, list(given), steps, cost)
        able = {layers: _able(problem, index) for index, layers in enumerate(given)}
        too_large = [node for layers, node in given.items() if node not in able[layers]]
        if not too_large:
            return given, able
        for node in too_large:
            most[node] = counts[node] - 1


def _together(job: Job, units: Sequence[LayerNames]) -> LayerNames:
    """The layers of several units, in the model's order."""
    trained = set().union(*units)
    return tuple(name for name in job.plan.layer_names if name in trained)


def _with_windows(
    problem: assignment.AssignmentProblem, fleet: Fleet
) -> assignment.AssignmentProblem:
    """The problem with the seconds that visits stand still while windows are closed."""
    groups, nodes = problem.seconds.shape
    away_s = np.zeros((groups, nodes))
    for group in range(groups):
        for node in range(nodes):
            active_s = float(problem.seconds[group, node])
            away_s[group, node] = presence.mean_away_s(fleet, node, active_s)
    return problem._replace(seconds=problem.seconds + away_s)


def _up_bytes(job: Job, groups: Sequence[LayerNames], sizes: Sizes) -> list[list[int]]:
    """`[G, N]` what each node hands in of each visit: of adapters the columns of its rank."""
    found = []
    for layers in groups:
        row = []
        for node in range(job.config.nodes):
            parts = columns.all_trained(job.columns, layers, node)
            row.append(sum(sizes.full[part] for part in parts))
        found.append(row)
    return found


def _problem(
    job: Job,
    groups: Sequence[LayerNames],
    steps: Sequence[int],
    cost: Cost,
) -> tuple[assignment.AssignmentProblem, int]:
    """The costs of a cycle's visits at every node, and the bytes of a whole model.

    Transfers are those of nodes without any copy.
    """
    # A row a visit: what it holds, sends and computes, one column where that is the same at every
    # node.
    sizes = job.task.sizes(job)
    state_bytes, traffic, flops = [], [], []
    unlike = range(job.config.nodes) if job.columns.stops else (0,)
    for layers in groups:
        visits = [cost(layers, node) for node in unlike]
        state_bytes.append([visit.state_bytes for visit in visits])
        flops.append([visit.step_flops for visit in visits])
        up = bytes_of(sizes.full, layers, job.columns)
        rest = [name for name in job.layer_names if name not in layers]
        frozen_bytes = bytes_of(sizes.frozen, rest, job.columns)
        traffic.append((up + frozen_bytes, up))

    # The greedy assignment counts what a hop from node to node sends by itself.
    transfers = None if job.config.assign == "greedy" else traffic
    up_bytes = _up_bytes(job, groups, sizes) if job.columns.stops else None
    problem = assignment.make_problem(
        groups, flops, state_bytes, steps, job.fleet, transfers, up_bytes
    )
    model_bytes = bytes_of(sizes.full, job.layer_names, job.columns)
    return problem, model_bytes
