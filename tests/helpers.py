"""Small models, data and comparisons that several test files share."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax.data.images import dataset
from snake_jax.models import registry
from snake_jax.models.layered import LayeredModel
from snake_jax.params import Params
from snake_jax.training.image_step import Batches, Examples, LocalStep
from snake_jax.training.optimizers import init_states, update_rule


def small_step(
    model: LayeredModel, optimizer: str = "sgd", weight_decay: float = 0.0, **changes: Any
) -> LocalStep:
    """A step of momentum 0.9 on images scaled to about unit deviation."""
    rule = update_rule(optimizer, momentum=0.9, weight_decay=weight_decay)
    return LocalStep(
        model, rule, 0.0, lambda x: dataset.normalise(x, (0.5,) * 3, (0.25,) * 3)
    )._replace(**changes)


@functools.cache
def small_model(name: str = "cnn", **options: Any) -> tuple[LayeredModel, Params]:
    """A network for 8x8x3 images and 4 classes with its parameters."""
    model = registry.build(name, 4, (8, 8, 3), **{"width": 0.5, **options})
    return model, jax.jit(model.init)(jax.random.key(1))


def random_examples(count: int, side: int = 8, classes: int = 4, seed: int = 0) -> Examples:
    """Noise images with random labels."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return Examples(jnp.asarray(images), jnp.asarray(rng.integers(0, classes, count), jnp.int32))


def batches(
    rows: list[list[int]], weights: list[list[float]] | None = None, steps: int | None = None
) -> Batches:
    """Batches of the given example indices, all of weight 1 unless said."""
    index = jnp.asarray(rows, jnp.int32)
    weight = jnp.ones(index.shape) if weights is None else jnp.asarray(weights, jnp.float32)
    return Batches(index, weight, jnp.int32(len(rows) if steps is None else steps))


def states_for(step: LocalStep, trainable: Params) -> dict:
    """Fresh optimizer states."""
    return init_states(step.rule, trainable, step.model.layer_names)


def same_bits(a: Any, b: Any) -> bool:
    """Whether two trees have one structure and the same bits in every array."""
    leaves_a, tree_a = jax.tree.flatten(a)
    leaves_b, tree_b = jax.tree.flatten(b)
    return tree_a == tree_b and all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(leaves_a, leaves_b, strict=True)
    )


def close(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-6) -> bool:
    """Whether two trees have one structure and close values."""
    leaves_a, tree_a = jax.tree.flatten(a)
    leaves_b, tree_b = jax.tree.flatten(b)
    return tree_a == tree_b and all(
        np.allclose(x, y, rtol=rtol, atol=atol) for x, y in zip(leaves_a, leaves_b, strict=True)
    )
