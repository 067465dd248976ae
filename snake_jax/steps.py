"""The local step: gradients for the assigned layers only, a whole epoch in one compiled program.

Only the trainable subtrees are differentiated; frozen subtrees are passed beside them. So a frozen layer has no weight
gradient, the backward pass ends at the lowest trained layer, and nothing of a frozen layer is written.
(snake_learning_magazine, "Local Training" and "Computation Savings".)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from snake_jax.layers import LayeredModel, Params, PyTree
from snake_jax.optimizers import OptimizerStates, apply_updates
from snake_jax.quantization import thaw

EVALUATION_BATCH = 256


class Distillation(NamedTuple):
    """`loss = task + weight * temperature^2 * cross-entropy(teacher / temperature, student / temperature)`."""

    temperature: float
    weight: float


class LocalStep(NamedTuple):
    """What a step is, besides its arrays.

    Attributes:
      model: the network.
      rule: update rule without learning rate (`optimizers.update_rule`).
      clip_norm: greatest norm of the trained layers' gradients; 0: no clipping.
      normalise: stored images `[B, H, W, C]` to float32.
      augment: `(key, images) -> images` on normalised images, or None.
      distillation: None: off.
      compute_dtype: of activations and of the parameters while they are computed with.
    """

    model: LayeredModel
    rule: optax.GradientTransformation
    clip_norm: float
    normalise: Callable[[jax.Array], jax.Array]
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    distillation: Distillation | None = None
    compute_dtype: Any = jnp.float32

    def prepare(self, subtree: PyTree) -> PyTree:
        """A layer's stored parameters as the arrays that are computed with."""
        return thaw(subtree, self.compute_dtype)


class Examples(NamedTuple):
    """Images `[N, H, W, C]` as stored and labels `[N]`, on the device."""

    images: jax.Array
    labels: jax.Array


class Batches(NamedTuple):
    """An epoch's batches: `indices` `[S, B]` into the examples, `weight` `[S, B]` (0 for the padding of a last batch).

    Only the first `steps` of the S rows are trained on, so nodes with unlike amounts of data share one program.
    """

    indices: jax.Array
    weight: jax.Array
    steps: jax.Array


class EpochStats(NamedTuple):
    """Sum of the examples' task losses (without distillation), their number, and whether all results are finite."""

    loss_sum: jax.Array
    examples: jax.Array
    finite: jax.Array


def local_epoch(step: LocalStep, trained: tuple[str, ...]) -> Callable[..., tuple[Params, OptimizerStates, EpochStats]]:
    """The function that trains the layers `trained` for one epoch (or a part of it); jit it.

    It takes `(trainable, states, frozen, teacher, examples, batches, key, learning_rate)`:
    `{layer: subtree}` of the trained layers in float32, their optimizer states, the other layers as stored
    (`quantization.freeze`), the trained layers as received (`{}` without distillation), `Examples`, `Batches`, a PRNG
    key and a scalar. It returns the new trained layers, their states and `EpochStats`.
    """

    def train_batch(carry, batch, frozen, teacher, examples, learning_rate):
        (trainable, states), (index, weight, key) = carry, batch
        augment_key, dropout_key = jax.random.split(key)
        x = step.normalise(examples.images[index])
        x = (x if step.augment is None else step.augment(augment_key, x)).astype(step.compute_dtype)
        loss = _loss(step, trained, frozen, teacher, x, examples.labels[index], weight, dropout_key)
        (_, task), gradients = jax.value_and_grad(loss, has_aux=True)(trainable)
        new = apply_updates(
            step.rule, step.clip_norm, learning_rate, gradients, states, trainable, step.model.layer_names
        )
        return new, task * weight.sum()

    def epoch(trainable, states, frozen, teacher, examples, batches, key, learning_rate):
        rows = batches.indices.shape[0]
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(rows))

        def scan_body(carry, row):
            batch, active = row
            return jax.lax.cond(
                active,
                lambda carry: train_batch(carry, batch, frozen, teacher, examples, learning_rate),
                lambda carry: (carry, jnp.zeros(())),
                carry,
            )

        active = jnp.arange(rows) < batches.steps
        xs = ((batches.indices, batches.weight, keys), active)
        (trainable, states), losses = jax.lax.scan(scan_body, (trainable, states), xs)
        finite = jnp.stack([jnp.isfinite(w).all() for w in jax.tree.leaves((losses, trainable))]).all()
        examples_seen = (batches.weight * active[:, None]).sum()
        return trainable, states, EpochStats(losses.sum(), examples_seen, finite)

    return epoch


def _loss(
    step: LocalStep,
    trained: tuple[str, ...],
    frozen: Params,
    teacher: Params,
    x: jax.Array,
    labels: jax.Array,
    weight: jax.Array,
    key: jax.Array,
) -> Callable[[Params], tuple[jax.Array, jax.Array]]:
    """`trained layers -> (loss, task loss)` of a batch; what lies below the lowest of them is computed outside."""
    model = step.model
    lowest = min((model.layer_names.index(name) for name in trained), default=len(model.layers))
    key_or_none = key if model.stochastic else None

    def run(params, x, start, stop, train):
        return model.apply(
            params, x, start, stop, train=train, key=key_or_none if train else None, prepare=step.prepare
        )

    def mean(values):
        return (weight * values).sum() / jnp.maximum(weight.sum(), 1.0)

    below = jax.lax.stop_gradient(run(frozen, x, 0, lowest, True))
    if step.distillation is not None:
        # Without randomness teacher and student agree below the lowest trained layer, so that part runs once.
        received, start = (x, 0) if model.stochastic else (below, lowest)
        targets = run({**frozen, **teacher}, received, start, None, False).astype(jnp.float32)
        targets = jax.nn.softmax(jax.lax.stop_gradient(targets) / step.distillation.temperature)

    def loss(trainable):
        logits = run({**frozen, **trainable}, below, lowest, None, True).astype(jnp.float32)
        task = mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
        if step.distillation is None:
            return task, task
        temperature, factor = step.distillation
        distance = mean(optax.softmax_cross_entropy(logits / temperature, targets))
        return task + factor * temperature**2 * distance, task

    return loss


def evaluate(step: LocalStep) -> Callable[[Params, Examples], tuple[jax.Array, jax.Array]]:
    """The function `(params, examples) -> (accuracy, mean loss)` over all examples; jit it."""

    def evaluation(params, examples):
        count = examples.labels.shape[0]
        rows = -(-count // EVALUATION_BATCH)
        index = jnp.arange(rows * EVALUATION_BATCH).reshape(rows, EVALUATION_BATCH)

        def score(total, index):
            x = step.normalise(examples.images[index % count]).astype(step.compute_dtype)
            logits = step.model.apply(params, x, prepare=step.prepare).astype(jnp.float32)
            labels, real = examples.labels[index % count], index < count
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            hits = (logits.argmax(-1) == labels) & real
            return (total[0] + hits.sum(), total[1] + jnp.where(real, losses, 0.0).sum()), None

        (hits, loss_sum), _ = jax.lax.scan(score, (jnp.zeros((), jnp.int32), jnp.zeros(())), index)
        return hits / count, loss_sum / count

    return evaluation
