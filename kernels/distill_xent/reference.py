"""The definition: whole logits [N, V], gradients by automatic differentiation."""

from typing import TYPE_CHECKING, TypeAlias, Union

import jax
import jax.numpy as jnp
from jax import lax

from snake_jax.kernels.dequantize import dense
from snake_jax.kernels.distill_xent.xent import Xent, accumulator, capped

if TYPE_CHECKING:
    import qwix

Table: TypeAlias = Union[jax.Array, "qwix.QArray"]


def linear_xent(
    hidden: jax.Array,
    table: Table,
    targets: jax.Array,
    teacher: jax.Array | None,
    teacher_table: Table | None,
    temperature: float,
    table_gradient: bool,
    cap: float | None,
) -> Xent:
    """See the package's `linear_xent`."""
    student_table = table
    if not table_gradient:
        student_table = lax.stop_gradient(table)
    logits = capped(_logits(hidden, student_table), cap)

    # The target's logit as a masked sum: 0 for a target outside the vocabulary.
    columns = jnp.arange(logits.shape[1])
    target = jnp.where(columns == targets[:, None], logits, 0).sum(1)
    nll = jax.nn.logsumexp(logits, 1) - target
    hit = logits.argmax(1) == targets
    if teacher is None:
        return Xent(nll, jnp.zeros_like(nll), hit)

    # The cross-entropy of the two distributions at the temperature.
    if teacher_table is None:
        teacher_table = table
    taught = lax.stop_gradient(capped(_logits(teacher, teacher_table), cap))
    share = jax.nn.softmax(taught / temperature, 1)
    log_share = jax.nn.log_softmax(logits / temperature, 1)
    distance = -(share * log_share).sum(1)
    return Xent(nll, distance, hit)


def _logits(hidden: jax.Array, table: Table) -> jax.Array:
    """[N, V]: hidden [N, E] against the rows of the table [V, E].

    Products are in hidden's dtype, summed in float32.
    """
    columns = dense(table, hidden.dtype).T
    return jnp.dot(hidden, columns, preferred_element_type=accumulator(hidden.dtype))
