"""Gradients over a cut model: at every cut an activation passes up and a gradient down.

`split_gradients` is Split Learning's step (Gupta and Raskar, "Distributed learning of deep neural
network over multiple agents", JNCA 2018, Algorithms 1 and 2) for any number of cuts; it gives the
full model's gradients. `local_loss_gradients` is Accelerated FL's (Han et al., "Accelerating
Federated Learning with Split Learning on Locally Generated Losses", ICML FL workshop 2021): no
gradient comes back over the cut, since an auxiliary head gives the lower part a loss of its own.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import jax

from snake_jax.models.layered import Layer
from snake_jax.params import Params, select
from snake_jax.training.image_step import ImageBatch, LocalStep, task_loss
from snake_jax.training.update import Gradients, Objective, differentiated

AUXILIARY = "auxiliary"


def split_gradients(cuts: tuple[int, ...]) -> Callable[[LocalStep], Gradients]:
    """The gradients of a model cut before the layers at these indices; all layers train.

    Every segment is differentiated by itself. Segment s maps `x[s]` `[B, ...]` and its parameters
    `p[s]` to `x[s + 1]`; given g[s + 1] = dL/dx[s + 1] it gives, as the chain rule says,

        dL/dp[s] = (d x[s + 1] / d p[s])^T g[s + 1]       stays with its party
        g[s]     = (d x[s + 1] / d x[s])^T g[s + 1]       is sent to the party below
    """

    def of_step(step: LocalStep) -> Gradients:
        names = step.model.layer_names
        segments = list(pairwise((0, *cuts, len(names))))

        def gradients(
            trainable: Params, frozen: Params, received: Params, batch: ImageBatch, key: jax.Array
        ) -> tuple[Params, jax.Array]:
            del frozen, received
            # Up: each party hands its output to the next, and keeps how to pull a gradient back.
            x = batch.x
            pulls = []
            for start, stop in segments:
                run = partial(_run_segment, step, key, start, stop)
                x, pull = jax.vjp(run, select(trainable, names[start:stop]), x)
                pulls.append(pull)

            # Down: each hands the gradient of its input to the one below.
            task, gradient = jax.value_and_grad(task_loss)(x, batch)
            found: Params = {}
            for pull in reversed(pulls):
                segment, gradient = pull(gradient)
                found |= segment
            return found, task * batch.divisor

        return gradients

    return of_step


def _run_segment(
    step: LocalStep, key: jax.Array, start: int, stop: int, params: Params, x: jax.Array
) -> jax.Array:
    """Layers `start` to `stop`, what is differentiated last."""
    return step.run(params, x, key, start, stop)


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
        return lower + upper, upper * batch.divisor

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
