"""Gradients over a cut model: what passes between the parties is an activation up and a gradient
down at every cut.

`split_gradients` is Split Learning's step (Gupta and Raskar, "Distributed learning of deep neural
network over multiple agents", JNCA 2018, Algorithms 1 and 2) for any number of cuts; it gives the
full model's gradients. `local_loss_gradients` is Accelerated FL's (Han et al., "Accelerating
Federated Learning with Split Learning on Locally Generated Losses", ICML FL workshop 2021): no
gradient comes back over the cut, since an auxiliary head gives the lower part a loss of its own.
"""

from itertools import pairwise

import jax

from snake_jax.models.layered import Layer
from snake_jax.params import Params, select
from snake_jax.train.image_step import Batch, Gradients, LocalStep, task_loss

AUXILIARY = "auxiliary"


def split_gradients(cuts: tuple[int, ...]) -> Gradients:
    """The step of a model cut before the layers at these indices; all layers train.

    Every segment is differentiated by itself: given its input it gives its output, given its
    output's gradient it gives its parameters' and its input's.
    """

    def gradients(
        step: LocalStep, trainable: Params, frozen: Params, received: Params, batch: Batch
    ) -> tuple[jax.Array, Params]:
        del frozen, received
        names = step.model.layer_names
        x, pulls = batch.x, []
        for start, stop in pairwise((0, *cuts, len(names))):
            x, pull = jax.vjp(
                lambda params, x, start=start, stop=stop: step.run(params, batch, x, start, stop),
                select(trainable, names[start:stop]),
                x,
            )
            pulls.append(pull)
        task, gradient = jax.value_and_grad(task_loss)(x, batch)
        found: Params = {}
        for pull in reversed(pulls):
            segment, gradient = pull(gradient)
            found |= segment
        return task, found

    return gradients


def local_loss_gradients(cut: int, auxiliary: Layer) -> Gradients:
    """The step of a model cut once, where both parts have a loss of their own; the reported loss is
    the upper part's.

    Args:
      cut: index of the upper part's first layer.
      auxiliary: the head on the lower part's output, `{AUXILIARY: subtree}` among the trained
        layers.
    """

    def losses(trainable: Params, step: LocalStep, batch: Batch) -> tuple[jax.Array, jax.Array]:
        activations = step.run(trainable, batch, batch.x, 0, cut)
        head = step.prepare(trainable[AUXILIARY])
        lower = task_loss(auxiliary.apply(head, activations, True, None), batch)
        upper = task_loss(
            step.run(trainable, batch, jax.lax.stop_gradient(activations), cut, None), batch
        )
        return (
            lower + upper,
            upper,
        )  # neither depends on the other's parameters, so one backward pass serves both

    def gradients(
        step: LocalStep, trainable: Params, frozen: Params, received: Params, batch: Batch
    ) -> tuple[jax.Array, Params]:
        del frozen, received
        (_, task), found = jax.value_and_grad(losses, has_aux=True)(trainable, step, batch)
        return task, found

    return gradients
