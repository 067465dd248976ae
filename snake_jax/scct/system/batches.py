"""From a device's examples to the arrays of an iteration."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax import streams
from snake_jax.models import encoder
from snake_jax.models.span import Spans
from snake_jax.scct.system import cloud
from snake_jax.scct.system.examples import DeviceExamples, PaddedTexts


class DeviceRows(NamedTuple):
    """Some examples of a device.

    Attributes:
      small: what its small model reads.
      of_small: what the loss behind a small model needs.
      ids: what the large model reads, `[B, P]`.
      of_large: what the loss of plain text needs.
    """

    small: encoder.Texts
    of_small: cloud.CloudBatch
    ids: jax.Array
    of_large: cloud.CloudBatch


def order(seed: int, number: int, epoch: int, node: int, examples: int, wanted: int) -> np.ndarray:
    """Which examples an epoch sees, `[wanted]`: all of them in a new order, again and again."""
    rng = streams.generator(seed, "scct/batches", number, epoch, node)
    times = -(-wanted // examples)
    drawn = [rng.permutation(examples) for _ in range(times)]
    return np.concatenate(drawn)[:wanted]


def rows(examples: DeviceExamples, index: np.ndarray) -> DeviceRows:
    """The examples of these numbers."""
    words = [jnp.asarray(array[index]) for array in examples.answers]
    answers = cloud.Answers(*words)
    small, large = examples.small, examples.large
    return DeviceRows(
        small=encoder.Texts(
            jnp.asarray(small.ids[index]),
            jnp.asarray(small.lengths[index]),
            jnp.asarray(small.types[index]),
        ),
        of_small=_batch(small, index, answers),
        ids=jnp.asarray(large.ids[index]),
        of_large=_batch(large, index, answers),
    )


def joined(batches: list[cloud.CloudBatch]) -> cloud.CloudBatch:
    """The batches of several devices, one after the other."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *batches)


def _batch(texts: PaddedTexts, index: np.ndarray, answers: cloud.Answers) -> cloud.CloudBatch:
    spans = Spans(
        jnp.asarray(texts.first[index]),
        jnp.asarray(texts.last[index]),
        jnp.asarray(texts.found[index]),
    )
    lengths = jnp.asarray(texts.lengths[index])
    return cloud.CloudBatch(lengths, answers, jnp.asarray(texts.context[index]), spans)
