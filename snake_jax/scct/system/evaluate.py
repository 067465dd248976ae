"""How well devices answer what was held out: F1, exact match and losses, each for itself.

Nothing is merged after training, so a device is asked its own questions, with its own small model.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax.data.text.answer_scores import AnswerScores, score
from snake_jax.models import span
from snake_jax.models.generation import generate
from snake_jax.models.prefix import Prefix
from snake_jax.params import Params
from snake_jax.scct.system import batches, cloud
from snake_jax.scct.system.build import System
from snake_jax.scct.system.examples import DeviceExamples, PaddedTexts, end_id, start_id
from snake_jax.scct.system.holding import owner_of
from snake_jax.scct.system.iteration import forward, span_gradients


class Found(NamedTuple):
    """A device's answers to one sort of questions.

    Attributes:
      scores: F1 and exact match.
      loss: L^L, nats.
      small_loss: L^S of equation 8; None where it is not computed.
      predictions: what was answered.
    """

    scores: AnswerScores
    loss: float
    small_loss: float | None
    predictions: tuple[str, ...]


def device(
    system: System, small: Mapping[str, Params], trained: Params, node: int
) -> dict[str, Found]:
    """One device's answers, by sort."""
    params = small.get(owner_of(system.settings.arm, node), {})
    found = {}
    for sort, examples in system.data[node].held_out.items():
        found[sort] = _of_sort(system, params, trained, examples)
    return found


def means(found: Sequence[Mapping[str, Found]]) -> dict[str, float]:
    """Over devices: F1 and exact match, of all questions and of each sort, and losses."""
    values: dict[str, list[float]] = {}
    for of_device in found:
        for sort, one in of_device.items():
            named = {"f1": one.scores.f1, "exact_match": one.scores.exact_match}
            for name, value in named.items():
                values.setdefault(name, []).append(value)
                values.setdefault(f"{sort}_{name}", []).append(value)
            values.setdefault("test_loss", []).append(one.loss)
            if one.small_loss is not None:
                values.setdefault("small_loss", []).append(one.small_loss)
    return {name: float(np.mean(some)) for name, some in values.items()}


def _of_sort(system: System, params: Params, trained: Params, examples: DeviceExamples) -> Found:
    """All questions of one sort in one batch."""
    settings = system.settings
    rows = batches.rows(examples, np.arange(len(examples.questions)))
    if settings.has_small:
        blocks = system.encoder.num_blocks
        given = forward(system, params, blocks, rows).edge.output.values
        texts, batch = examples.small, rows.of_small
    else:
        given, texts, batch = rows.ids, examples.large, rows.of_large
    if not settings.has_large:
        return _alone(params, examples, given, batch)

    # Losses: the prefix's, and where equation 8 is asked for that of the plain text.
    large, base = system.large, system.base
    loss = float(cloud.measured(large, 1, base, trained, given, batch)[0])
    small_loss = None
    if settings.has_small and settings.plain_loss != "never":
        plain = cloud.measured(large, 1, base, trained, rows.ids, rows.of_large)
        small_loss = loss - float(plain[0])

    values = _enter(large, base, trained, given)
    if large.head == "generate":
        words = _written(system, trained, values, batch.lengths)
    else:
        logits = _span_logits(large, base, trained, values, batch.context)
        words = _taken(examples, texts, logits)
    return Found(_score(words, examples), loss, small_loss, tuple(words))


_enter = jax.jit(cloud.enter, static_argnums=0)
_span_logits = jax.jit(cloud.span_logits, static_argnums=0)


def _alone(
    params: Params, examples: DeviceExamples, values: jax.Array, batch: cloud.CloudBatch
) -> Found:
    """A small model's own answers."""
    loss, _, _ = span_gradients(params[cloud.SPAN], values, batch)
    logits = span.scores(params[cloud.SPAN], values, batch.context)
    words = _taken(examples, examples.small, logits)
    return Found(_score(words, examples), float(loss), None, tuple(words))


def _written(system: System, trained: Params, values: jax.Array, lengths: jax.Array) -> list[str]:
    """Answers that the large model generates after a prefix, greedily."""
    large, tokenizer = system.large, system.tokenizer
    params = cloud.params_of(large, system.base, trained)
    prompts = [[start_id(tokenizer)] for _ in range(len(values))]
    new = generate(
        large.model,
        params,
        prompts,
        max_new_tokens=system.settings.max_answer,
        stop_ids=[tokenizer.eos_id, end_id(tokenizer, system.settings.answer_end)],
        adapters=cloud.adapters_of(large, trained),
        prefix=Prefix(values, lengths),
    )
    return [tokenizer.decode(ids).strip() for ids in new]


def _taken(
    examples: DeviceExamples, texts: PaddedTexts, logits: tuple[jax.Array, jax.Array]
) -> list[str]:
    """Answers cut out of their contexts."""
    longest = examples.answers.inputs.shape[1]
    first, last = (np.asarray(one) for one in span.best(logits, longest))
    words = []
    for row, question in enumerate(examples.questions):
        begins, ends = texts.starts[row, first[row]], texts.stops[row, last[row]]
        words.append(question.context[begins:ends].strip())
    return words


def _score(words: Sequence[str], examples: DeviceExamples) -> AnswerScores:
    """Against all right answers."""
    right = []
    for question in examples.questions:
        right.append([answer.text for answer in question.answers])
    return score(words, right)


def text_loss(system: System, trained: Params, texts: Sequence[str], plugged: bool) -> float:
    """The large model's loss a token on other text, nats: with what trains there, or without.

    Args:
      system: the run's.
      trained: what has trained.
      texts: each cut to `max_length` tokens.
      plugged: whether adapters, or trained layers, are in their places.
    """
    large, tokenizer = system.large, system.tokenizer
    params, adapters = system.base, {}
    if plugged:
        params = cloud.params_of(large, system.base, trained)
        adapters = cloud.adapters_of(large, trained)
    length = system.settings.max_length
    ids = np.full((len(texts), length + 1), tokenizer.pad_id, np.int32)
    weights = np.zeros((len(texts), length), np.float32)
    for row, text in enumerate(texts):
        tokens = [start_id(tokenizer), *tokenizer.encode(text)][: length + 1]
        ids[row, : len(tokens)] = tokens
        weights[row, : len(tokens) - 1] = 1
    lost = _text_losses(large.model, params, adapters, jnp.asarray(ids))
    return float((lost * weights).sum() / weights.sum())


def _token_losses(
    model: cloud.LanguageModel, params: Params, adapters: Params, ids: jax.Array
) -> jax.Array:
    """`[B, T]` nats, of each token after the first."""
    logits = model.apply(params, ids[:, :-1], adapters=adapters)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.take_along_axis(log_p, ids[:, 1:, None], axis=-1)[..., 0]


_text_losses = jax.jit(_token_losses, static_argnums=0)
