"""Networks for images.

VGG-11 as the papers train it, a small CNN, LeNet, an MLP, and the two networks of the FedAvg paper.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from snake_jax.kernels.conv import conv2d, max_pool
from snake_jax.models import drawing
from snake_jax.models.adapter import from_linen
from snake_jax.models.layered import LayeredModel

_VGG11_CHANNELS = (64, 128, 256, 256, 512, 512, 512, 512)
_VGG11_POOLED = (1, 2, 4, 6, 8)  # 2x2 max pooling follows these convolutions
_HE_NORMAL = drawing.scaled(2.0, "fan_in", "truncated_normal")
_TORCH_UNIFORM = drawing.scaled(1 / 3, "fan_in", "uniform")
"""What PyTorch's layers start with where nobody says otherwise."""
_CONV_INIT = {
    "he": _HE_NORMAL,
    "torch": drawing.scaled(2.0, "fan_out", "normal"),
    "torch_uniform": _TORCH_UNIFORM,
}
_DENSE_INIT = {"he": _HE_NORMAL, "torch": _TORCH_UNIFORM}


def conv_general_dilated(lowering: str) -> Callable[..., jax.Array]:
    """`kernels.conv.conv2d` in the form that `flax.linen.Conv(conv_general_dilated=...)` takes.

    Args:
      lowering: auto, xla or matmul.
    """

    def convolve(
        x: jax.Array, w: jax.Array, strides: Sequence[int], padding: Any, **rest: Any
    ) -> jax.Array:
        beyond = {*rest["lhs_dilation"], *rest["rhs_dilation"], rest["feature_group_count"]}
        if beyond != {1}:
            raise ValueError(
                "the matrix-product convolution has no dilation and no groups: leave "
                "conv_general_dilated"
            )
        return conv2d(x, w, strides=tuple(strides), padding=padding, lowering=lowering)

    return convolve


class ConvLayer(nn.Module):
    """Convolution, 3x3 if nothing is said, optional GroupNorm, ReLU, optional 2x2 max pooling.

    `[B, H, W, C]` to `[B, H', W', features]`; pooling halves both sides.
    """

    features: int
    pool: bool
    norm: str = "none"
    lowering: str = "auto"
    initial: str = "he"
    side: int = 3
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """One layer forward."""
        convolve = conv_general_dilated(self.lowering)
        bias_init: nn.initializers.Initializer = drawing.zeros
        if self.initial == "torch_uniform":
            bias_init = drawing.uniform((self.side**2 * x.shape[-1]) ** -0.5)
        x = nn.Conv(
            self.features,
            (self.side, self.side),
            padding=self.padding,
            kernel_init=_CONV_INIT[self.initial],
            bias_init=bias_init,
            conv_general_dilated=convolve,
        )(x)
        if self.norm == "group":
            x = nn.GroupNorm(num_groups=_groups(self.features))(x)
        x = nn.relu(x)
        if self.pool:
            x = max_pool(x, (2, 2), lowering=self.lowering)
        return x


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
        bias_init: nn.initializers.Initializer = drawing.zeros
        if self.initial == "torch":
            bias_init = drawing.uniform(x.shape[-1] ** -0.5)
        kernel_init = _DENSE_INIT[self.initial]
        x = nn.Dense(self.features, kernel_init=kernel_init, bias_init=bias_init)(x)
        if self.relu:
            x = nn.relu(x)
        return x


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
    # Eight convolutions, some of which halve the image's sides.
    channels = [_scaled(c, width) for c in _VGG11_CHANNELS]
    stages: list[tuple[str, nn.Module]] = []
    for i, features in enumerate(channels, start=1):
        pooled = i in _VGG11_POOLED
        stages.append((f"conv{i}", ConvLayer(features, pooled, norm, conv, init)))

    # The classifier, on what is left of the image: a single pixel of a 32x32 one.
    stages += [
        ("fc9", DenseLayer(channels[-1], True, dropout, init)),
        ("fc10", DenseLayer(channels[-1], True, dropout, init)),
        ("fc11", DenseLayer(num_classes, False, 0.0, init)),
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
    """A small network, `conv1` ... `conv3`, `fc4`, `fc5`.

    16, 32 and 32 channels with pooling, 64 hidden units; options as of `vgg11`.
    """
    options = _Options(width, norm, dropout, conv, init)
    return _small("cnn", (16, 32, 32), (64,), num_classes, input_shape, options)


def lenet(
    num_classes: int,
    input_shape: tuple[int, ...],
    *,
    width: float = 1.0,
    norm: str = "none",
    dropout: float = 0.0,
    conv: str = "auto",
    init: str = "he",
) -> LayeredModel:
    """LeNet-5 as benchmarks of federated learning train it: `conv1`, `conv2`, `fc3` ... `fc5`.

    Two 5x5 convolutions without padding, of 6 and 16 channels, with pooling, then 120 and 84 hidden
    units (Li et al. 2022, "Federated Learning on Non-IID Data Silos", V): 62,006 parameters for
    32x32x3 images and 10 classes. Options as of `vgg11`, but that init=torch is what PyTorch's
    layers start with: uniform by fan-in, biases too.
    """
    options = _Options(width, norm, dropout, conv, init, side=5, padding="VALID", plain_torch=True)
    return _small("lenet", (6, 16), (120, 84), num_classes, input_shape, options)


def fedavg_cnn(
    num_classes: int,
    input_shape: tuple[int, ...],
    *,
    width: float = 1.0,
    norm: str = "none",
    dropout: float = 0.0,
    conv: str = "auto",
    init: str = "he",
) -> LayeredModel:
    """The CNN that FedAvg was published with: `conv1`, `conv2`, `fc3`, `fc4`.

    Two 5x5 convolutions of 32 and 64 channels, each with pooling, then 512 hidden units (McMahan et
    al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data", 3):
    1,663,370 parameters for 28x28x1 images and 10 classes. Options as of `lenet`.
    """
    options = _Options(width, norm, dropout, conv, init, side=5, plain_torch=True)
    return _small("fedavg_cnn", (32, 64), (512,), num_classes, input_shape, options)


def two_nn(
    num_classes: int,
    input_shape: tuple[int, ...],
    *,
    width: float = 1.0,
    dropout: float = 0.0,
    init: str = "he",
    **_: Any,
) -> LayeredModel:
    """The 2NN that FedAvg was published with: `fc1`, `fc2`, `fc3`.

    Two hidden layers of 200 units (McMahan et al. 2017, 3): 199,210 parameters for 28x28x1 images
    and 10 classes. Options as of `mlp`.
    """
    units = [_scaled(200, width)] * 2
    return _dense("2nn", [*units, num_classes], input_shape, dropout, init)


def mlp(
    num_classes: int,
    input_shape: tuple[int, ...],
    *,
    width: float = 1.0,
    dropout: float = 0.0,
    init: str = "he",
    **_: Any,
) -> LayeredModel:
    """Four dense layers, `fc1` ... `fc4`, 64 hidden units each.

    Options as of `vgg11`; norm and conv have nothing to act on.
    """
    units = [_scaled(64, width)] * 3
    return _dense("mlp", [*units, num_classes], input_shape, dropout, init)


class _Options(NamedTuple):
    """What a small network of convolutions may have otherwise.

    Attributes:
      width, norm, dropout, conv, init: options as of `vgg11`.
      side: of the convolutions' kernels.
      padding: theirs.
      plain_torch: whether init=torch means what PyTorch's layers start with by themselves.
    """

    width: float
    norm: str
    dropout: float
    conv: str
    init: str
    side: int = 3
    padding: str = "SAME"
    plain_torch: bool = False


def _small(
    name: str,
    channels: Sequence[int],
    hidden: Sequence[int],
    num_classes: int,
    input_shape: tuple[int, ...],
    options: _Options,
) -> LayeredModel:
    """Convolutions with pooling, `conv1`, ..., then dense layers; dropout is before each of those.

    Args:
      name: of the network.
      channels: of each convolution, at full width.
      hidden: units of each dense layer but the last, at full width.
      num_classes: of the last.
      input_shape: `(H, W, C)`.
      options: see there.
    """
    initial = options.init
    if options.plain_torch and initial == "torch":
        initial = "torch_uniform"
    stages: list[tuple[str, nn.Module]] = []
    for i, features in enumerate(channels, start=1):
        layer = ConvLayer(
            _scaled(features, options.width),
            pool=True,
            norm=options.norm,
            lowering=options.conv,
            initial=initial,
            side=options.side,
            padding=options.padding,
        )
        stages.append((f"conv{i}", layer))

    units = [_scaled(width, options.width) for width in hidden]
    for i, features in enumerate([*units, num_classes], start=1):
        is_last = i > len(units)
        dense = DenseLayer(features, not is_last, options.dropout, options.init)
        stages.append((f"fc{len(channels) + i}", dense))
    return from_linen(name, stages, input_shape, stochastic=options.dropout > 0)


def _dense(
    name: str, features: Sequence[int], input_shape: tuple[int, ...], dropout: float, init: str
) -> LayeredModel:
    """Dense layers `fc1`, `fc2`, ... of so many features, the last one without ReLU.

    Dropout is before all but the first, which sees the image.
    """
    stages: list[tuple[str, nn.Module]] = []
    for i, width in enumerate(features, start=1):
        is_first, is_last = i == 1, i == len(features)
        rate = 0.0 if is_first else dropout
        stages.append((f"fc{i}", DenseLayer(width, not is_last, rate, init)))
    return from_linen(name, stages, input_shape, stochastic=dropout > 0)


def _scaled(channels: int, width: float) -> int:
    """`width` times as many channels, at least one."""
    return max(1, round(channels * width))


def _groups(features: int) -> int:
    """The largest divisor of `features` up to 32, the usual number of groups."""
    return max(d for d in range(1, 33) if features % d == 0)
