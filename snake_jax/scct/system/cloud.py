"""The cloud: a frozen large model with adapters, its losses, and what they send back.

Equations 5 to 9 of the paper. What an edge sends of a device's batch, m, is projected to the large
model's width and stands before the answer as a soft prefix; the loss is that of the answer's tokens
(head `generate`), or of where it begins and ends among the prefix's positions (head `span`).
CloudO's devices send tokens, which the large model embeds itself: all else is the same.

**Equation 8.** L^S = L^L - f(y, y~): what the small model is worth. Its second term is the large
model's loss on the plain text, which no weight of the small model changes, so its gradient there is
zero; for the adapters it is taken as a constant (`stop_gradient`), as equation 9 has L^L alone.
Otherwise adapters would be pushed to be worse on plain text.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from snake_jax.models import prefix, span
from snake_jax.models.language import Hidden, LanguageModel, Tokens
from snake_jax.models.prefix import Prefix
from snake_jax.models.span import Spans
from snake_jax.params import Params, PyTree

Head = Literal["generate", "span"]
PROJECTION, SPAN = "projection", "span"


class Large(NamedTuple):
    """What a program is compiled for.

    Attributes:
      model: the large one.
      head: what it answers with.
      trains_all: whether its own layers train, instead of adapters.
    """

    model: LanguageModel
    head: Head
    trains_all: bool = False


class Answers(NamedTuple):
    """Right answers as tokens, `[R, A]` each.

    Attributes:
      inputs: the start of an answer, then its tokens.
      targets: its tokens, then the end.
      weights: 1 where a target counts.
    """

    inputs: jax.Array
    targets: jax.Array
    weights: jax.Array


class CloudBatch(NamedTuple):
    """The batches of some devices, one after the other: R rows.

    Attributes:
      lengths: `[R]`, tokens of each input.
      answers: for head `generate`.
      context: `[R, P]` bool, which tokens are the context's.
      spans: for head `span`, `[R]` each.
    """

    lengths: jax.Array
    answers: Answers
    context: jax.Array
    spans: Spans


class Gradients(NamedTuple):
    """Of all devices' losses together.

    Attributes:
      losses: L^L `[N]`.
      trained: of what trains in the cloud, of the sum of the losses.
      inputs: of m, `[R, P, D_small]`; None where tokens came in.
    """

    losses: jax.Array
    trained: Params
    inputs: jax.Array | None


def params_of(large: Large, base: Params, trained: Params) -> Params:
    """The large model's parameters as they are now."""
    if not large.trains_all:
        return base
    return {**base, **{name: trained[name] for name in base}}


def adapters_of(large: Large, trained: Params) -> Params:
    """The plugged-in adapters, by block."""
    if large.trains_all:
        return {}
    return {name: trained[name] for name in large.model.layer_names if name in trained}


def enter(large: Large, base: Params, trained: Params, given: jax.Array) -> jax.Array:
    """What stands at the prefix's positions, `[R, P, D]`.

    Args:
      large: the model.
      base: its frozen parameters.
      trained: what trains.
      given: m `[R, P, D_small]`, or token ids `[R, P]`.
    """
    if given.ndim == 3:
        return prefix.project(trained[PROJECTION], given)
    params = params_of(large, base, trained)
    tokens = large.model.tokens(given)
    return large.model.embed(params["embed"], tokens, jnp.dtype("float32")).values


def losses(
    large: Large, devices: int, base: Params, trained: Params, given: jax.Array, batch: CloudBatch
) -> jax.Array:
    """L^L of each device, `[N]` nats: the mean over its batch's tokens, or answers (equation 7)."""
    values = enter(large, base, trained, given)
    if large.head == "generate":
        lost, weights = _answer_losses(large, base, trained, values, batch)
    else:
        logits = span_logits(large, base, trained, values, batch.context)
        lost, weights = span.losses(logits, batch.spans), batch.spans.weight
    by_device = lost.reshape(devices, -1).sum(-1)
    counted = weights.reshape(devices, -1).sum(-1)
    return by_device / jnp.maximum(counted, 1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def gradients(
    large: Large, devices: int, base: Params, trained: Params, given: jax.Array, batch: CloudBatch
) -> Gradients:
    """Losses, and gradients of their sum: one pass for all devices (equations 7 and 9).

    A device's loss depends on no other's m, so that of the sum is each device's own.
    """
    if given.ndim == 3:

        def of_both(trained: Params, m: jax.Array) -> tuple[jax.Array, jax.Array]:
            found = losses(large, devices, base, trained, m, batch)
            return found.sum(), found

        (of_trained, of_m), found = jax.grad(of_both, argnums=(0, 1), has_aux=True)(trained, given)
        return Gradients(found, of_trained, of_m)

    def of_trained_alone(trained: Params) -> tuple[jax.Array, jax.Array]:
        found = losses(large, devices, base, trained, given, batch)
        return found.sum(), found

    of_trained, found = jax.grad(of_trained_alone, has_aux=True)(trained)
    return Gradients(found, of_trained, None)


@functools.partial(jax.jit, static_argnums=(0, 1))
def measured(
    large: Large, devices: int, base: Params, trained: Params, given: jax.Array, batch: CloudBatch
) -> jax.Array:
    """`losses` without gradients, `[N]`; of token ids f(y, y~), the plain text (equation 6)."""
    return losses(large, devices, base, trained, given, batch)


def small_model_losses(large_losses: jax.Array, plain: jax.Array) -> jax.Array:
    """Equation 8: L^S = L^L - f(y, y~), `[N]`, whose second term no gradient goes through."""
    return large_losses - jax.lax.stop_gradient(plain)


def span_logits(
    large: Large, base: Params, trained: Params, values: jax.Array, context: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Logits of both ends at the prefix's positions, `[R, P]` each."""
    params = params_of(large, base, trained)
    positions = jnp.broadcast_to(jnp.arange(values.shape[1], dtype=jnp.int32), values.shape[:2])
    hidden = _blocks(large, params, trained, Hidden(values, positions))
    finished = large.model.finish(params["head"], hidden)
    return span.scores(trained[SPAN], finished, context)


def _answer_losses(
    large: Large, base: Params, trained: Params, values: jax.Array, batch: CloudBatch
) -> tuple[jax.Array, jax.Array]:
    """Summed negative log-likelihood of each row's answer `[R]`, and its number of tokens `[R]`."""
    params, answers = params_of(large, base, trained), batch.answers
    positions = batch.lengths[:, None] + jnp.arange(answers.inputs.shape[1])
    tokens = Tokens(answers.inputs, positions)
    embedded = large.model.embed(params["embed"], tokens, values.dtype)
    joined = prefix.before(Prefix(values, batch.lengths), embedded)
    hidden = _blocks(large, params, trained, joined)
    # The answer's positions alone have a loss.
    rows = jnp.arange(len(values))[:, None]
    logits = large.model.logits(params, hidden._replace(values=hidden.values[rows, positions]))
    log_p = jax.nn.log_softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(log_p, answers.targets[..., None], axis=-1)[..., 0]
    return -(chosen * answers.weights).sum(-1), answers.weights.sum(-1)


def _blocks(large: Large, params: Params, trained: Params, hidden: Hidden) -> Hidden:
    """All blocks, between embedding and head."""
    adapters: dict[str, PyTree] = adapters_of(large, trained)
    stop = large.model.num_blocks + 1
    found: Hidden = large.model.apply(params, hidden, 1, stop, adapters=adapters)
    return found
