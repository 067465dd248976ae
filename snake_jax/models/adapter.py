"""Any Flax model as a layered model: give its stages, in order, with names.

Linen stages are modules; NNX stages are factories that take `nnx.Rngs`. A stage that names a
parameter `train` (or `deterministic`) in its call is told which it is. Stages keep parameters only:
state such as batch statistics has no meaning when layers train apart on unlike data, and is
refused.

A layer made here can be pickled where its module (its factory) can: what it holds besides are
functions of this file.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import flax.linen as nn
import jax

from snake_jax.errors import UserError
from snake_jax.models.layered import Layer, LayeredModel
from snake_jax.params import PyTree

if TYPE_CHECKING:
    from flax import nnx

# Makes an NNX module from its random streams.
Factory: TypeAlias = "Callable[[nnx.Rngs], nnx.Module]"


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
    stages: Sequence[tuple[str, Factory]],
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
    from flax import nnx

    layers: list[Layer] = []
    stochastic = False
    for stage, factory in stages:
        # The module's shapes alone: nothing is initialised here.
        template = nnx.eval_shape(lambda factory=factory: factory(nnx.Rngs(0)))
        layers.append(_nnx_layer(stage, factory, template))
        stochastic = stochastic or bool(jax.tree.leaves(nnx.state(template, nnx.RngState)))
    return _layered(name, tuple(layers), input_shape, stochastic)


def _layered(
    name: str, layers: tuple[Layer, ...], input_shape: tuple[int, ...], stochastic: bool
) -> LayeredModel:
    names = [layer.name for layer in layers]
    if len(set(names)) < len(names):
        raise UserError(f"model {name}: layer names must differ, got {', '.join(names)}")
    return LayeredModel(name, layers, tuple(input_shape), stochastic)


def _mode_argument(call: Callable, train: bool) -> dict[str, Any]:
    """The keyword that tells a stage whether it trains, if it takes one."""
    # Linen's layers say `deterministic`, most people's modules `train`.
    parameters = inspect.signature(call).parameters
    if "train" in parameters:
        return {"train": train}
    if "deterministic" in parameters:
        return {"deterministic": not train}
    return {}


def linen_layer(name: str, module: nn.Module) -> Layer:
    """A Linen module as one named layer."""
    init = functools.partial(_init_linen, name, module)
    return Layer(name, init, functools.partial(_apply_linen, module))


def _init_linen(name: str, module: nn.Module, key: jax.Array, x: jax.ShapeDtypeStruct) -> PyTree:
    """`Layer.init` of a Linen module."""
    variables = module.lazy_init(key, x, **_mode_argument(module.__call__, False))
    _refuse_state(name, set(variables) - {"params"})
    return variables.get("params", {})


def _apply_linen(
    module: nn.Module, params: PyTree, x: jax.Array, train: bool, key: jax.Array | None
) -> jax.Array:
    """`Layer.apply` of a Linen module."""
    rngs = None
    if train and key is not None:
        rngs = {"dropout": key}
    mode = _mode_argument(module.__call__, train)
    return cast(jax.Array, module.apply({"params": params}, x, rngs=rngs, **mode))


def _nnx_layer(name: str, factory: Factory, template: "nnx.Module") -> Layer:
    """An NNX module as one named layer, given its shapes."""
    from flax import nnx

    # What is neither a parameter nor a random stream would be lost between steps.
    graph, *states = nnx.split(template, nnx.Param, nnx.RngState, ...)
    params, _, rest = states
    kinds = {variable.type.__name__ for _, variable in nnx.to_flat_state(rest)}
    _refuse_state(name, kinds)
    init = functools.partial(_init_nnx, factory)
    return Layer(name, init, functools.partial(_apply_nnx, factory, graph, params))


def _init_nnx(factory: Factory, key: jax.Array, x: jax.ShapeDtypeStruct) -> PyTree:
    """`Layer.init` of an NNX module."""
    from flax import nnx

    module = factory(nnx.Rngs(key))
    params = nnx.state(module, nnx.Param)
    return nnx.to_pure_dict(params)


def _apply_nnx(
    factory: Factory,
    graph: "nnx.GraphDef",
    template: "nnx.State",
    params: PyTree,
    x: jax.Array,
    train: bool,
    key: jax.Array | None,
) -> jax.Array:
    """`Layer.apply` of an NNX module.

    Args:
      factory: makes the module.
      graph: the module without its variables.
      template: its parameters as shapes.
      params: their values, a dict.
      x: `[B, ...]`.
      train: whether dropout is active.
      key: what the module's random streams begin with; None where nothing is random.
    """
    from flax import nnx

    state = nnx.clone(template)
    nnx.replace_by_pure_dict(state, params)

    # Streams have to be there to merge the module, even where nothing draws from them.
    streams_key = jax.random.key(0) if key is None else key
    streams = nnx.state(factory(nnx.Rngs(streams_key)), nnx.RngState)
    module = nnx.merge(graph, state, streams)
    if train and key is not None:
        module.train()
    else:
        module.eval()
    return module(x, **_mode_argument(module.__call__, train))


def _refuse_state(name: str, kinds: set[str]) -> None:
    """Raises UserError where a stage keeps variables of these kinds beside its parameters."""
    if kinds:
        raise UserError(
            f"layer {name} keeps state besides its parameters ({', '.join(sorted(kinds))}); "
            "use a normalisation without running statistics (GroupNorm, LayerNorm)"
        )
