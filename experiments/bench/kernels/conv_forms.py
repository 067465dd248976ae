"""The forms that a pass of a convolution can take on a CPU, beside each other, in a loop.

Which of them the library takes is said in `snake_jax.kernels.conv.canonical`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from experiments.bench.kernels.conv import LOOP, Run, draw, looped
from snake_jax.kernels.conv import matmul, reference
from snake_jax.kernels.conv.shapes import ConvShape

TILES = 4
"""Into how many parts a batch is cut."""
PADDING = ((1, 1), (1, 1))
STRIDES = (1, 1)
PRODUCT, IN_TILES, OWN = "product of patches", "in tiles", "XLA's own"

Pass = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""Of x [B,H,W,Cin], w [3,3,Cin,Cout] and the gradient of the result g [B,H,W,Cout]."""


def forms(layer: ConvShape) -> dict[str, dict[str, Pass]]:
    """Of every pass its forms by name.

    Args:
      layer: 3x3, SAME, without strides, of a batch that `TILES` divide.

    Raises:
      ValueError: another one.
    """
    if layer.w[:2] != (3, 3) or layer.strides != STRIDES or layer.x[0] % TILES:
        raise ValueError(f"{layer.name}: want 3x3, no strides and a batch of {TILES} parts")
    return {
        "forward": {PRODUCT: _forward, IN_TILES: _forward_in_tiles, OWN: _own_forward},
        "input gradient": {
            PRODUCT: _input_gradient,
            IN_TILES: _input_gradient_in_tiles,
            OWN: _own_input_gradient,
        },
        "weight gradient": {
            PRODUCT: _weight_gradient,
            IN_TILES: _weight_gradient_in_tiles,
            OWN: _own_weight_gradient,
        },
    }


def runs(layer: ConvShape) -> dict[str, dict[str, Run]]:
    """The compiled forms of every pass, `LOOP` times each on as many inputs."""
    xs, w, gs = draw((LOOP, *layer.x), layer.w, (LOOP, *layer.y))
    compiled: dict[str, dict[str, Run]] = {}
    for name, passes in forms(layer).items():
        compiled[name] = {}
        for form, run_pass in passes.items():

            def one(w: jax.Array, given: Any, run_pass: Pass = run_pass) -> jax.Array:
                x, g = given
                return run_pass(x, w, g)

            compiled[name][form] = looped(one, w, (xs, gs))
    return compiled


def _forward(x: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
    del g
    return matmul.conv2d(x, w, STRIDES, PADDING)


def _input_gradient(x: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
    dx, _ = matmul.backward(STRIDES, PADDING, (x, w), g)
    return dx


def _weight_gradient(x: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
    _, dw = matmul.backward(STRIDES, PADDING, (x, w), g)
    return dw


def _parts(array: jax.Array) -> jax.Array:
    """[B,...] as [TILES,B/TILES,...]."""
    return array.reshape(TILES, -1, *array.shape[1:])


def _forward_in_tiles(x: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
    def of_part(part: jax.Array) -> jax.Array:
        return _forward(part, w, part)

    return lax.map(of_part, _parts(x)).reshape(g.shape)


def _input_gradient_in_tiles(x: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
    def of_part(parts: tuple[jax.Array, jax.Array]) -> jax.Array:
        return _input_gradient(parts[0], w, parts[1])

    return lax.map(of_part, (_parts(x), _parts(g))).reshape(x.shape)


def _weight_gradient_in_tiles(x: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
    def add_part(total: jax.Array, parts: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + _weight_gradient(parts[0], w, parts[1]), None

    total, _ = lax.scan(add_part, jnp.zeros_like(w), (_parts(x), _parts(g)))
    return total


def _own_forward(x: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
    del g
    return reference.conv2d(x, w, STRIDES, PADDING)


def _own_input_gradient(x: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
    # The kernel turned by half a circle, channels in and out in each other's place.
    del x
    turned = w[::-1, ::-1].transpose(0, 1, 3, 2)
    return reference.conv2d(g, turned, STRIDES, PADDING)


def _own_weight_gradient(x: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
    # Images and channels in each other's place, as in `canonical`.
    del w
    images = x.transpose(3, 1, 2, 0)
    kernel = g.transpose(1, 2, 0, 3)
    return reference.conv2d(images, kernel, STRIDES, PADDING).transpose(1, 2, 0, 3)
