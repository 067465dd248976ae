"""The proximal term of FedProx, as what a node does beside the plain step of any method.

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, equation 2: a node
minimises its loss plus `mu / 2 |w - w_received|^2`. The gradient of that term is
`mu (w - w_received)`, which is added to the gradient of every step; mu is `--proximal`.
"""

import functools

import jax

from snake_jax.config import RunConfig
from snake_jax.params import LayerNames, Params, PyTree
from snake_jax.training.update import Client


def proximal_client(config: RunConfig) -> Client | None:
    """The client of the configuration's mu; None where it is 0."""
    # Without the term a step needs no copy of what was received, and none is made.
    if not config.proximal:
        return None
    return Client(
        memory=_nothing_remembered,
        given=_nothing_given,
        correct=functools.partial(_pulled, config.proximal),
        finish=_nothing_told,
    )


def _pulled(
    mu: float, gradients: Params, trainable: Params, received: Params, given: PyTree
) -> Params:
    """Gradients of the loss with its proximal term."""
    del given

    def pulled(gradient: jax.Array, w: jax.Array, old: jax.Array) -> jax.Array:
        return gradient + mu * (w - old)

    return jax.tree.map(pulled, gradients, trainable, received)


def _nothing_remembered(params: Params) -> PyTree:
    del params
    return {}


def _nothing_given(shared: PyTree, memory: PyTree, layers: LayerNames) -> PyTree:
    del shared, memory, layers
    return {}


def _nothing_told(
    memory: PyTree,
    shared: PyTree,
    received: Params,
    trained: Params,
    steps: int,
    learning_rate: float,
) -> tuple[PyTree, PyTree]:
    del shared, received, trained, steps, learning_rate
    return memory, {}
