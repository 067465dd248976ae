"""How right a model is: about all images of a set, or about each single one of some."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax

from snake_jax.params import Params
from snake_jax.training.image_step import Examples, LocalStep

_EVALUATED_AT_ONCE = {"cpu": 64}
_EVALUATED_AT_ONCE_ELSEWHERE = 1024
"""Images of a batch that is only scored, at most. A CPU is fastest where a layer's activations stay
in its cache; an accelerator wants to be filled.
"""


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


def evaluation_batch(count: int) -> int:
    """Images of a batch that is only scored: batches of `count` images as equal as they can be, so
    that the last has next to no padding.
    """
    most = _EVALUATED_AT_ONCE.get(jax.default_backend(), _EVALUATED_AT_ONCE_ELSEWHERE)
    num_batches = -(-count // most)
    return -(-count // num_batches)


def evaluate(step: LocalStep) -> Callable[[Params, Examples], tuple[jax.Array, jax.Array]]:
    """The function `(params, examples) -> (accuracy, mean loss)` over all examples; jit it.

    Accuracy is the share of hits, from 0 to 1; both are float32 scalars.
    """

    def evaluation(params, examples):
        # In batches of one size, since a program has one; the last goes on with the first images,
        # which count for nothing there.
        count = examples.labels.shape[0]
        size = evaluation_batch(count)
        num_batches = -(-count // size)
        batches = jnp.arange(num_batches * size).reshape(num_batches, size)

        def score(total, index):
            x = step.normalise(examples.images[index % count]).astype(step.compute_dtype)
            logits = step.model.apply(params, x, prepare=step.prepare).astype(jnp.float32)
            labels = examples.labels[index % count]
            real = index < count
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            hits = (logits.argmax(-1) == labels) & real
            all_hits, loss_sum = total
            all_hits = all_hits + hits.sum()
            loss_sum = loss_sum + jnp.where(real, losses, 0.0).sum()
            return (all_hits, loss_sum), None

        nothing = (jnp.zeros((), jnp.int32), jnp.zeros(()))
        (hits, loss_sum), _ = lax.scan(score, nothing, batches)
        return hits / count, loss_sum / count

    return evaluation
