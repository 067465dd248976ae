"""The definition: the whole matrix dequantized, then a product; what every form computes."""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from snake_jax.kernels.dequantize import dense

if TYPE_CHECKING:
    import qwix


class LowRank(NamedTuple):
    """A second product that is added: narrow [M, r] times wide [r, F]."""

    narrow: jax.Array
    wide: jax.Array


class OfStack(NamedTuple):
    """One matrix of a stack of them that is left where it lies.

    Attributes:
      stack: `[L, ...]` arrays.
      at: a scalar, which one.
    """

    stack: "qwix.QArray"
    at: jax.Array

    @property
    def matrix(self) -> Any:
        """The matrix, as shapes."""

        def shape_of_one(stacked: jax.Array) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(stacked.shape[1:], stacked.dtype)

        return jax.tree.map(shape_of_one, self.stack)

    def cut_out(self) -> "qwix.QArray":
        """The matrix, as arrays."""

        def one(stacked: jax.Array) -> jax.Array:
            return lax.dynamic_index_in_dim(stacked, self.at, keepdims=False)

        return jax.tree.map(one, self.stack)


def matmul(
    x: jax.Array, weight: "qwix.QArray | OfStack", low_rank: LowRank | None, transposed: bool
) -> jax.Array:
    """x [M, C] times the weight [K, N] or its transpose, plus the low-rank product: [M, F].

    In x's dtype. C and F are K and N, transposed N and K. Sums are in float32, in float64 for
    float64 input.
    """
    if isinstance(weight, OfStack):
        weight = weight.cut_out()
    y = product(x, dense(weight, x.dtype), 1, 1 if transposed else 0)
    if low_rank is not None:
        # Rounded, since XLA writes it: in float32 that would be twice the bytes.
        y += product(low_rank.narrow, low_rank.wide, 1, 0).astype(x.dtype)
    return y.astype(x.dtype)


def product(left: jax.Array, right: jax.Array, left_axis: int, right_axis: int) -> jax.Array:
    """Contracts one axis of each of two matrices; the sums are not rounded back."""
    wide = jnp.promote_types(left.dtype, jnp.float32)
    contracted = (((left_axis,), (right_axis,)), ((), ()))
    return lax.dot_general(left, right, contracted, preferred_element_type=wide)
