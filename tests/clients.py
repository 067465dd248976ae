"""Clients that several test files share."""

import jax
import jax.numpy as jnp

from snake_jax.params import select
from snake_jax.training.update import Client


def drift():
    """SCAFFOLD's arithmetic (arXiv 1910.06378, Algorithm 1, option II): gradients are corrected by
    the difference of the server's control variate and the node's, by layer.
    """

    def correct(gradients, trainable, received, given):
        del trainable, received
        assert gradients.keys() == given.keys()
        return jax.tree.map(jnp.add, gradients, given)

    def finish(memory, shared, received, trained, steps, learning_rate):
        old, server = select(memory, trained), select(shared, trained)
        new = jax.tree.map(
            lambda own, c, a, b: own - c + (a - b) / (steps * learning_rate),
            *(old, server, received, trained),
        )
        return {**memory, **new}, jax.tree.map(jnp.subtract, new, old)

    return Client(
        memory=lambda params: jax.tree.map(jnp.zeros_like, params),
        given=lambda shared, memory, layers: jax.tree.map(
            jnp.subtract, select(shared, layers), select(memory, layers)
        ),
        correct=correct,
        finish=finish,
    )
