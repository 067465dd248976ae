"""The loss of a language model's step, from hidden states and the output matrix."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from snake_jax.params import Params, PyTree
from snake_jax.training.sharding import token_losses

if TYPE_CHECKING:
    from snake_jax.training.text_step import LanguageStep, TextBatch


def token_loss(
    step: "LanguageStep",
    hidden: jax.Array,
    rows: "TextBatch",
    ends: Params,
    table_trains: bool,
    teacher: jax.Array | None = None,
    teacher_table: PyTree = None,
) -> tuple[jax.Array, jax.Array]:
    """The loss of what the output matrix multiplies, `[B, T, E]`, and the tokens' summed."""
    temperature, factor = step.distillation or (1.0, 0.0)
    losses = token_losses(
        step.mesh,
        hidden,
        step.model.table(ends),
        rows.targets,
        teacher,
        teacher_table,
        temperature=temperature,
        table_gradient=table_trains,
        cap=step.model.architecture.logit_cap,
    )

    # The formula of `Distillation`, summed over tokens `[B * T]` and divided once.
    weight = rows.weight.ravel()
    nll = (weight * losses.nll).sum()
    distance = (weight * losses.distance).sum()
    total = rows.total
    if total is None:
        total = jnp.maximum(weight.sum(), 1.0)
    return (nll + factor * temperature**2 * distance) / total, nll
