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
    """
    decay = (
        optax.add_decayed_weights(weight_decay, mask=_kernels) if weight_decay else optax.identity()
    )
    trace = optax.trace(momentum) if momentum else optax.identity()
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
    return {name: _masked(rule, name, layer_names).init(sparse) for name in trainable}


def renamed(
    state: Any, order: Sequence[str], name: str, new_order: Sequence[str], new_name: str
) -> Any:
    """The state of layer `name` among the layers of `order` as that of `new_name` among those of
    `new_order`.
    """

    def names_layers(node: Any) -> bool:
        return isinstance(node, dict) and node.keys() == set(order)

    def one(node: Any) -> Any:
        return _sparse({new_name: node[name]}, new_order) if names_layers(node) else node

    return jax.tree.map(one, state, is_leaf=names_layers)


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
    """One update of the trained layers: clip by the norm of their gradients together, then each
    layer's rule.

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
        gradients = _clipped(gradients, clip_norm, parties or [tuple(gradients)])
    updates, sparse = _sparse(gradients, layer_names), _sparse(trainable, layer_names)
    new_states = {}
    for name in trainable:
        updates, new_states[name] = _masked(rule, name, layer_names).update(
            updates, states[name], sparse
        )
    steps = {name: jax.tree.map(lambda u: -learning_rate * u, updates[name]) for name in trainable}
    return optax.apply_updates(trainable, steps), new_states


def _clipped(gradients: Params, norm: float, parties: Sequence[Sequence[str]]) -> Params:
    clip = optax.clip_by_global_norm(norm)
    groups = [{name: gradients[name] for name in party if name in gradients} for party in parties]
    clipped = [clip.update(group, optax.EmptyState())[0] for group in groups]
    return {name: subtree for group in clipped for name, subtree in group.items()}


def _masked(
    rule: optax.GradientTransformation, name: str, layer_names: Sequence[str]
) -> optax.GradientTransformation:
    return optax.masked(rule, layer_mask(layer_names, (name,)))


def _sparse(subtrees: Params, layer_names: Sequence[str]) -> dict[str, Any]:
    return {name: subtrees.get(name, optax.MaskedNode()) for name in layer_names}


def _kernels(params: Params) -> Any:
    return jax.tree.map(lambda w: w.ndim > 1, params)
