"""Whether a model is right about each single image, for scores of parts of them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax

from snake_jax.params import Params
from snake_jax.training.image_step import Examples, LocalStep, evaluation_batch


def score_each(
    step: LocalStep,
) -> Callable[[Params, Examples, jax.Array], tuple[jax.Array, jax.Array]]:
    """The function `(params, examples, indices) -> (hits, losses)`; jit it.

    `indices` `[N]` say which of the examples; hits are `[N]` bool, losses `[N]` float32.
    """

    def scoring(
        params: Params, examples: Examples, indices: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        # In batches of one size; the last goes on with the first images again.
        count = indices.shape[0]
        size = evaluation_batch(count)
        num_batches = -(-count // size)
        filled = jnp.resize(indices, (num_batches, size))

        def of_batch(batch: jax.Array) -> tuple[jax.Array, jax.Array]:
            x = step.normalise(examples.images[batch]).astype(step.compute_dtype)
            logits = step.model.apply(params, x, prepare=step.prepare).astype(jnp.float32)
            labels = examples.labels[batch]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return logits.argmax(-1) == labels, losses

        hits, losses = lax.map(of_batch, filled)
        return hits.ravel()[:count], losses.ravel()[:count]

    return scoring
