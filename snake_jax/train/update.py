"""The update of what trains: the method's correction, clipping, rule. One for all models.

A *client* is what a method has its nodes do beside the plain step: FedProx pulls to the weights
as received, SCAFFOLD corrects every gradient by two control variates. It is four pure functions, so
that a method which needs one is still one file (`snake_jax.algorithms`).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from snake_jax.params import Params, PyTree
from snake_jax.train.optimizers import OptimizerStates, apply_updates


class Client(NamedTuple):
    """What a method has a node do beside the plain step.

    Attributes:
      memory: `params -> memory`, what a node remembers between its visits, at the start of a run;
        params are all that may train. A tree of arrays, `{}` where it remembers nothing.
      given: `(shared, memory, layers) -> given`: what every step of a visit reads, from what the
        server tells all nodes and what this one remembers; `layers` are the names of what trains.
      correct: `(gradients, trainable, received, given) -> gradients`, inside every step, before the
        norm is clipped. All are `{layer: subtree}` of what trains, but `given`.
      finish: `(memory, shared, received, trained, steps, learning_rate) -> (memory, report)` after
        a visit: what the node remembers from now on, and what it tells the server.
      needs_received: whether `correct` or `finish` reads the trained layers as they were received.
    """

    memory: Callable[[Params], PyTree]
    given: Callable[[PyTree, PyTree, tuple[str, ...]], PyTree]
    correct: Callable[[Params, Params, Params, PyTree], Params]
    finish: Callable[[PyTree, PyTree, Params, Params, int, float], tuple[PyTree, PyTree]]
    needs_received: bool = True


class Rule(NamedTuple):
    """How gradients become an update.

    Attributes:
      rule: update rule without learning rate (`optimizers.update_rule`).
      clip_norm: greatest norm of the gradients of what trains; 0: no clipping.
      parties: groups of layers whose gradients are clipped apart, as each party knows its own only;
        empty: one group.
      client: the method's, or None.
    """

    rule: optax.GradientTransformation
    clip_norm: float
    parties: tuple[tuple[str, ...], ...] = ()
    client: Client | None = None


def updated(
    how: Rule,
    gradients: Params,
    trainable: Params,
    states: OptimizerStates,
    received: Params,
    given: PyTree,
    learning_rate: jax.Array,
    layer_names: Sequence[str],
) -> tuple[Params, OptimizerStates]:
    """One update of what trains.

    Args:
      how: see `Rule`.
      gradients: `{layer: subtree}` of the trained layers.
      trainable: the same layers, float32.
      states: `{layer: state}` of the same.
      received: the same as the node got them, where the client needs that; else `{}`.
      given: see `Client.given`; `{}` without a client.
      learning_rate: scalar.
      layer_names: the order that optimizer states are written in.
    """
    if how.client is not None:
        gradients = how.client.correct(gradients, trainable, received, given)
    return apply_updates(
        how.rule,
        how.clip_norm,
        learning_rate,
        gradients,
        states,
        trainable,
        layer_names,
        how.parties,
    )


def all_finite(tree: Any) -> jax.Array:
    """Whether every number of a tree is finite: a scalar bool."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
