"""Update rules from optax, one state for each trained layer.

Masks from `layers.layer_mask` say which subtree a rule sees; everything else is an
`optax.MaskedNode`, which holds no array. So frozen layers have no optimizer state and no update
buffer, a layer's state has one structure whatever else trains beside it, and it can travel with the
layer. The learning rate is an argument of the step, not part of the rule.
"""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from snake_jax.params import Params, layer_mask

OptimizerStates = dict[str, Any]  # layer name -> optax state


def update_rule(name: str, *, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """The rule without learning rate and sign.

    Args:
      name: sgd (heavy ball), adam, adamw (decoupled decay) or rmsprop.
      momentum: of sgd and rmsprop.
      weight_decay: acts on kernels (arrays of two and more dimensions), not on biases and scales.

    Returns:
      A chain. Where the decay stands in it makes the difference: before the rule it is part of the
      gradient, after it (adamw) it is not scaled by the second moment ("Decoupled Weight Decay
      Regularization", arXiv 1711.05101, algorithm 2).
    """
    # What is asked for not at all is left out of the rule, with its state.
    decay = optax.identity()
    if weight_decay:
        decay = optax.add_decayed_weights(weight_decay, mask=_kernels)
    trace = optax.identity()
    if momentum:
        trace = optax.trace(momentum)
    rules = {
        "sgd": (decay, trace),
        "adam": (decay, optax.scale_by_adam()),
        "adamw": (optax.scale_by_adam(), decay),
        "rmsprop": (decay, optax.scale_by_rms(), trace),
    }
    return optax.chain(*rules[name])


def init_states(
    rule: optax.GradientTransformation, trainable: Params, layer_names: Sequence[str]
) -> OptimizerStates:
    """Fresh states `{layer: state}` of the trained layers."""
    sparse = _sparse(trainable, layer_names)
    states = {}
    for name in trainable:
        states[name] = _masked(rule, name, layer_names).init(sparse)
    return states


def renamed(
    state: Any, order: Sequence[str], name: str, new_order: Sequence[str], new_name: str
) -> Any:
    """A layer's state under another name, among other layers.

    A state holds dicts with every layer's name, all empty but its own (`_sparse`). In a step of
    language models these are roles, outside of it blocks.

    Args:
      state: of the layer `name`.
      order: the names in it.
      name: the layer's in it.
      new_order: the names that the result has.
      new_name: the layer's among them.
    """

    def names_layers(node: Any) -> bool:
        return isinstance(node, dict) and node.keys() == set(order)

    def renamed_node(node: Any) -> Any:
        if not names_layers(node):
            return node
        return _sparse({new_name: node[name]}, new_order)

    return jax.tree.map(renamed_node, state, is_leaf=names_layers)


def apply_updates(
    rule: optax.GradientTransformation,
    clip_norm: float,
    learning_rate: jax.Array,
    gradients: Params,
    states: OptimizerStates,
    trainable: Params,
    layer_names: Sequence[str],
    parties: Sequence[Sequence[str]] = (),
) -> tuple[Params, OptimizerStates]:
    """One update of the trained layers: gradients clipped together, then each layer's rule.

    Args:
      rule: from `update_rule`.
      clip_norm: greatest norm; 0: no clipping.
      learning_rate: scalar.
      gradients: `{layer: subtree}` of the trained layers.
      states: `{layer: state}` of the same.
      trainable: `{layer: subtree}` of the same.
      layer_names: the model's order.
      parties: groups of layers that are clipped apart; empty: all together.
    """
    if clip_norm:
        all_together = [tuple(gradients)]
        gradients = _clipped(gradients, clip_norm, parties or all_together)

    # Each layer's rule sees its own subtree alone and passes the others on, so that the updates of
    # all are complete after the last.
    updates = _sparse(gradients, layer_names)
    sparse = _sparse(trainable, layer_names)
    new_states = {}
    for name in trainable:
        own_rule = _masked(rule, name, layer_names)
        updates, new_states[name] = own_rule.update(updates, states[name], sparse)

    def step(update: jax.Array) -> jax.Array:
        return -learning_rate * update

    steps = {}
    for name in trainable:
        steps[name] = jax.tree.map(step, updates[name])
    return optax.apply_updates(trainable, steps), new_states


def _clipped(gradients: Params, norm: float, parties: Sequence[Sequence[str]]) -> Params:
    """The gradients of each group of layers, scaled down to this norm where theirs is greater."""
    clip = optax.clip_by_global_norm(norm)
    clipped: Params = {}
    for party in parties:
        group = {name: gradients[name] for name in party if name in gradients}
        scaled, _ = clip.update(group, optax.EmptyState())
        clipped |= scaled
    return clipped


def _masked(
    rule: optax.GradientTransformation, name: str, layer_names: Sequence[str]
) -> optax.GradientTransformation:
    """The rule for this layer alone; updates of the others pass as they are."""
    return optax.masked(rule, layer_mask(layer_names, (name,)))


def _sparse(subtrees: Params, layer_names: Sequence[str]) -> dict[str, Any]:
    """Every layer by name, in the model's order; those not given hold no array."""
    return {name: subtrees.get(name, optax.MaskedNode()) for name in layer_names}


def _kernels(params: Params) -> Any:
    """Of each array whether it decays: a tree of bool."""

    def is_kernel(array: jax.Array) -> bool:
        return array.ndim > 1

    return jax.tree.map(is_kernel, params)
