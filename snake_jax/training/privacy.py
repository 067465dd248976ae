"""Differential privacy of a step: every example's gradient is clipped, their sum gets noise.

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016 (arXiv 1607.00133), Algorithm 1.
With g_i the gradient of example i with respect to all that trains, C the clip norm and sigma the
noise multiplier, a batch of B examples has the gradient

    (sum_i g_i min(1, C / |g_i|) + sigma C N(0, I)) / B.

An example is an image, or a row of text. Only what trains is differentiated, so frozen layers have
no gradient, no clipping and no noise. What comes after (a method's correction, clipping, the update
rule) reads nothing of the examples, and costs no privacy.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from snake_jax.params import Params
from snake_jax.training.update import Gradients

# The number of the noise's key among those of a step. Layers and parts of a batch are counted from
# 0, and never come so far.
_NOISE = 2**32 - 1


class Privacy(NamedTuple):
    """How much an example may say.

    Attributes:
      clip: C, the greatest norm of an example's gradient.
      noise: sigma, the noise's standard deviation over C; 0: none.
    """

    clip: float
    noise: float


def clipped(privacy: Privacy | None, gradients: Gradients) -> Gradients:
    """Of a part of a batch the *sum* of its examples' clipped gradients, not their mean.

    Args:
      privacy: the greatest norm; None: the gradients are as they were.
      gradients: of a part, of any number of examples.
    """
    if privacy is None:
        return gradients

    def of_part(
        trainable: Params, frozen: Any, received: Params, part: Any, key: jax.Array
    ) -> tuple[Params, jax.Array]:
        # What the examples of a batch divide by would depend on all of them, as the number of
        # tokens does: each is a batch of its own, and its loss the mean over its own tokens.
        apart = part._replace(total=None)

        def of_example(example: Any, key: jax.Array) -> tuple[Params, jax.Array]:
            alone = jax.tree.map(_batch_of_one, example)
            return gradients(trainable, frozen, received, alone, key)

        keys = jax.random.split(key, part.weight.shape[0])
        found, loss_sums = jax.vmap(of_example)(apart, keys)
        leaves, structure = jax.tree.flatten(found)
        sums, _ = optax.per_example_global_norm_clip(leaves, privacy.clip)
        return jax.tree.unflatten(structure, sums), loss_sums.sum()

    return of_part


def noised(privacy: Privacy | None, gradients: Params, weight: jax.Array, key: jax.Array) -> Params:
    """The gradient of a batch: the sum of its examples' clipped ones with noise, over their number.

    Args:
      privacy: the noise; None: the gradients are as they were.
      gradients: of `clipped`, summed over all parts of the batch.
      weight: of its examples, 0 for padding; of any shape.
      key: of the step.
    """
    if privacy is None:
        return gradients
    leaves, structure = jax.tree.flatten(gradients)
    if privacy.noise:
        # A key for each array, as optax.contrib.differentially_private_aggregate draws.
        deviation = privacy.noise * privacy.clip
        _, *keys = jax.random.split(jax.random.fold_in(key, _NOISE), len(leaves) + 1)
        noisy = []
        for leaf, own_key in zip(leaves, keys, strict=True):
            noise = jax.random.normal(own_key, leaf.shape, leaf.dtype)
            noisy.append(leaf + deviation * noise)
        leaves = noisy
    is_real = weight > 0
    count = jnp.maximum(is_real.sum(), 1)
    means = [leaf / count for leaf in leaves]
    return jax.tree.unflatten(structure, means)


def _batch_of_one(leaf: jax.Array) -> jax.Array:
    return leaf[None]
