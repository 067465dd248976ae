"""Each kernel as a function of its inputs to all its values and gradients, and their exact ones.

Exact is the reference in float32 with products in full precision. What a kernel may be off is set
by what the compiler's own operation is off, in the same precision on the same device.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.accept import noise
from experiments.accept.sizes import Sizes
from experiments.bench.kernels.conv import convolutions
from experiments.bench.kernels.quant_matmul import KINDS, LOWERINGS, stored
from snake_jax.kernels import conv
from snake_jax.kernels.conv.shapes import ConvShape
from snake_jax.kernels.dequantize import dense
from snake_jax.kernels.distill_xent import LOWERINGS as XENT_LOWERINGS
from snake_jax.kernels.distill_xent import linear_xent
from snake_jax.kernels.distill_xent.shapes import XentShape
from snake_jax.kernels.quant_matmul import quant_matmul
from snake_jax.kernels.quant_matmul.shapes import QuantShape

Form = Callable[..., Any]
"""Of arrays, to a tree of values and gradients."""


class Comparison(NamedTuple):
    """A kernel at one shape and precision.

    Attributes:
      subject: for tables.
      forms: ours, by name.
      own: the compiler's own operation.
      make: gives the arrays.
      terms: of its longest sum.
    """

    subject: str
    forms: Mapping[str, Form]
    own: Form
    make: Callable[[], tuple[Any, ...]]
    terms: int


def comparisons(sizes: Sizes, platform: str) -> Iterator[Comparison]:
    """All kernels, in the precisions that a platform computes in."""
    dtypes = ["float32"] if platform == "cpu" else ["bfloat16", "float32"]
    for dtype in dtypes:
        for product in sizes.products:
            for kind in KINDS:
                yield _product(product, kind, dtype, platform)
        for loss in sizes.losses:
            yield _loss(loss, dtype)
        for layer in dict.fromkeys(convolutions(sizes.network)):
            yield _convolution(layer, dtype)


def _product(shape: QuantShape, kind: str, dtype: str, platform: str) -> Comparison:
    """x [M, K] with a stored weight [K, N], and an adapter where the shape has one."""

    def pulled(product: Form, x: jax.Array, weight: Any, adapter: Any, g: jax.Array) -> Any:
        def of(x: jax.Array, adapter: Any) -> jax.Array:
            return product(x, weight, adapter)

        value, backward = jax.vjp(of, x, adapter)
        return value, backward(g.astype(value.dtype))

    def own(x: jax.Array, weight: Any, adapter: Any) -> jax.Array:
        wide = jnp.dot(x, dense(weight, x.dtype))
        if adapter is None:
            return wide
        a, b = adapter
        return wide + jnp.dot(jnp.dot(x, a.astype(x.dtype)), b.astype(x.dtype))

    def make() -> tuple[Any, ...]:
        weight = jax.jit(functools.partial(stored, shape, kind))()
        adapter = None
        if shape.rank:
            a = noise.standard((shape.inputs, shape.rank), "float32", 2)
            b = noise.standard((shape.rank, shape.outputs), "float32", 3)
            adapter = (a / shape.inputs**0.5, b / shape.rank**0.5)
        x = noise.standard((shape.rows, shape.inputs), dtype, 1)
        return x, weight, adapter, noise.standard((shape.rows, shape.outputs), dtype, 4)

    forms = {}
    for lowering in ("auto", *LOWERINGS[platform]):
        product = functools.partial(quant_matmul, lowering=lowering)
        forms[lowering] = functools.partial(pulled, product)
    subject = f"quant_matmul, {shape.name}, {kind}, {dtype}"
    terms = max(shape.rows, shape.inputs, shape.outputs)
    return Comparison(subject, forms, functools.partial(pulled, own), make, terms)


def _loss(shape: XentShape, dtype: str) -> Comparison:
    """Loss and distance to a teacher of hidden states [N, E] and a table [V, E]."""

    def losses(lowering: str, hidden: Any, table: Any, targets: Any, teacher: Any) -> Any:
        def total(hidden: jax.Array) -> tuple[jax.Array, Any]:
            options: dict[str, Any] = {"teacher": teacher, "temperature": 2.0}
            found = linear_xent(hidden, table, targets, lowering=lowering, **options)
            values = found.nll, found.distance
            return (found.nll + found.distance).sum(), values

        gradient, values = jax.grad(total, has_aux=True)(hidden)
        return gradient, values

    def make() -> tuple[Any, ...]:
        hidden = noise.standard((shape.tokens, shape.width), dtype, 1)
        teacher = noise.standard((shape.tokens, shape.width), dtype, 2)
        table = noise.standard((shape.vocabulary, shape.width), dtype, 3) / shape.width**0.5
        targets = jax.random.randint(jax.random.key(4), (shape.tokens,), 0, shape.vocabulary)
        return hidden, table.astype(dtype), targets, teacher

    forms = {name: functools.partial(losses, name) for name in XENT_LOWERINGS}
    terms = max(shape.tokens, shape.width, shape.vocabulary)
    return Comparison(f"distill_xent, {shape.name}, {dtype}", forms, forms["xla"], make, terms)


def _convolution(layer: ConvShape, dtype: str) -> Comparison:
    """x [B, H, W, Cin] with w [Kh, Kw, Cin, Cout]."""

    def pulled(lowering: str, x: jax.Array, w: jax.Array, g: jax.Array) -> Any:
        def of(x: jax.Array, w: jax.Array) -> jax.Array:
            options: dict[str, Any] = {"strides": layer.strides, "padding": layer.padding}
            return conv.conv2d(x, w, lowering=lowering, **options)

        value, backward = jax.vjp(of, x, w)
        return value, backward(g)

    def make() -> tuple[Any, ...]:
        x, g = noise.standard(layer.x, dtype, 1), noise.standard(layer.y, dtype, 3)
        return x, noise.standard(layer.w, dtype, 2), g

    forms = {name: functools.partial(pulled, name) for name in conv.LOWERINGS}
    sides = "x".join(map(str, layer.x))
    subject = f"conv2d, {layer.name} of {sides}, {dtype}"
    # A value sums over a window, the weights' gradient over all images and places.
    window, places = math.prod(layer.w), math.prod(layer.y[:-1])
    terms = max(window // min(layer.w[-2:]), places)
    return Comparison(subject, forms, forms["xla"], make, terms)


def exact(comparison: Comparison, given: tuple[Any, ...]) -> Any:
    """The compiler's own operation in float32, with products in full precision."""

    def widened(leaf: Any) -> Any:
        is_floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(jnp.float32) if is_floating else leaf

    wide = jax.tree.map(widened, given)
    with jax.default_matmul_precision("highest"):
        return jax.jit(comparison.own)(*wide)


def off(found: Any, expected: Any) -> float:
    """The greatest difference of any value, over the greatest of its array."""
    shares = []
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for mine, theirs in pairs:
        difference = jnp.abs(mine.astype(jnp.float32) - theirs.astype(jnp.float32)).max()
        shares.append(difference / jnp.maximum(jnp.abs(theirs).max(), 1e-30))
    # max() of Python would pass over one that is no number.
    return float(jnp.stack(shares).max())
