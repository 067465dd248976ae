"""Which node takes which visit, of images and of text: `--assign`."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from snake_jax.algorithms import assignment, schedule
from snake_jax.params import LayerNames
from snake_jax.runs.job import Job, Visitors, bytes_of


class VisitCost(NamedTuple):
    """What a visit costs, the same at every node.

    Attributes:
      state_bytes: of parameters, gradients, optimizer states, frozen layers and teacher, without
        activations.
      step_flops: of a step.
    """

    state_bytes: int
    step_flops: int


def is_asked(job: Job) -> bool:
    """Whether a run has use for `visitors`: counting what visits cost takes a second."""
    config = job.config
    wanted = config.assign != "serpentine" or bool(config.node_file)
    wanted = wanted or config.stand_in == "soonest"
    return wanted and "assign" in job.algorithm.flags


def visitors(job: Job, steps: Sequence[int], cost: Callable[[LayerNames], VisitCost]) -> Visitors:
    """Which node takes which visit of a cycle (empty: they take turns), and which can.

    Args:
      job: of a run that `is_asked`.
      steps: optimizer steps of a visit at each node.
      cost: of a visit that trains these layers.

    Raises:
      UserError: a node cannot hold what it is to train.
    """
    config = job.config
    # A node without the memory for a visit cannot take it over either, so who can is kept.
    groups = schedule.serpentine(job.plan, 0)
    problem, model_bytes = _problem(job, groups, steps, cost)
    able = {}
    for index, layers in enumerate(groups):
        soonest_first = np.argsort(problem.seconds[index], kind="stable")
        holds = problem.bytes[index] <= problem.memory_bytes
        able[layers] = tuple(node for node in soonest_first.tolist() if holds[node])

    # Nodes that take turns need no assignment, but each must hold what comes to it.
    if config.assign == "serpentine":
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


def _problem(
    job: Job,
    groups: Sequence[LayerNames],
    steps: Sequence[int],
    cost: Callable[[LayerNames], VisitCost],
) -> tuple[assignment.Problem, int]:
    """The costs of a cycle's visits at every node, and the bytes of a whole model.

    Transfers are those of nodes without any copy.
    """
    # A row a visit: what it holds, sends and computes is the same at every node.
    sizes = job.task.sizes(job)
    state_bytes, traffic, flops = [], [], []
    for layers in groups:
        visit = cost(layers)
        state_bytes.append(visit.state_bytes)
        flops.append(visit.step_flops)
        up = bytes_of(sizes.full, layers, job.columns)
        rest = [name for name in job.layer_names if name not in layers]
        frozen_bytes = bytes_of(sizes.frozen, rest, job.columns)
        traffic.append((up + frozen_bytes, up))

    # The greedy assignment counts what a hop from node to node sends by itself.
    transfers = None if job.config.assign == "greedy" else traffic
    problem = assignment.make_problem(groups, flops, state_bytes, steps, job.fleet, transfers)
    model_bytes = bytes_of(sizes.full, job.layer_names, job.columns)
    return problem, model_bytes
