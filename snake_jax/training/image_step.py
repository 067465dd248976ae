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

from snake_jax.models.layered import Layer, LayeredModel
from snake_jax.params import Params, PyTree
from snake_jax.training.optimizers import OptimizerStates
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
    "Batch",
    "Batches",
    "Distillation",
    "EpochStats",
    "Examples",
    "LocalStep",
    "evaluate",
    "local_epoch",
    "local_gradients",
    "local_objective",
    "task_loss",
]

EVALUATION_BATCH = 256


class Batch(NamedTuple):
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
        """Examples of the whole batch that are no padding, at least 1."""
        return jnp.maximum(self.weight.sum(), 1.0) if self.total is None else self.total

    def mean(self, values: jax.Array) -> jax.Array:
        """The mean of `[B]` values over the examples that are no padding."""
        return (self.weight * values).sum() / self.divisor


class Distillation(NamedTuple):
    """`loss = task + weight * temperature^2 * cross-entropy(teacher / temperature, student /
    temperature)`.
    """

    temperature: float
    weight: float


def local_gradients(step: "LocalStep") -> Gradients:
    """The gradients of a batch `Batch` on one node that holds all layers."""
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
      gradients: of a `Batch`, given the step.
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
    client: Client | None = None
    gradients: Callable[["LocalStep"], Gradients] = local_gradients
    parties: tuple[tuple[str, ...], ...] = ()
    auxiliary: tuple[Layer, ...] = ()

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The model's order and the auxiliary layers after it."""
        return self.model.layer_names + tuple(layer.name for layer in self.auxiliary)

    @property
    def needs_received(self) -> bool:
        """Whether the trained layers are also needed as the node received them."""
        by_client = self.client is not None and self.client.needs_received
        return self.distillation is not None or by_client

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
    """

    indices: jax.Array
    weight: jax.Array
    steps: jax.Array


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
    gradients_of = step.gradients(step)

    def epoch(
        trainable, states, frozen, received, examples, batches, key, learning_rate, given=None
    ):
        def gradients_of_part(trainable, frozen, received, picked, key):
            # Images are read part by part, so that no more of them lie in memory than one passes.
            augment_key, dropout_key = jax.random.split(key)
            x = step.normalise(examples.images[picked.indices])
            if step.augment is not None:
                x = step.augment(augment_key, x)
            x = x.astype(step.compute_dtype)
            part = Batch(x, examples.labels[picked.indices], picked.weight, picked.total)
            return gradients_of(trainable, frozen, received, part, dropout_key)

        def train_batch(carry, picked, key):
            trainable, states = carry
            ordered = {name: trainable[name] for name in trained}
            whole = picked.weight.ndim == 1
            some = gradients_of_part if whole else _in_parts(gradients_of_part)
            gradients, loss_sum = some(ordered, frozen, received, picked, key)
            new = updated(
                how,
                gradients,
                trainable,
                states,
                received,
                given,
                learning_rate,
                step.layer_names,
            )
            return new, loss_sum

        def scan_body(carry, row):
            picked, key, active = row
            return lax.cond(
                active,
                lambda carry: train_batch(carry, picked, key),
                lambda carry: (carry, jnp.zeros(())),
                carry,
            )

        # All rows are scanned, and those past the node's own steps skipped.
        rows = batches.indices.shape[0]
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(rows))
        active = jnp.arange(rows) < batches.steps
        xs = (_Picked(batches.indices, batches.weight), keys, active)
        (trainable, states), losses = lax.scan(scan_body, (trainable, states), xs)

        finite = all_finite((losses, trainable))
        counted = active.reshape(rows, *[1] * (batches.weight.ndim - 1))
        examples_seen = (batches.weight * counted).sum()
        return trainable, states, EpochStats(losses.sum(), examples_seen, finite)

    return epoch


def _in_parts(gradients: Gradients) -> Gradients:
    """The gradients of a batch that is passed part by part."""

    def of_batch(
        trainable: Params, frozen: Params, received: Params, picked: _Picked, key: jax.Array
    ) -> tuple[Params, jax.Array]:
        return summed(gradients, trainable, frozen, received, picked, key)

    return of_batch


def task_loss(logits: jax.Array, batch: Batch) -> jax.Array:
    """Mean cross-entropy of `[B, K]` logits."""
    return batch.mean(
        optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), batch.labels)
    )


def local_objective(step: LocalStep) -> Objective:
    """The loss of a `Batch`, on one node that holds all layers."""
    model = step.model

    def objective(
        trainable: Params, frozen: Params, received: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        # What lies below the lowest trained layer depends on nothing that trains.
        places = [model.layer_names.index(name) for name in trainable]
        lowest = min(places, default=len(model.layers))
        below = lax.stop_gradient(step.run(frozen, batch.x, key, 0, lowest))
        logits = step.run({**frozen, **trainable}, below, key, lowest, None).astype(jnp.float32)
        task = task_loss(logits, batch)
        loss_sum = task * batch.divisor
        if step.distillation is None:
            return task, loss_sum

        # Without randomness teacher and student agree below the lowest trained layer, so that part
        # runs once.
        x, start = (batch.x, 0) if model.stochastic else (below, lowest)
        teacher = model.apply({**frozen, **received}, x, start, prepare=step.prepare)
        temperature, factor = step.distillation
        taught = lax.stop_gradient(teacher.astype(jnp.float32)) / temperature
        targets = jax.nn.softmax(taught)
        distance = batch.mean(optax.softmax_cross_entropy(logits / temperature, targets))
        return task + factor * temperature**2 * distance, loss_sum

    return objective


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
