"""Gradients over a cut model: what passes between the parties is an activation up and a gradient
down at every cut.

`split_gradients` is Split Learning's step (Gupta and Raskar, "Distributed learning of deep neural
network over multiple agents", JNCA 2018, Algorithms 1 and 2) for any number of cuts; it gives the
full model's gradients. `local_loss_gradients` is Accelerated FL's (Han et al., "Accelerating
Federated Learning with Split Learning on Locally Generated Losses", ICML FL workshop 2021): no
gradient comes back over the cut, since an auxiliary head gives the lower part a loss of its own.
"""

from collections.abc import Callable
from itertools import pairwise

import jax

from snake_jax.models.layered import Layer
from snake_jax.params import Params, select
from snake_jax.training.image_step import Batch, LocalStep, task_loss
from snake_jax.training.update import Gradients, Objective, differentiated

AUXILIARY = "auxiliary"


def split_gradients(cuts: tuple[int, ...]) -> Callable[[LocalStep], Gradients]:
    """The gradients of a model cut before the layers at these indices; all layers train.

    Every segment is differentiated by itself: given its input it gives its output, given its
    output's gradient it gives its parameters' and its input's.
    """

    def of_step(step: LocalStep) -> Gradients:
        names = step.model.layer_names
        segments = list(pairwise((0, *cuts, len(names))))

        def gradients(
            trainable: Params, frozen: Params, received: Params, batch: Batch, key: jax.Array
        ) -> tuple[Params, jax.Array]:
            del frozen, received
            # Up: each party hands its output to the next, and keeps how to pull a gradient back.
            x, pulls = batch.x, []
            for start, stop in segments:
                run = lambda params, x, start=start, stop=stop: step.run(  # noqa: E731
                    params, x, key, start, stop
                )
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


def local_loss_objective(step: LocalStep, cut: int, auxiliary: Layer) -> Objective:
    """The sum of two losses of a model cut once, one for each part; the reported one is the upper
    part's. See `local_loss_gradients`.
    """

    def objective(
        trainable: Params, frozen: Params, received: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        del frozen, received
        activations = step.run(trainable, batch.x, key, 0, cut)
        head = step.prepare(trainable[AUXILIARY])
        lower = task_loss(auxiliary.apply(head, activations, True, None), batch)
        sent = jax.lax.stop_gradient(activations)
        upper = task_loss(step.run(trainable, sent, key, cut, None), batch)
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
    return lambda step: differentiated(local_loss_objective(step, cut, auxiliary))
