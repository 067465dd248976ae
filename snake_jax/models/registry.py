"""Networks for images by name."""

from collections.abc import Callable

from snake_jax.config import pick
from snake_jax.errors import UserError
from snake_jax.models.adapter import linen_layer
from snake_jax.models.layered import Layer, LayeredModel
from snake_jax.models.vision import DenseLayer, cnn, mlp, vgg11

MODELS: dict[str, Callable[..., LayeredModel]] = {"vgg11": vgg11, "cnn": cnn, "mlp": mlp}

_LEAST_SIDE = {"vgg11": 32, "cnn": 8}  # as many halvings as the network has poolings


def check(name: str) -> None:
    """Refuses names of no network.

    Raises:
      UserError: it is one.
    """
    pick("model", name, MODELS)


def build(
    name: str, num_classes: int, input_shape: tuple[int, ...], **options: object
) -> LayeredModel:
    """The named network for these images.

    Args:
      name: one of `MODELS`.
      num_classes: number of labels.
      input_shape: `(H, W, C)`.
      **options: width, norm, dropout, conv, init.

    Raises:
      UserError: no such network, or images too small for it.
    """
    check(name)
    make = MODELS[name]
    side = _LEAST_SIDE.get(name, 1)
    if min(input_shape[:2]) < side:
        raise UserError(
            f"--model={name} needs images of at least {side}x{side}, these are {input_shape}"
        )
    return make(num_classes, input_shape, **options)


def linear_head(name: str, num_classes: int) -> Layer:
    """A linear classifier on flattened activations `[B, ...]`, as one layer."""
    return linen_layer(name, DenseLayer(num_classes, relu=False))
