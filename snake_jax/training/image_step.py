"""The local step: gradients for the assigned layers only, a whole epoch in one compiled program.

Only the trainable subtrees are differentiated; frozen subtrees are passed beside them. So a frozen
layer has no weight gradient, the backward pass ends at the lowest trained layer, and nothing of a
frozen layer is written. (snake_learning_magazine, "Local Training" and "Computation Savings".) How
the gradients of a batch come about is a function of the step: on one node (`local_gradients`), or
over a cut model (`snake_jax.training.split`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from snake_jax import compiling
from snake_jax.models.layered import Layer, LayeredModel
from snake_jax.params import Params, PyTree
from snake_jax.training.optimizers import OptimizerStates
from snake_jax.training.privacy import Privacy, clipped, noised
from snake_jax.training.quantization import thaw
from snake_jax.training.update import (
    Client,
    EpochStats,
    Gradients,
    Objective,
    Rule,
    all_finite,
    differentiated,
    summed,
    updated,
)

__all__ = [
    "Batches",
    "Distillation",
    "EpochStats",
    "Examples",
    "ImageBatch",
    "LocalStep",
    "local_epoch",
    "local_gradients",
    "local_objective",
    "sums_of",
    "task_loss",
]


class ImageBatch(NamedTuple):
    """What a step learns from.

    Attributes:
      x: `[B, H, W, C]`, normalised and augmented.
      labels: `[B]`.
      weight: `[B]`, 0 for padding.
      total: examples of the whole batch, where this is a part of it; None: this is all.
    """

    x: jax.Array
    labels: jax.Array
    weight: jax.Array
    total: jax.Array | None = None

    @property
    def divisor(self) -> jax.Array:
        """Examples of the whole batch that are no padding, at least 1: a scalar."""
        if self.total is not None:
            return self.total
        return jnp.maximum(self.weight.sum(), 1.0)

    def mean(self, values: jax.Array) -> jax.Array:
        """The mean of `[B]` values over the examples that are no padding."""
        return (self.weight * values).sum() / self.divisor


class Distillation(NamedTuple):
    """How much a step learns from the model as it was received.

    With logits s of the student and t of the teacher, each `[B, K]`,

        loss = task + weight * T^2 * cross-entropy(softmax(t / T), softmax(s / T))

    at the temperature T. The gradient of that cross-entropy shrinks with 1 / T^2; the factor undoes
    it, so that `weight` means the same at every temperature (Hinton et al. 2015, arXiv 1503.02531,
    section 2).
    """

    temperature: float
    weight: float


def local_gradients(step: "LocalStep") -> Gradients:
    """The gradients of an `ImageBatch` on one node that holds all layers."""
    return differentiated(local_objective(step))


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
      client: what the method has a node do beside the plain step, or None.
      gradients: of an `ImageBatch`, given the step.
      parties: groups of layers whose gradients are clipped apart, as each party knows its own only;
        empty: one group.
      auxiliary: layers that train beside the model's (the head of a local loss).
      privacy: of the node's examples, or None.
      counts_hits: whether `EpochStats` tell them. Sums of losses are then `[2]`: losses and hits.
    """

    model: LayeredModel
    rule: optax.GradientTransformation
    clip_norm: float
    normalise: Callable[[jax.Array], jax.Array]
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    distillation: Distillation | None = None
    compute_dtype: Any = jnp.float32
    client: Client | None = None
    gradients: Callable[["LocalStep"], Gradients] = local_gradients
    parties: tuple[tuple[str, ...], ...] = ()
    auxiliary: tuple[Layer, ...] = ()
    privacy: Privacy | None = None
    counts_hits: bool = False

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The model's order and the auxiliary layers after it."""
        auxiliary_names = tuple(layer.name for layer in self.auxiliary)
        return self.model.layer_names + auxiliary_names

    @property
    def work(self) -> str:
        """See `compiling.options`."""
        return compiling.IMAGES

    @property
    def needs_received(self) -> bool:
        """Whether the trained layers are also needed as the node received them."""
        if self.distillation is not None:
            return True
        return self.client is not None and self.client.needs_received

    def run(
        self, params: Params, x: jax.Array, key: jax.Array, start: int, stop: int | None
    ) -> jax.Array:
        """Layers `start` to `stop` in training, on their stored parameters.

        Args:
          params: at least of these layers.
          x: `[B, ...]`, the input of layer `start`.
          key: of the step; what is random in a layer draws from it by the layer's place.
          start: the first layer's index.
          stop: the index after the last layer's; None: to the end.

        Returns:
          `[B, ...]`, the output of the last layer that runs.
        """
        own_key = key if self.model.stochastic else None
        return self.model.apply(
            params, x, start, stop, train=True, key=own_key, prepare=self.prepare
        )

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
    one program. Where a batch is passed in A parts whose gradients add up, both are `[S, A, B]`.
    `factors` `[S]` is of each step's learning rate; None: all have the same.
    """

    indices: jax.Array
    weight: jax.Array
    steps: jax.Array
    factors: jax.Array | None = None


class _Picked(NamedTuple):
    """Which examples make a batch, or a part of one, before their images are read."""

    indices: jax.Array
    weight: jax.Array
    total: jax.Array | None = None


def local_epoch(
    step: LocalStep, trained: tuple[str, ...]
) -> Callable[..., tuple[Params, OptimizerStates, EpochStats]]:
    """The function that trains the layers `trained` for one epoch (or a part of it); jit it.

    It takes `(trainable, states, frozen, received, examples, batches, key, learning_rate, given)`:
    `{layer: subtree}` of the trained layers in float32, their optimizer states, the other layers as
    stored (`quantization.freeze`), the trained layers as received (`{}` unless
    `step.needs_received`), `Examples`, `Batches`, a PRNG key, a scalar, and what a client's steps
    read (`update.Client.given`; may be left out). It returns the new trained layers, their states
    and `EpochStats`.
    """
    how = Rule(step.rule, step.clip_norm, step.parties, step.client)
    gradients_of_part = clipped(step.privacy, step.gradients(step))

    def epoch(
        trainable, states, frozen, received, examples, batches, key, learning_rate, given=None
    ):
        gradients_of = _reading(step, examples, gradients_of_part)
        in_parts = batches.weight.ndim == 3  # [S, A, B]
        if in_parts:
            gradients_of = _in_parts(gradients_of)

        def train_batch(carry, picked, key, factor):
            trainable, states = carry
            rate = learning_rate if factor is None else learning_rate * factor
            # A scan hands dicts back sorted by their keys; here they follow `trained` again.
            ordered = {name: trainable[name] for name in trained}
            gradients, loss_sum = gradients_of(ordered, frozen, received, picked, key)
            gradients = noised(step.privacy, gradients, picked.weight, key)
            arrays = (gradients, trainable, states, received, given, rate)
            return updated(how, *arrays, step.layer_names), loss_sum

        def skip_batch(carry):
            return carry, jnp.zeros((2,) if step.counts_hits else ())

        def train_active(carry, row):
            picked, key, active, factor = row

            def train(carry):
                return train_batch(carry, picked, key, factor)

            return lax.cond(active, train, skip_batch, carry)

        # All rows are scanned, and those past the node's own steps skipped: the number of rows is
        # part of the program, the number of steps is not.
        num_rows = batches.indices.shape[0]
        keys = _row_keys(key, num_rows)
        active = jnp.arange(num_rows) < batches.steps
        rows = (_Picked(batches.indices, batches.weight), keys, active, batches.factors)
        (trainable, states), losses = lax.scan(train_active, (trainable, states), rows)

        finite = all_finite((losses, trainable))
        seen = _examples_seen(batches, active)
        if not step.counts_hits:
            return trainable, states, EpochStats(losses.sum(), seen, finite)
        loss_sum, hits = losses.sum(0)
        return trainable, states, EpochStats(loss_sum, seen, finite, hits)

    return epoch


def _reading(step: LocalStep, examples: Examples, gradients: Gradients) -> Gradients:
    """The gradients of a `_Picked` batch, or part of one, whose images are yet to be read.

    Images are read part by part, so that no more of them lie in memory than one pass needs.
    """

    def of_picked(
        trainable: Params, frozen: Params, received: Params, picked: _Picked, key: jax.Array
    ) -> tuple[Params, jax.Array]:
        augment_key, dropout_key = jax.random.split(key)
        x = step.normalise(examples.images[picked.indices])
        if step.augment is not None:
            x = step.augment(augment_key, x)
        x = x.astype(step.compute_dtype)
        labels = examples.labels[picked.indices]
        part = ImageBatch(x, labels, picked.weight, picked.total)
        return gradients(trainable, frozen, received, part, dropout_key)

    return of_picked


def _row_keys(key: jax.Array, num_rows: int) -> jax.Array:
    """A key for each row, `[S]`: by its number alone, not by how many rows there are."""

    def key_of_row(number: jax.Array) -> jax.Array:
        return jax.random.fold_in(key, number)

    return jax.vmap(key_of_row)(jnp.arange(num_rows))


def _examples_seen(batches: Batches, active: jax.Array) -> jax.Array:
    """How many examples the active rows hold that are no padding: a scalar."""
    ones = [1] * (batches.weight.ndim - 1)
    of_row = active.reshape(-1, *ones)  # [S, 1] or [S, 1, 1], against the weights
    return (batches.weight * of_row).sum()


def _in_parts(gradients: Gradients) -> Gradients:
    """The gradients of a batch that is passed part by part."""

    def of_batch(
        trainable: Params, frozen: Params, received: Params, picked: _Picked, key: jax.Array
    ) -> tuple[Params, jax.Array]:
        return summed(gradients, trainable, frozen, received, picked, key)

    return of_batch


def task_loss(logits: jax.Array, batch: ImageBatch) -> jax.Array:
    """Mean cross-entropy of `[B, K]` logits: a scalar, in float32 whatever the logits are in."""
    wide = logits.astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(wide, batch.labels)
    return batch.mean(losses)


def sums_of(step: LocalStep, task: jax.Array, logits: jax.Array, batch: ImageBatch) -> jax.Array:
    """What a step tells of a batch: the sum of its losses, a scalar, or `[2]` with its hits.

    Args:
      step: the local step.
      task: the mean loss of the batch.
      logits: `[B, K]`.
      batch: the images.
    """
    loss_sum = task * batch.divisor
    if not step.counts_hits:
        return loss_sum
    is_hit = (logits.argmax(-1) == batch.labels) & (batch.weight > 0)
    return jnp.stack([loss_sum, is_hit.sum().astype(jnp.float32)])


def local_objective(step: LocalStep) -> Objective:
    """The loss of an `ImageBatch`, on one node that holds all layers."""
    model = step.model

    def objective(
        trainable: Params, frozen: Params, received: Params, batch: ImageBatch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        # What lies below the lowest trained layer depends on nothing that trains: the backward pass
        # ends there, and nothing of those layers is kept for it.
        places = [model.layer_names.index(name) for name in trainable]
        lowest = min(places, default=len(model.layers))
        below = lax.stop_gradient(step.run(frozen, batch.x, key, 0, lowest))

        student = {**frozen, **trainable}
        logits = step.run(student, below, key, lowest, None).astype(jnp.float32)
        task = task_loss(logits, batch)
        loss_sum = sums_of(step, task, logits, batch)
        if step.distillation is None:
            return task, loss_sum

        # Without randomness teacher and student agree below the lowest trained layer, so that part
        # runs once. With it the teacher, which draws nothing, starts from the images.
        x, start = below, lowest
        if model.stochastic:
            x, start = batch.x, 0
        teacher = {**frozen, **received}
        taught_logits = model.apply(teacher, x, start, prepare=step.prepare)
        taught_logits = lax.stop_gradient(taught_logits.astype(jnp.float32))

        # The formula of `Distillation`.
        temperature, factor = step.distillation
        targets = jax.nn.softmax(taught_logits / temperature)
        distances = optax.softmax_cross_entropy(logits / temperature, targets)
        distance = batch.mean(distances)
        return task + factor * temperature**2 * distance, loss_sum

    return objective
