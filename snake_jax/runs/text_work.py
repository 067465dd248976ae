"""What visits on language models do where: what each place trains, its FLOPs, a node's memory."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from snake_jax.algorithms import chain as chains
from snake_jax.algorithms.chain import ON_NODE, Role
from snake_jax.algorithms.visits import Outcome, Passed
from snake_jax.config import TextConfig
from snake_jax.costs import memory
from snake_jax.costs.flops import LayerCost, chain_step_flops, passed_flops, step_flops
from snake_jax.costs.layers import at_head, row_costs
from snake_jax.models.language import LanguageModel
from snake_jax.models.lora import Lora
from snake_jax.nodes import columns
from snake_jax.params import LayerNames
from snake_jax.runs.assigned import VisitCost
from snake_jax.runs.job import Job
from snake_jax.training.text_step import LanguageStep, block_roles, own_items

TextJob = Job[TextConfig, Any, LanguageModel]


def parties(job: TextJob) -> tuple[tuple[str, ...], ...]:
    """What trains on each place of a cut model, by role: a place clips the gradients it knows."""
    if len(job.chain) == 1:
        return ()
    # All blocks train, so block j has role j.
    blocks = own_items(job.model, job.config.lora_rank > 0)
    roles = dict(zip(blocks, block_roles(len(blocks)), strict=True))
    found = []
    for place in chains.roles(job.chain):
        items = chains.owned(job.chain, job.model.layer_names, job.plan.layer_names, place)
        found.append(tuple(roles.get(item, item) for item in items))
    return tuple(found)


def visit_flops(
    job: TextJob, adapters: Lora | None, recompute: str, outcome: Outcome
) -> Mapping[Role, int]:
    """FLOPs of a visit's steps by role.

    Args:
      job: of the run.
      adapters: that train in the place of blocks; None: whole layers do.
      recompute: see `stack.run`.
      outcome: of the visit.
    """
    assert outcome.text is not None, "a visit on a language model counts its text"
    # Rows of one text come in several lengths, and cost by their length; adapters by their columns
    # that the node trains.
    rank = columns.rank_of(job.columns, outcome.visit.node)
    totals: dict[Role, int] = {}
    for passed in outcome.text.passed:
        costs = row_costs(job.model, adapters, recompute, passed.length, rank)
        for role, count in _passed_by_role(job, costs, outcome.visit.layers, passed).items():
            totals[role] = totals.get(role, 0) + count
    return totals


def _passed_by_role(
    job: TextJob, costs: Sequence[LayerCost], layers: tuple[str, ...], passed: Passed
) -> Mapping[Role, int]:
    """FLOPs of rows of one length, by where they are done."""
    if len(job.chain) == 1:
        count = passed_flops(
            costs, layers, passed, teacher=job.distilled, stochastic=job.model.stochastic
        )
        return {ON_NODE: count}
    of_row = chain_step_flops(job.chain, at_head(job.model, costs), (), True, layers)
    return {role: passed.rows * count for role, count in of_row.items()}


def visit_cost(
    job: TextJob, step: LanguageStep, adapters: Lora | None
) -> Callable[[LayerNames, int], VisitCost]:
    """What a visit that trains these layers costs this node, all rows as long as they may be.

    Args:
      job: of the run.
      step: the local step.
      adapters: that train in the place of blocks; None: whole layers do.
    """
    config = job.config
    rows = config.batch_size * config.accumulate
    held = config.frozen_dtype, adapters, config.batch_size

    # Nodes of one rank are alike.
    @functools.cache
    def of_rank(layers: LayerNames, rank: int) -> VisitCost:
        state = memory.state_bytes(step, layers, *held, rank=rank)
        costs = row_costs(job.model, adapters, step.recompute, config.max_length, rank)
        of_row = step_flops(costs, layers, teacher=job.distilled, stochastic=job.model.stochastic)
        return VisitCost(state.total, rows * of_row)

    def cost(layers: LayerNames, node: int) -> VisitCost:
        return of_rank(layers, columns.rank_of(job.columns, node))

    return cost
