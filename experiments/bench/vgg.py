"""The training step of the papers' VGG-11 as training runs it, and its visits' steps."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench.kernels.conv import CLASSES, Network
from snake_jax import compiling
from snake_jax.costs.flops import step_flops
from snake_jax.costs.layers import layer_costs
from snake_jax.params import Params, select, without
from snake_jax.training.image_step import Batches, EpochStats, Examples, LocalStep, local_epoch
from snake_jax.training.optimizers import apply_updates, init_states, update_rule

LEARNING_RATE = 1e-3
MOMENTUM = 0.9
OURS = "auto"
QUICK = Network("cnn", batch=4, side=8, width=0.5)
"""For `--quick` and tests."""


@functools.cache
def params_of(network: Network) -> Params:
    """The parameters that every side starts from."""
    return jax.jit(network.build(OURS).init)(jax.random.key(0))


def batch(network: Network) -> tuple[np.ndarray, np.ndarray]:
    """Noise images [B,H,W,3] and their labels [B]."""
    rng = np.random.default_rng(1)
    images = rng.normal(size=(network.batch, network.side, network.side, 3))
    labels = np.arange(network.batch, dtype=np.int32) % CLASSES
    return images.astype(np.float32), labels


def flops(network: Network, trained: Sequence[str]) -> int:
    """FLOPs of a step that trains these layers, taps on padding with them."""
    costs = layer_costs(network.build(OURS), network.batch)
    return step_flops(costs, trained)


def local_step(network: Network, lowering: str = OURS) -> LocalStep:
    """What the step is, besides its arrays.

    Plain SGD with momentum, neither clipping nor distillation.
    """
    rule = update_rule("sgd", momentum=MOMENTUM, weight_decay=0.0)
    return LocalStep(network.build(lowering), rule, clip_norm=0.0, normalise=_unchanged)


def _unchanged(images: jax.Array) -> jax.Array:
    """The batch is noise about zero as it is."""
    return images


class Step:
    """A compiled `local_epoch` of `steps` batches that owns its donated state.

    One call is one call of the program. With `looped=False` the same step once, outside the loop:
    inside, XLA leaves its own convolutions in a slow form.
    """

    def __init__(
        self,
        network: Network,
        trained: Sequence[str],
        steps: int = 1,
        lowering: str = OURS,
        looped: bool = True,
    ) -> None:
        """Compiles.

        Args:
          network: which.
          trained: the layers, in the model's order.
          steps: batches a call.
          lowering: of the convolutions.
          looped: whether steps run in the loop of `local_epoch`.
        """
        step = local_step(network, lowering)
        params = params_of(network)
        # Copies, since every call gives its state away.
        trainable = jax.tree.map(jnp.copy, select(params, trained))
        states = init_states(step.rule, trainable, step.model.layer_names)
        self.state: tuple[Any, ...] = (trainable, states)

        examples, batches = _epoch(network, steps)
        self.fixed: tuple[Any, ...] = (
            without(params, trained),
            {},  # nothing to correct by
            examples,
            batches,
            jax.random.key(0),
            jnp.float32(LEARNING_RATE),
        )
        function = local_epoch(step, tuple(trained)) if looped else _lone_step(step)
        jitted = compiling.jit(compiling.IMAGES, function, donate_argnums=(0, 1))
        self.program = jitted.lower(*self.state, *self.fixed).compile()

    def __call__(self) -> EpochStats:
        """Trains on."""
        *state, stats = self.program(*self.state, *self.fixed)
        self.state = tuple(state)
        return stats


def _epoch(network: Network, steps: int) -> tuple[Examples, Batches]:
    """The same batch `steps` times."""
    images, labels = batch(network)
    examples = Examples(jnp.asarray(images), jnp.asarray(labels))
    index = jnp.tile(jnp.arange(network.batch, dtype=jnp.int32), (steps, 1))
    batches = Batches(index, jnp.ones(index.shape), jnp.int32(steps))
    return examples, batches


def _lone_step(step: LocalStep) -> Any:
    """One step on all examples, with the arguments of `local_epoch`."""
    names = step.model.layer_names

    def lone(trainable, states, frozen, received, examples, batches, key, learning_rate):
        def loss(trainable):
            logits = step.model.apply({**frozen, **trainable}, examples.images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, examples.labels).mean()

        value, gradients = jax.value_and_grad(loss)(trainable)
        count = examples.labels.size
        updated = apply_updates(step.rule, 0.0, learning_rate, gradients, states, trainable, names)
        return *updated, EpochStats(value * count, jnp.float32(count), jnp.isfinite(value))

    return lone
