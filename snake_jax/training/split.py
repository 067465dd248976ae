"""Gradients over a cut model: at every cut an activation passes up and a gradient down.

`cut_gradients` is Split Learning's step (Gupta and Raskar, "Distributed learning of deep neural
network over multiple agents", JNCA 2018, Algorithms 1 and 2) for any number of cuts, of images and
of text; it gives the full model's gradients. `local_loss_gradients` is Accelerated FL's (Han et
al., "Accelerating Federated Learning with Split Learning on Locally Generated Losses", ICML FL
workshop 2021): no gradient comes back over the cut, since an auxiliary head gives the lower part a
loss of its own.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from snake_jax.models.layered import Layer
from snake_jax.params import Params
from snake_jax.training.image_step import ImageBatch, LocalStep, sums_of, task_loss
from snake_jax.training.update import Gradients, Objective, differentiated

AUXILIARY = "auxiliary"

Step = TypeVar("Step")


class Cuttable(NamedTuple):
    """A model's layers as its step runs them, some of them at a time.

    Attributes:
      layers: how many there are.
      trained: `(trainable, start, stop) -> subtrees`, those of `trainable` that belong to layers
        `start` to `stop`.
      run: `(subtrees, frozen, part, key, x, start, stop, to_input) -> output` of layers `start` to
        `stop`: what trains in them, what does not, the part of a batch, a key, the output of layer
        `start - 1` (None for layer 0), and whether the gradient goes on to that.
      loss: `(subtrees, frozen, part, x) -> (loss, loss_sum)` of the last layer's output, see
        `update.Objective`; it is computed where the last layer lies.
      read_by_loss: what the loss itself reads, as the program calls it, and is differentiated in
        where it trains: an output matrix, whose product is never there as a whole.
    """

    layers: int
    trained: Callable[[Params, int, int], Params]
    run: Callable[
        [Params, Any, Any, jax.Array, jax.Array | None, int, int, bool],
        jax.Array,
    ]
    loss: Callable[[Params, Any, Any, jax.Array], tuple[jax.Array, jax.Array]]
    read_by_loss: tuple[str, ...] = ()


def image_cuttable(step: LocalStep) -> Cuttable:
    """The layers of a network for images, some of them at a time."""
    names = step.model.layer_names

    def trained(trainable: Params, start: int, stop: int) -> Params:
        return {name: trainable[name] for name in names[start:stop] if name in trainable}

    def run(
        own: Params,
        frozen: Params,
        batch: ImageBatch,
        key: jax.Array,
        x: jax.Array | None,
        start: int,
        stop: int,
        to_input: bool,
    ) -> jax.Array:
        del to_input
        entered = batch.x if x is None else x
        return step.run({**frozen, **own}, entered, key, start, stop)

    def loss(
        read: Params, frozen: Params, batch: ImageBatch, x: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        del read, frozen
        task = task_loss(x, batch)
        return task, sums_of(step, task, x, batch)

    return Cuttable(len(names), trained, run, loss)


def split_gradients(cuts: tuple[int, ...]) -> Callable[[LocalStep], Gradients]:
    """`cut_gradients` of a network for images."""
    return cut_gradients(cuts, image_cuttable)


def cut_gradients(
    cuts: tuple[int, ...], cuttable: Callable[[Step], Cuttable]
) -> Callable[[Step], Gradients]:
    """The gradients of a model cut before the layers at these indices, given its step.

    Every segment is differentiated by itself. Segment s maps `x[s]` `[B, ...]` and its parameters
    `p[s]` to `x[s + 1]`; given g[s + 1] = dL/dx[s + 1] it gives, as the chain rule says,

        dL/dp[s] = (d x[s + 1] / d p[s])^T g[s + 1]       stays with its party
        g[s]     = (d x[s + 1] / d x[s])^T g[s + 1]       is sent to the party below

    Only what trains is differentiated: where nothing below a cut does, nothing is sent over it.

    Args:
      cuts: in order, above 0.
      cuttable: the model of a step.
    """

    def of_step(step: Step) -> Gradients:
        model = cuttable(step)
        segments = list(pairwise((0, *cuts, model.layers)))

        def gradients(
            trainable: Params, frozen: Any, received: Params, part: Any, key: jax.Array
        ) -> tuple[Params, jax.Array]:
            del received
            # Up: each party hands its output to the next, and keeps how to pull a gradient back.
            x = None
            pulls = []
            for start, stop in segments:
                own = model.trained(trainable, start, stop)
                wanted = bool(model.trained(trainable, 0, start))
                segment = _Segment(model, start, stop, wanted)
                x, pull = segment.forward(own, frozen, part, key, x)
                pulls.append((pull, wanted, bool(own)))

            # At the end: the loss, which may read weights of its own.
            read = {name: trainable[name] for name in model.read_by_loss if name in trainable}
            of_both = jax.value_and_grad(model.loss, argnums=(0, 3), has_aux=True)
            (_, loss_sum), (to_read, gradient) = of_both(read, frozen, part, x)

            # Down: each hands the gradient of its input to the one below.
            found: Params = {}
            for pull, wanted, trains in reversed(pulls):
                if not (trains or wanted):
                    break
                pulled = pull(gradient)
                found |= pulled[0]
                gradient = pulled[-1]
            for name, more in to_read.items():
                # A table that a layer looks up in and the loss multiplies with has both gradients.
                found[name] = jax.tree.map(jnp.add, found[name], more) if name in found else more
            return {name: found[name] for name in trainable}, loss_sum

        return gradients

    return of_step


class _Segment(NamedTuple):
    """Layers `start` to `stop` of a model.

    Attributes:
      model: that is cut.
      start: index of the first layer.
      stop: the index after the last.
      wanted: whether something below trains, so that a gradient goes on.
    """

    model: Cuttable
    start: int
    stop: int
    wanted: bool

    def forward(
        self, own: Params, frozen: Any, part: Any, key: jax.Array, x: jax.Array | None
    ) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
        """The output, and the pullback of its gradient: to what trains and, if wanted, to `x`."""

        def of_both(own: Params, x: Any) -> Any:
            return self.model.run(own, frozen, part, key, x, self.start, self.stop, self.wanted)

        if self.wanted:
            return jax.vjp(of_both, own, x)
        return jax.vjp(lambda own: of_both(own, x), own)


def local_loss_objective(step: LocalStep, cut: int, auxiliary: Layer) -> Objective:
    """The sum of two losses of a model cut once, one for each part.

    The reported one is the upper part's. See `local_loss_gradients`.
    """

    def objective(
        trainable: Params, frozen: Params, received: Params, batch: ImageBatch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        del frozen, received
        # The lower part, with a head of its own.
        activations = step.run(trainable, batch.x, key, 0, cut)
        head = step.prepare(trainable[AUXILIARY])
        lower_logits = auxiliary.apply(head, activations, True, None)
        lower = task_loss(lower_logits, batch)

        # The upper part gets the activations and sends no gradient back.
        sent = jax.lax.stop_gradient(activations)
        upper_logits = step.run(trainable, sent, key, cut, None)
        upper = task_loss(upper_logits, batch)
        # Neither depends on the other's parameters, so one backward pass serves both.
        return lower + upper, sums_of(step, upper, upper_logits, batch)

    return objective


def local_loss_gradients(cut: int, auxiliary: Layer) -> Callable[[LocalStep], Gradients]:
    """The gradients of a model cut once, where both parts have a loss of their own.

    Args:
      cut: index of the upper part's first layer.
      auxiliary: the head on the lower part's output, `{AUXILIARY: subtree}` among the trained
        layers.
    """

    def of_step(step: LocalStep) -> Gradients:
        return differentiated(local_loss_objective(step, cut, auxiliary))

    return of_step
