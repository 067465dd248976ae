"""One step of training, for every kind of model: gradients, correction, clipping, rule.

What a model and a loss are is an *objective*; how its gradients come about is a function of their
own, since over a cut model they are made part by part (`snake_jax.training.split`). From there on a
network for images and a language model are alike, and this is written once.

A *client* is what a method has its nodes do beside the plain step: FedProx pulls to the weights
as received, SCAFFOLD corrects every gradient by two control variates. It is four pure functions, so
that a method which needs one is still one file (`snake_jax.algorithms`).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from snake_jax.params import Params, PyTree
from snake_jax.training.optimizers import OptimizerStates, apply_updates


class Client(NamedTuple):
    """What a method has a node do beside the plain step.

    What trains is named by layer, but inside a step of language models: there by role, so that one
    program serves all blocks. A dict in `given` whose keys are just the names of what trains is
    renamed with it.

    Attributes:
      memory: `params -> memory`, what a node remembers between its visits, at the start of a run;
        params are all that may train. A tree of arrays, `{}` where it remembers nothing.
      given: `(shared, memory, layers) -> given`: what every step of a visit reads, from what the
        server tells all nodes and what this one remembers; `layers` are the names of what trains.
      correct: `(gradients, trainable, received, given) -> gradients`, inside every step, before the
        norm is clipped. All are `{layer: subtree}` of what trains, but `given`.
      finish: `(memory, shared, received, trained, steps, learning_rate) -> (memory, report)` after
        a visit: what the node remembers from now on, and what it tells the server; of unlike
        learning rates the mean.
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


class EpochStats(NamedTuple):
    """What an epoch, or a part of it, came to. Examples of language models are tokens.

    Attributes:
      loss_sum: scalar, of the examples' task losses (without distillation).
      examples: scalar, how many there were that are no padding.
      finite: scalar bool, whether all results are finite.
      hits: scalar, how many examples were told right as they were passed; None: not counted.
    """

    loss_sum: jax.Array
    examples: jax.Array
    finite: jax.Array
    hits: jax.Array | None = None


Objective = Callable[[Params, Any, Params, Any, jax.Array], tuple[jax.Array, jax.Array]]
"""`(trainable, frozen, received, part, key) -> (loss, loss_sum)` of a part of a batch: what is
differentiated, the mean over all of the batch, and the sum of the part's task losses.

A part (`image_step.ImageBatch`, `text_step.TextBatch`) has a `weight` of each example or token, 0
for padding, and a `total`: the weight of the whole batch, at least 1, which the mean divides by.
"""

Gradients = Callable[[Params, Any, Params, Any, jax.Array], tuple[Params, jax.Array]]
"""`(trainable, frozen, received, part, key) -> (gradients, loss_sum)`: see `Objective`."""


def differentiated(objective: Objective) -> Gradients:
    """The gradients of an objective on one node that holds all of the model."""
    both = jax.value_and_grad(objective, has_aux=True)

    def gradients(
        trainable: Params, frozen: Any, received: Params, part: Any, key: jax.Array
    ) -> tuple[Params, jax.Array]:
        (_, loss_sum), found = both(trainable, frozen, received, part, key)
        return found, loss_sum

    return gradients


def summed(
    gradients: Gradients,
    trainable: Params,
    frozen: Any,
    received: Params,
    batch: Any,
    key: jax.Array,
) -> tuple[Params, jax.Array]:
    """Gradients and loss of a batch `[A, ...]` whose parts are passed one after the other.

    Args:
      gradients: of a part.
      trainable: `{layer: subtree}` to differentiate.
      frozen: what else the objective reads.
      received: what trains as it was received, or `{}`.
      batch: the parts of one batch, of which `total` is set here.
      key: each part draws from one of its own.

    Returns:
      Those of the batch passed at once, but for rounding. With w the weights, the loss of a batch
      is sum(w * loss) / sum(w); each part divides its sum by the whole batch's `total`, so that
      losses and gradients of the parts only have to be added.
    """
    total = jnp.maximum(batch.weight.sum(), 1.0)
    count = batch.weight.shape[0]

    def of_part(part: Any, key: jax.Array) -> tuple[Params, jax.Array]:
        return gradients(trainable, frozen, received, part._replace(total=total), key)

    def add_part(carry: Any, inputs: Any) -> tuple[Any, None]:
        found, loss_sum = carry
        more, loss_more = of_part(*inputs)
        both = jax.tree.map(jnp.add, found, more)
        return (both, loss_sum + loss_more), None

    def first(leaf: jax.Array) -> jax.Array:
        return leaf[0]

    def rest(leaf: jax.Array) -> jax.Array:
        return leaf[1:]

    # The first part gives the sum its place, so that one part alone is no loop.
    parts = (batch, jax.random.split(key, count))
    carry = of_part(*jax.tree.map(first, parts))
    if count > 1:
        carry, _ = lax.scan(add_part, carry, jax.tree.map(rest, parts))
    return carry


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

    Returns:
      What trains, and its states, after the update.
    """
    # The method's correction comes before the norm is clipped: it is part of the gradient.
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
    of_leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(of_leaves).all()
