"""A VGG-11 training step written out for the benchmark: the kernels without the library around them."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax.kernels import conv
from snake_jax.kernels.conv.shapes import VGG11_CHANNELS, VGG11_POOLED, ConvShape, vgg

LEARNING_RATE, MOMENTUM, CLASSES = 1e-3, 0.9, 10

Params = dict[str, dict[str, jax.Array]]
State = tuple[Params, Params]


class Sizes(NamedTuple):
    """How large a VGG: the defaults are VGG-11 with 9,750,922 parameters for 32x32x3 images."""

    batch: int = 32
    side: int = 32
    channels: tuple[int, ...] = VGG11_CHANNELS
    pooled: tuple[int, ...] = VGG11_POOLED
    hidden: int = 512

    @property
    def convolutions(self) -> tuple[ConvShape, ...]:
        return vgg(self.batch, self.side, self.channels, self.pooled)

    @property
    def dense(self) -> dict[str, tuple[int, int]]:
        """[inputs, outputs] of the three dense layers, named on from the convolutions."""
        inputs = self.channels[-1] * (self.side // 2 ** len(self.pooled)) ** 2
        shapes = (inputs, self.hidden), (self.hidden, self.hidden), (self.hidden, CLASSES)
        return {f"fc{number}": shape for number, shape in enumerate(shapes, len(self.channels) + 1)}


FULL_SIZE = Sizes()


def layer_names(sizes: Sizes) -> tuple[str, ...]:
    """The layers in order."""
    return (*(layer.name for layer in sizes.convolutions), *sizes.dense)


def forward_flops(sizes: Sizes) -> dict[str, int]:
    """FLOPs of each layer's matrix product for one batch, forward: 2 a multiply and add."""
    flops = {layer.name: layer.flops for layer in sizes.convolutions}
    return flops | {name: 2 * sizes.batch * inputs * outputs for name, (inputs, outputs) in sizes.dense.items()}


def step_flops(sizes: Sizes, trained: Sequence[str]) -> int:
    """FLOPs of one step: all forward, input gradients above the lowest trained layer, trained weight gradients."""
    flops = forward_flops(sizes)
    names = layer_names(sizes)
    lowest = min(names.index(name) for name in trained)
    return sum(flops.values()) + sum(flops[n] for n in names[lowest + 1 :]) + sum(flops[n] for n in trained)


def init(sizes: Sizes, seed: int = 0) -> Params:
    """He-normal kernels, zero biases."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {layer.name: layer.w for layer in sizes.convolutions}
    return {name: _layer(rng, shape) for name, shape in (shapes | sizes.dense).items()}


def _layer(rng: np.random.Generator, shape: tuple[int, ...]) -> dict[str, jax.Array]:
    scale = np.sqrt(2 / np.prod(shape[:-1]))
    return {"kernel": jnp.asarray(scale * rng.normal(size=shape), jnp.float32), "bias": jnp.zeros(shape[-1])}


def batch_of(sizes: Sizes, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Random images [B,H,W,3] and their labels [B]."""
    images = np.random.default_rng(seed).normal(size=(sizes.batch, sizes.side, sizes.side, 3)).astype(np.float32)
    return images, np.arange(sizes.batch, dtype=np.int32) % CLASSES


def loss(params: Params, images: jax.Array, labels: jax.Array, sizes: Sizes, lowering: str) -> jax.Array:
    """Mean cross-entropy of images [B,H,W,3] with labels [B]."""
    x = images
    for number, layer in enumerate(sizes.convolutions, 1):
        x = jax.nn.relu(conv.conv2d(x, params[layer.name]["kernel"], lowering=lowering) + params[layer.name]["bias"])
        x = conv.max_pool(x, lowering=lowering) if number in sizes.pooled else x
    *hidden, last = (params[name] for name in sizes.dense)
    x = x.reshape(x.shape[0], -1)
    for dense in hidden:
        x = jax.nn.relu(x @ dense["kernel"] + dense["bias"])
    logits = x @ last["kernel"] + last["bias"]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1))


def sgd_step(
    state: State, frozen: Params, batch: tuple[jax.Array, jax.Array], sizes: Sizes, lowering: str
) -> tuple[State, jax.Array]:
    """One step of SGD with momentum on the trained layers alone; state is (trained, momentum)."""
    trained, momentum = state
    value, grads = jax.value_and_grad(lambda t: loss(frozen | t, *batch, sizes, lowering))(trained)
    momentum = jax.tree.map(lambda m, g: MOMENTUM * m + g, momentum, grads)
    return (jax.tree.map(lambda p, m: p - LEARNING_RATE * m, trained, momentum), momentum), value
