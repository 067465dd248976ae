"""Any Flax model as a layered model: give its stages, in order, with names.

Linen stages are modules; NNX stages are factories that take `nnx.Rngs`. A stage that names a
parameter `train` (or `deterministic`) in its call is told which it is. Stages keep parameters only:
state such as batch statistics has no meaning when layers train apart on unlike data, and is
refused.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
from flax import nnx

from snake_jax.errors import UserError
from snake_jax.models.layered import Layer, LayeredModel
from snake_jax.params import PyTree


def from_linen(
    name: str,
    stages: Sequence[tuple[str, nn.Module]],
    input_shape: tuple[int, ...],
    *,
    stochastic: bool = False,
) -> LayeredModel:
    """A layered model of Linen modules.

    Args:
      name: for people.
      stages: `(layer name, module)` in order of the forward pass.
      input_shape: of one example, without the batch.
      stochastic: whether a stage draws random numbers in training (dropout); if not, stages are
        given no key.

    Raises:
      UserError: at `init`, a stage keeps other collections than `params`; at once, two stages share
        a name.
    """
    layers = tuple(linen_layer(stage, module) for stage, module in stages)
    return _layered(name, layers, input_shape, stochastic)


def from_nnx(
    name: str,
    stages: Sequence[tuple[str, Callable[[nnx.Rngs], nnx.Module]]],
    input_shape: tuple[int, ...],
) -> LayeredModel:
    """A layered model of NNX modules.

    Args:
      name: for people.
      stages: `(layer name, factory)` in order of the forward pass; a factory makes the module from
        `nnx.Rngs`.
      input_shape: of one example, without the batch.

    Raises:
      UserError: a stage keeps variables other than parameters and random streams, or two stages
        share a name.
    """
    templates = [
        (stage, factory, nnx.eval_shape(lambda f=factory: f(nnx.Rngs(0))))
        for stage, factory in stages
    ]
    layers = tuple(_nnx_layer(*template) for template in templates)
    stochastic = any(jax.tree.leaves(nnx.state(module, nnx.RngState)) for _, _, module in templates)
    return _layered(name, layers, input_shape, stochastic)


def _layered(
    name: str, layers: tuple[Layer, ...], input_shape: tuple[int, ...], stochastic: bool
) -> LayeredModel:
    names = [layer.name for layer in layers]
    if len(set(names)) < len(names):
        raise UserError(f"model {name}: layer names must differ, got {', '.join(names)}")
    return LayeredModel(name, layers, tuple(input_shape), stochastic)


def _mode_argument(call: Callable, train: bool) -> dict[str, Any]:
    """The keyword that tells a stage whether it trains, if it takes one."""
    parameters = inspect.signature(call).parameters
    if "train" in parameters:
        return {"train": train}
    return {"deterministic": not train} if "deterministic" in parameters else {}


def linen_layer(name: str, module: nn.Module) -> Layer:
    """A Linen module as one named layer."""

    def init(key: jax.Array, x: jax.ShapeDtypeStruct) -> PyTree:
        variables = module.lazy_init(key, x, **_mode_argument(module.__call__, False))
        _refuse_state(name, set(variables) - {"params"})
        return variables.get("params", {})

    def apply(params: PyTree, x: jax.Array, train: bool, key: jax.Array | None) -> jax.Array:
        rngs = {"dropout": key} if train and key is not None else None
        return cast(
            jax.Array,
            module.apply(
                {"params": params}, x, rngs=rngs, **_mode_argument(module.__call__, train)
            ),
        )

    return Layer(name, init, apply)


def _nnx_layer(name: str, factory: Callable[[nnx.Rngs], nnx.Module], template: nnx.Module) -> Layer:
    graph, *states = nnx.split(template, nnx.Param, nnx.RngState, ...)
    params_template, _, rest = states
    _refuse_state(name, {variable.type.__name__ for _, variable in nnx.to_flat_state(rest)})

    def init(key: jax.Array, x: jax.ShapeDtypeStruct) -> PyTree:
        return nnx.to_pure_dict(nnx.state(factory(nnx.Rngs(key)), nnx.Param))

    def apply(params: PyTree, x: jax.Array, train: bool, key: jax.Array | None) -> jax.Array:
        state = nnx.clone(params_template)
        nnx.replace_by_pure_dict(state, params)
        streams = nnx.state(
            factory(nnx.Rngs(jax.random.key(0) if key is None else key)), nnx.RngState
        )
        module = nnx.merge(graph, state, streams)
        module.train() if train and key is not None else module.eval()
        return module(x, **_mode_argument(module.__call__, train))

    return Layer(name, init, apply)


def _refuse_state(name: str, kinds: set[str]) -> None:
    if kinds:
        raise UserError(
            f"layer {name} keeps state besides its parameters ({', '.join(sorted(kinds))}); "
            "use a normalisation without running statistics (GroupNorm, LayerNorm)"
        )
