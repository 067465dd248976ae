"""The local step: gradients for the assigned layers only, a whole epoch in one compiled program.

Only the trainable subtrees are differentiated; frozen subtrees are passed beside them. So a frozen
layer has no weight gradient, the backward pass ends at the lowest trained layer, and nothing of a
frozen layer is written. (snake_learning_magazine, "Local Training" and "Computation Savings".) How
the gradients of a batch come about is a function of the step: on one node (`local_gradients`), or
over a cut model (`snake_jax.split`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from snake_jax.models.layered import Layer, LayeredModel
from snake_jax.params import Params, PyTree
from snake_jax.train.optimizers import OptimizerStates, apply_updates
from snake_jax.train.quantization import thaw

EVALUATION_BATCH = 256


class Batch(NamedTuple):
    """What a step learns from.

    Attributes:
      x: `[B, H, W, C]`, normalised and augmented.
      labels: `[B]`.
      weight: `[B]`, 0 for padding.
      key: for dropout.
    """

    x: jax.Array
    labels: jax.Array
    weight: jax.Array
    key: jax.Array

    def mean(self, values: jax.Array) -> jax.Array:
        """The mean of `[B]` values over the examples that are no padding."""
        return (self.weight * values).sum() / jnp.maximum(self.weight.sum(), 1.0)


class Gradients(Protocol):
    """How a batch becomes a task loss and `{layer: gradient}` of the trained layers."""

    def __call__(
        self, step: "LocalStep", trainable: Params, frozen: Params, received: Params, batch: Batch
    ) -> tuple[jax.Array, Params]:
        """See `local_gradients`."""


def local_gradients(
    step: "LocalStep", trainable: Params, frozen: Params, received: Params, batch: Batch
) -> tuple[jax.Array, Params]:
    """Task loss and gradients on one node that holds all layers.

    Args:
      step: the model and its losses.
      trainable: `{layer: subtree}` to differentiate.
      frozen: the other layers as stored.
      received: the trained layers as the node got them, where a teacher or a proximal term needs
        them.
      batch: the examples.
    """
    loss = _loss(step, tuple(trainable), frozen, received, batch)
    (_, task), gradients = jax.value_and_grad(loss, has_aux=True)(trainable)
    return task, gradients


class Distillation(NamedTuple):
    """`loss = task + weight * temperature^2 * cross-entropy(teacher / temperature, student /
    temperature)`.
    """

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
      proximal: mu of FedProx's `mu / 2 * |w - received|^2` (Li et al., MLSys 2020, equation 2); 0:
        off.
      gradients: of a batch.
      parties: groups of layers whose gradients are clipped apart, as each party knows its own only;
        empty: one group.
      auxiliary: layers that train beside the model's (the head of a local loss).
    """

    model: LayeredModel
    rule: optax.GradientTransformation
    clip_norm: float
    normalise: Callable[[jax.Array], jax.Array]
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    distillation: Distillation | None = None
    compute_dtype: Any = jnp.float32
    proximal: float = 0.0
    gradients: Gradients = local_gradients
    parties: tuple[tuple[str, ...], ...] = ()
    auxiliary: tuple[Layer, ...] = ()

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The model's order and the auxiliary layers after it."""
        return self.model.layer_names + tuple(layer.name for layer in self.auxiliary)

    @property
    def needs_received(self) -> bool:
        """Whether the trained layers are also needed as the node received them."""
        return self.distillation is not None or self.proximal > 0

    def run(
        self, params: Params, batch: Batch, x: jax.Array, start: int, stop: int | None
    ) -> jax.Array:
        """Layers `start` to `stop` in training, on their stored parameters; `x` is the input of
        layer `start`.
        """
        key = batch.key if self.model.stochastic else None
        return self.model.apply(params, x, start, stop, train=True, key=key, prepare=self.prepare)

    def prepare(self, subtree: PyTree) -> PyTree:
        """A layer's stored parameters as the arrays that are computed with."""
        return thaw(subtree, self.compute_dtype)


class Examples(NamedTuple):
    """Images `[N, H, W, C]` as stored and labels `[N]`, on the device."""

    images: jax.Array
    labels: jax.Array


class Batches(NamedTuple):
    """An epoch's batches: `indices` `[S, B]` into the examples, `weight` `[S, B]` (0 for the
    padding of a last batch).

    Only the first `steps` of the S rows are trained on, so nodes with unlike amounts of data share
    one program.
    """

    indices: jax.Array
    weight: jax.Array
    steps: jax.Array


class EpochStats(NamedTuple):
    """Sum of the examples' task losses (without distillation), their number, and whether all
    results are finite.
    """

    loss_sum: jax.Array
    examples: jax.Array
    finite: jax.Array


def local_epoch(
    step: LocalStep, trained: tuple[str, ...]
) -> Callable[..., tuple[Params, OptimizerStates, EpochStats]]:
    """The function that trains the layers `trained` for one epoch (or a part of it); jit it.

    It takes `(trainable, states, frozen, received, examples, batches, key, learning_rate)`:
    `{layer: subtree}` of the trained layers in float32, their optimizer states, the other layers as
    stored (`quantization.freeze`), the trained layers as received (`{}` unless
    `step.needs_received`), `Examples`, `Batches`, a PRNG key and a scalar. It returns the new
    trained layers, their states and `EpochStats`.
    """

    def train_batch(carry, batch, frozen, received, examples, learning_rate):
        (trainable, states), (index, weight, key) = carry, batch
        augment_key, dropout_key = jax.random.split(key)
        x = step.normalise(examples.images[index])
        x = (x if step.augment is None else step.augment(augment_key, x)).astype(step.compute_dtype)
        batch = Batch(x, examples.labels[index], weight, dropout_key)
        task, gradients = step.gradients(
            step, {n: trainable[n] for n in trained}, frozen, received, batch
        )
        if step.proximal:
            pull = lambda g, w, old: g + step.proximal * (w - old)  # noqa: E731
            gradients = jax.tree.map(pull, gradients, trainable, received)
        new = apply_updates(
            step.rule,
            step.clip_norm,
            learning_rate,
            gradients,
            states,
            trainable,
            step.layer_names,
            step.parties,
        )
        return new, task * weight.sum()

    def epoch(trainable, states, frozen, received, examples, batches, key, learning_rate):
        rows = batches.indices.shape[0]
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(rows))

        def scan_body(carry, row):
            batch, active = row
            return jax.lax.cond(
                active,
                lambda carry: train_batch(carry, batch, frozen, received, examples, learning_rate),
                lambda carry: (carry, jnp.zeros(())),
                carry,
            )

        active = jnp.arange(rows) < batches.steps
        xs = ((batches.indices, batches.weight, keys), active)
        (trainable, states), losses = jax.lax.scan(scan_body, (trainable, states), xs)
        finite = jnp.stack(
            [jnp.isfinite(w).all() for w in jax.tree.leaves((losses, trainable))]
        ).all()
        examples_seen = (batches.weight * active[:, None]).sum()
        return trainable, states, EpochStats(losses.sum(), examples_seen, finite)

    return epoch


def task_loss(logits: jax.Array, batch: Batch) -> jax.Array:
    """Mean cross-entropy of `[B, K]` logits."""
    return batch.mean(
        optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), batch.labels)
    )


def _loss(
    step: LocalStep, trained: tuple[str, ...], frozen: Params, received: Params, batch: Batch
) -> Callable[[Params], tuple[jax.Array, jax.Array]]:
    """`trained layers -> (loss, task loss)` of a batch; what lies below the lowest of them is
    computed outside.
    """
    model = step.model
    lowest = min((model.layer_names.index(name) for name in trained), default=len(model.layers))
    below = jax.lax.stop_gradient(step.run(frozen, batch, batch.x, 0, lowest))
    if step.distillation is not None:
        # Without randomness teacher and student agree below the lowest trained layer, so that part
        # runs once.
        x, start = (batch.x, 0) if model.stochastic else (below, lowest)
        targets = model.apply({**frozen, **received}, x, start, prepare=step.prepare).astype(
            jnp.float32
        )
        targets = jax.nn.softmax(jax.lax.stop_gradient(targets) / step.distillation.temperature)

    def loss(trainable):
        logits = step.run({**frozen, **trainable}, batch, below, lowest, None).astype(jnp.float32)
        task = task_loss(logits, batch)
        if step.distillation is None:
            return task, task
        temperature, factor = step.distillation
        distance = batch.mean(optax.softmax_cross_entropy(logits / temperature, targets))
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
