"""Networks for images: VGG-11 as the papers train it, a small CNN and an MLP."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from snake_jax.kernels.conv import conv2d, max_pool
from snake_jax.models.adapter import from_linen
from snake_jax.models.layered import LayeredModel

_VGG11_CHANNELS = (64, 128, 256, 256, 512, 512, 512, 512)
_VGG11_POOLED = (1, 2, 4, 6, 8)  # 2x2 max pooling follows these convolutions
_HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
_CONV_INIT = {"he": _HE_NORMAL, "torch": nn.initializers.variance_scaling(2.0, "fan_out", "normal")}
_DENSE_INIT = {
    "he": _HE_NORMAL,
    "torch": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
}


def conv_general_dilated(lowering: str) -> Callable[..., jax.Array]:
    """`kernels.conv.conv2d` in the form that `flax.linen.Conv(conv_general_dilated=...)` takes.

    Args:
      lowering: auto, xla or matmul.
    """

    def convolve(
        x: jax.Array, w: jax.Array, strides: Sequence[int], padding: Any, **rest: Any
    ) -> jax.Array:
        if {*rest["lhs_dilation"], *rest["rhs_dilation"], rest["feature_group_count"]} != {1}:
            raise ValueError(
                "the matrix-product convolution has no dilation and no groups: leave "
                "conv_general_dilated"
            )
        return conv2d(x, w, strides=tuple(strides), padding=padding, lowering=lowering)

    return convolve


class ConvLayer(nn.Module):
    """3x3 convolution, optional GroupNorm, ReLU, optional 2x2 max pooling: `[B, H, W, C] -> [B, H',
    W', features]`.
    """

    features: int
    pool: bool
    norm: str = "none"
    lowering: str = "auto"
    initial: str = "he"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """One layer forward."""
        convolve = conv_general_dilated(self.lowering)
        x = nn.Conv(
            self.features,
            (3, 3),
            kernel_init=_CONV_INIT[self.initial],
            conv_general_dilated=convolve,
        )(x)
        if self.norm == "group":
            x = nn.GroupNorm(num_groups=_groups(self.features))(x)
        x = nn.relu(x)
        return max_pool(x, (2, 2), lowering=self.lowering) if self.pool else x


class DenseLayer(nn.Module):
    """Flatten, optional dropout, matrix product, optional ReLU: `[B, ...] -> [B, features]`."""

    features: int
    relu: bool
    dropout: float = 0.0
    initial: str = "he"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """One layer forward; dropout is active where `train`."""
        x = x.reshape(x.shape[0], -1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        bias_init = (
            _uniform(x.shape[-1] ** -0.5) if self.initial == "torch" else nn.initializers.zeros
        )
        x = nn.Dense(self.features, kernel_init=_DENSE_INIT[self.initial], bias_init=bias_init)(x)
        return nn.relu(x) if self.relu else x


def vgg11(
    num_classes: int,
    input_shape: tuple[int, ...],
    *,
    width: float = 1.0,
    norm: str = "none",
    dropout: float = 0.0,
    conv: str = "auto",
    init: str = "he",
) -> LayeredModel:
    """VGG-11 for small images: `conv1` ... `conv8`, `fc9`, `fc10`, `fc11`.

    8 convolutions of 3x3 and 3 dense layers (paper, "Training of Classification Tasks"), classifier
    layers as wide as the last convolution, so that 32x32x3 images and 10 classes take 9,750,922
    parameters.

    Args:
      num_classes: width of the last layer.
      input_shape: `(H, W, C)`, both sides at least 32.
      width: multiplies all channel numbers but the last layer's.
      norm: none or group (GroupNorm after each convolution).
      dropout: rate before the two hidden dense layers (as PyTorch's VGG for CIFAR-10 has it).
      conv: lowering of the convolutions: auto, xla or matmul.
      init: he (truncated normal by fan-in, biases 0) or torch (convolutions normal by fan-out,
        dense layers and their biases uniform by fan-in, as PyTorch's VGG for CIFAR-10 starts).
    """
    channels = [_scaled(c, width) for c in _VGG11_CHANNELS]
    stages: list[tuple[str, nn.Module]] = [
        (f"conv{i}", ConvLayer(c, i in _VGG11_POOLED, norm, conv, init))
        for i, c in enumerate(channels, start=1)
    ]
    hidden = functools.partial(DenseLayer, channels[-1], relu=True, dropout=dropout, initial=init)
    stages += [
        ("fc9", hidden()),
        ("fc10", hidden()),
        ("fc11", DenseLayer(num_classes, False, initial=init)),
    ]
    return from_linen("vgg11", stages, input_shape, stochastic=dropout > 0)


def cnn(
    num_classes: int,
    input_shape: tuple[int, ...],
    *,
    width: float = 1.0,
    norm: str = "none",
    dropout: float = 0.0,
    conv: str = "auto",
    init: str = "he",
) -> LayeredModel:
    """A small network, `conv1` ... `conv3`, `fc4`, `fc5`: 16, 32 and 32 channels with pooling, 64
    hidden units.
    """
    channels = [_scaled(c, width) for c in (16, 32, 32)]
    stages: list[tuple[str, nn.Module]] = [
        (f"conv{i}", ConvLayer(c, True, norm, conv, init)) for i, c in enumerate(channels, start=1)
    ]
    hidden = DenseLayer(_scaled(64, width), True, dropout, init)
    stages += [("fc4", hidden), ("fc5", DenseLayer(num_classes, False, dropout, init))]
    return from_linen("cnn", stages, input_shape, stochastic=dropout > 0)


def mlp(
    num_classes: int,
    input_shape: tuple[int, ...],
    *,
    width: float = 1.0,
    dropout: float = 0.0,
    init: str = "he",
    **_: Any,
) -> LayeredModel:
    """Four dense layers, `fc1` ... `fc4`, 64 hidden units each; norm and conv have nothing to act
    on.
    """
    hidden = functools.partial(DenseLayer, _scaled(64, width), relu=True, initial=init)
    stages: list[tuple[str, nn.Module]] = [("fc1", hidden()), ("fc2", hidden(dropout=dropout))]
    stages += [
        ("fc3", hidden(dropout=dropout)),
        ("fc4", DenseLayer(num_classes, False, dropout, init)),
    ]
    return from_linen("mlp", stages, input_shape, stochastic=dropout > 0)


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def _groups(features: int) -> int:
    """The largest divisor of `features` up to 32, the usual number of groups."""
    return max(d for d in range(1, 33) if features % d == 0)


def _uniform(bound: float) -> nn.initializers.Initializer:
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
