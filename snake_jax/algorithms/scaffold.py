"""SCAFFOLD: federated averaging whose nodes correct every gradient by what they drift.

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020,
Algorithm 1, with option II for the control variates and a server step of 1. A node i keeps a
control variate c_i, the server their mean c over all N nodes, both zero at first. In a round with
the received weights x a node takes K steps of learning rate eta,

    y <- y - eta (gradient - c_i + c),

and then, since the mean of its K corrected gradients is (x - y) / (K eta),

    c_i' = c_i - c + (x - y) / (K eta).

It hands in y and c_i' - c_i. The server takes the plain mean of the S nodes of the round,
x <- mean(y) and c <- c + S / N mean(c_i' - c_i): control variates travel beside all weights.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax.algorithms.base import NETWORK_FLAGS, Algorithm, Merge, every_cycle
from snake_jax.algorithms.pool import POOL_FLAGS
from snake_jax.algorithms.schedule import Plan, whole_side_by_side
from snake_jax.algorithms.traffic import STAR
from snake_jax.algorithms.visits import Outcome, Round
from snake_jax.config import RunConfig
from snake_jax.errors import UserError
from snake_jax.params import LayerNames, Params, PyTree, select
from snake_jax.training.update import Client


class Means(NamedTuple):
    """Running means over the nodes of a round: of their weights, and of what c_i changed by."""

    layers: Params
    change: Params
    nodes: int


def _zeros(params: Params) -> Params:
    return jax.tree.map(jnp.zeros_like, params)


def _server_control(config: RunConfig, params: Params) -> Params:
    """c, zero at first."""
    del config
    return _zeros(params)


def _control_itself(control: PyTree) -> PyTree:
    """The server tells all nodes of a round c."""
    return control


def _difference(control: PyTree, own: PyTree, layers: LayerNames) -> PyTree:
    """c - c_i of the trained layers, which every step adds to its gradient."""
    return jax.tree.map(jnp.subtract, select(control, layers), select(own, layers))


def _corrected(gradients: Params, trainable: Params, received: Params, given: PyTree) -> Params:
    """The gradient with c - c_i."""
    del trainable, received
    return jax.tree.map(jnp.add, gradients, given)


def _new_control(
    own: PyTree,
    control: PyTree,
    received: Params,
    trained: Params,
    steps: int,
    learning_rate: float,
) -> tuple[PyTree, PyTree]:
    """c_i' by option II, and c_i' - c_i; a visit without a step changes nothing."""
    if not steps:
        return own, _zeros(trained)
    # (x - y) / (K eta) - c is what c_i changes by; layers that did not train keep theirs.
    per_step = np.float32(1 / (steps * learning_rate))

    def changed(c: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        return per_step * (x - y) - c

    change = jax.tree.map(changed, select(control, trained), received, trained)
    new = jax.tree.map(jnp.add, select(own, trained), change)
    return {**own, **new}, change


def _client(config: RunConfig) -> Client:
    del config
    return Client(_zeros, _difference, _corrected, _new_control)


def _no_means(plan: Plan, visits: Round, params: Params, control: PyTree) -> Means:
    del plan, visits, params, control
    return Means({}, {}, 0)


def _add(means: Means, outcome: Outcome) -> Means:
    """The means with one node more: `m + (w - m) / nodes`."""
    if not means.nodes:
        return Means(outcome.layers, outcome.report, 1)
    nodes = means.nodes + 1
    share = np.float32(1 / nodes)

    def moved(m: jax.Array, w: jax.Array) -> jax.Array:
        return m + share * (w - m)

    layers = jax.tree.map(moved, means.layers, outcome.layers)
    change = jax.tree.map(moved, means.change, outcome.report)
    return Means(layers, change, nodes)


def _finish(
    plan: Plan, visits: Round, params: Params, control: PyTree, means: Means
) -> tuple[Params, PyTree]:
    """The plain mean of the weights, and c moved by S / N of the mean change."""
    del visits
    if not means.nodes:
        return params, control
    # S / N: nodes that were not in the round have not changed theirs.
    share = np.float32(means.nodes / plan.config.nodes)

    def moved(c: jax.Array, change: jax.Array) -> jax.Array:
        return c + share * change

    control = jax.tree.map(moved, control, means.change)
    return {**params, **means.layers}, control


def _check(config: RunConfig) -> None:
    """Option II divides by the steps times the learning rate.

    Raises:
      UserError: the rule is not plain gradient descent.
    """
    if config.optimizer != "sgd" or config.momentum or config.clip_norm or config.weight_decay:
        raise UserError(
            "--algorithm=scaffold takes a node's mean gradient from how far its weights moved, "
            "which holds for plain steps only: set --optimizer=sgd --momentum=0 --clip_norm=0 "
            "--weight_decay=0"
        )


SCAFFOLD = Algorithm(
    name="scaffold",
    rounds=every_cycle(whole_side_by_side),
    cycle=whole_side_by_side,
    traffic=STAR,
    merge=Merge(_no_means, _add, _finish),
    memory=_server_control,
    shared=_control_itself,
    client=_client,
    companions=("control",),
    unit="round",
    check=_check,
    flags=NETWORK_FLAGS | POOL_FLAGS | {"nodes_per_round"},
)
