"""FLOPs of visits on language models, by the place that does them."""

from collections.abc import Mapping, Sequence
from typing import Any

from snake_jax.algorithms.chain import ON_NODE, Role
from snake_jax.algorithms.visits import Outcome, Passed
from snake_jax.config import TextConfig
from snake_jax.costs.flops import LayerCost, chain_step_flops, passed_flops
from snake_jax.costs.layers import at_head, row_costs
from snake_jax.models.language import LanguageModel
from snake_jax.models.lora import Lora
from snake_jax.runs.job import Job

TextJob = Job[TextConfig, Any, LanguageModel]


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
    # Rows of one text come in several lengths, and cost by their length.
    totals: dict[Role, int] = {}
    for passed in outcome.text.passed:
        costs = row_costs(job.model, adapters, recompute, passed.length)
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
