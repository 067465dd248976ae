"""A model as an ordered sequence of named layers.

Its parameters are a dict from layer name to subtree.

Everything else in the project is said over that order: an assignment is a tuple of layer names, a
split point an index, a message between nodes a sub-dict of the parameters.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

from snake_jax.errors import UserError
from snake_jax.params import Params, PyTree


class Layer(NamedTuple):
    """One named layer.

    Attributes:
      name: its key in the parameter dict.
      init: `(key, x) -> params`; x is a `jax.ShapeDtypeStruct` of a batch.
      apply: `(params, x, train, key) -> y`; `key` is None where nothing is random.
    """

    name: str
    init: Callable[[jax.Array, jax.ShapeDtypeStruct], PyTree]
    apply: Callable[[PyTree, jax.Array, bool, jax.Array | None], jax.Array]


def unchanged(subtree: PyTree) -> PyTree:
    """A subtree as it is stored."""
    return subtree


class LayeredModel(NamedTuple):
    """An ordered sequence of layers.

    Attributes:
      name: for people.
      layers: in order of the forward pass.
      input_shape: of one example, without the batch: `(H, W, C)`.
      stochastic: whether training draws random numbers (dropout).
    """

    name: str
    layers: tuple[Layer, ...]
    input_shape: tuple[int, ...]
    stochastic: bool = False

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The order."""
        return tuple(layer.name for layer in self.layers)

    def output_sizes(self) -> tuple[int, ...]:
        """Numbers in each layer's output for one example."""
        return _output_sizes(self)

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters `{layer: subtree}`.

        A layer's values depend on the key and its place in the order alone.
        """
        x = jax.ShapeDtypeStruct((1, *self.input_shape), np.float32)
        params = {}
        for index, layer in enumerate(self.layers):
            subtree = layer.init(jax.random.fold_in(key, index), x)
            params[layer.name] = subtree

            # The next layer's input as a shape: nothing is computed.
            def output(subtree: PyTree, x: jax.Array, layer: Layer = layer) -> jax.Array:
                return layer.apply(subtree, x, False, None)

            x = jax.eval_shape(output, subtree, x)
        return params

    def apply(
        self,
        params: Params,
        x: jax.Array,
        start: int = 0,
        stop: int | None = None,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        prepare: Callable[[PyTree], PyTree] = unchanged,
    ) -> jax.Array:
        """Runs layers `start` to `stop` (exclusive; None: to the end) of the order.

        Args:
          params: at least the subtrees of these layers.
          x: `[B, ...]`, the input of layer `start`.
          start: the first layer's index.
          stop: the index after the last layer's.
          train: whether dropout is active; then `key` is needed if the model is stochastic.
          key: a layer draws from it by its place in the order, so any slicing draws the same.
          prepare: turns a stored subtree into the one computed with, layer by layer
            (dequantization, casts).

        Returns:
          `[B, ...]`, the output of layer `stop - 1`.
        """
        chosen = range(len(self.layers))[start:stop]
        for index in chosen:
            layer = self.layers[index]
            # By the place among all layers, not among those chosen.
            layer_key = None
            if key is not None:
                layer_key = jax.random.fold_in(key, index)
            weights = prepare(params[layer.name])
            x = layer.apply(weights, x, train, layer_key)
        return x


def drawn(model: LayeredModel, key: jax.Array) -> Params:
    """`model.init(key)`, of a key that is known, by the operations that make parameters alone.

    A model is initialised by running it once, for shapes. What parameters do not need of that is
    not computed here, nor traced again where `shapes` did so.
    """
    traced = _traced(model, str(jax.random.key_impl(key)))
    leaves = core.jaxpr_as_fun(traced.program)(key)
    return jax.tree.unflatten(jax.tree.structure(traced.shapes), leaves)


def shapes(model: LayeredModel) -> Params:
    """The shapes of `model.init`'s parameters."""
    return dict(_traced(model, str(jax.config.values["jax_default_prng_impl"])).shapes)


class _Traced(NamedTuple):
    """How a model is initialised.

    Attributes:
      program: from a key to the leaves of the parameters.
      shapes: of the parameters.
    """

    program: core.ClosedJaxpr
    shapes: Params


@functools.lru_cache(maxsize=8)
def _traced(model: LayeredModel, impl: str) -> _Traced:
    """See `drawn`.

    Args:
      model: the network.
      impl: of the keys.
    """
    like = jax.eval_shape(functools.partial(jax.random.key, impl=impl), 0)
    program, shapes = jax.make_jaxpr(model.init, return_shape=True)(like)
    needed = [True for _ in program.jaxpr.outvars]
    used, _ = partial_eval.dce_jaxpr(program.jaxpr, needed, instantiate=True)
    return _Traced(core.ClosedJaxpr(used, program.consts), cast(Params, shapes))


@functools.lru_cache(maxsize=8)
def _output_sizes(model: LayeredModel) -> tuple[int, ...]:
    """Of one example, from shapes alone."""
    x = jax.ShapeDtypeStruct((1, *model.input_shape), np.float32)
    params = shapes(model)
    found = []
    for index in range(len(model.layers)):
        layer = functools.partial(model.apply, start=index, stop=index + 1)
        x = jax.eval_shape(layer, params, x)
        found.append(math.prod(x.shape))
    return tuple(found)


def resolve_layers(flag: str, text: str, layer_names: tuple[str, ...]) -> tuple[str, ...]:
    """Layer names from a flag's text, in model order.

    Args:
      flag: the flag's name, for messages.
      text: names, `first`, `last`, `all` or `none`, comma-separated.
      layer_names: those of the model, in order.

    Raises:
      UserError: a name is not a layer of the model.
    """
    # A word stands for one layer, or for several.
    words = [word.strip() for word in text.split(",")]
    special = {
        "first": {layer_names[0]},
        "last": {layer_names[-1]},
        "all": set(layer_names),
        "none": set(),
    }
    named: set[str] = set()
    for word in words:
        if word not in special and word not in layer_names:
            raise UserError(
                f"--{flag}={text}: no layer {word or 'without a name'}; say none, or of "
                f"{', '.join(layer_names)}"
            )
        named |= special.get(word, {word})

    # In the model's order, whatever the text's was.
    return tuple(name for name in layer_names if name in named)
