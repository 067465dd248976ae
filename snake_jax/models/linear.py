"""What blocks of all language models are made of besides attention.

Linear layers with adapters beside them, tables, activations, dropout.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from snake_jax.kernels.quant_matmul import OfStack, quant_matmul

PyTree = Any


def _exact_gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


def _quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


# Under the names that Hugging Face gives them.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": _exact_gelu,
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "quick_gelu": _quick_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}


class Linear(nn.Module):
    """`x @ kernel + bias`, plus `(x @ a) @ b` where the collection `lora` has a pair for it.

    The pair is `{"a": [in, r], "b": [r, out]}`. Columns of adapters that are only read lie beside
    it as another product, `a_read` and `b_read`: see `snake_jax.training.adapter_columns`.

    The low-rank update of "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685,
    section 4.1); any scale is part of `b`. Weights are cast to the dtype of the activations; a
    kernel that is one of a stack is computed with as it is stored.
    """

    features: int
    use_bias: bool
    init_std: float = 0.02

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., in]` to `[..., out]`."""
        y = self._product(x)
        if self.has_variable("lora", "a_read"):
            a = jnp.asarray(self.get_variable("lora", "a_read")).astype(x.dtype)
            b = jnp.asarray(self.get_variable("lora", "b_read")).astype(x.dtype)
            y = y + (x @ a) @ b
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(x.dtype)
        return y

    def _product(self, x: jax.Array) -> jax.Array:
        """`[..., in]` to `[..., out]` without the bias."""
        adapter = None
        if self.has_variable("lora", "a"):
            a = jnp.asarray(self.get_variable("lora", "a"))
            b = jnp.asarray(self.get_variable("lora", "b"))
            adapter = (a, b)

        # One of a stack of quantized kernels stays where it lies: the product reads it there.
        stored: Any = self.get_variable("params", "kernel")
        if isinstance(stored, OfStack):
            return quant_matmul(x, stored, adapter)

        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(self.init_std), shape)
        y = x @ kernel.astype(x.dtype)
        if adapter is None:
            return y
        # First with a, [..., r]: a @ b would be as large as the kernel.
        a, b = adapter
        a = a.astype(x.dtype)
        b = b.astype(x.dtype)
        return y + (x @ a) @ b


def table_init(key: jax.Array, rows: int, features: int, std: float) -> dict[str, jax.Array]:
    """A fresh table, `{"embedding": [rows, features]}`."""
    return {"embedding": std * jax.random.normal(key, (rows, features))}


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout, whose mean is x; none without a key."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))
