"""The feed of images: indices into examples that lie on the device, an epoch a call."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from snake_jax import processes
from snake_jax.algorithms.visits import Outcome, Visit
from snake_jax.data.drawn import shard_sizes
from snake_jax.engines import image_batches
from snake_jax.engines.contract import NodeInfo, Scores
from snake_jax.engines.emulations import Axes, Emulation
from snake_jax.engines.epochs import VisitSettings
from snake_jax.engines.feeds import Chunk, Epoch, RunPrefix
from snake_jax.params import num_bytes
from snake_jax.training import image_scores, image_step
from snake_jax.training.image_scores import score_each
from snake_jax.training.image_step import Examples, LocalStep


class ImageFeed:
    """Indices into examples that lie on the device, or on all of them."""

    ahead = True
    axes: Axes = (None, 0)

    def __init__(
        self,
        step: LocalStep,
        train: Examples,
        test: Examples,
        shards: Sequence[np.ndarray],
        settings: VisitSettings,
        how: Emulation,
        largest: int = 0,
        own: Sequence[np.ndarray] = (),
    ) -> None:
        """Puts the data on the device.

        Args:
          step: the local step.
          train: all nodes' examples.
          test: examples to score.
          shards: for each node, its indices into `train`.
          settings: see `VisitSettings`.
          how: the emulation.
          largest: how many examples the run's largest node holds, which decides the shapes of all
            nodes' batches; 0: these shards are all nodes'.
          own: for each node, the indices into `train` that it holds out; empty: nothing.
        """
        self._sizes = shard_sizes(shards)
        largest = largest or max(self._sizes)
        # No batch is all padding.
        self.settings = settings._replace(batch_size=min(settings.batch_size, largest))
        self.rows = -(-largest // math.prod(image_batches.step_shape(self.settings)))
        self.step, self.shards, self.largest, self._own = step, shards, largest, own
        self._shared = processes.put(train, how.shared)
        self._train, self._test = _first_copy(self._shared), jax.device_put(test)

    def nodes(self) -> list[NodeInfo]:
        """See `Feed`."""
        return [NodeInfo(size) for size in self._sizes]

    def program(self, names: tuple[str, ...], lead: tuple[int, ...]) -> Callable[..., Any]:
        """See `Feed`: a whole epoch."""
        del lead
        return image_step.local_epoch(self.step, names)

    def read(
        self,
        visits: Sequence[Visit],
        lead: tuple[int, ...],
        how: Emulation,
        run_prefix: RunPrefix | None,
    ) -> "_ImageReading":
        """See `Feed`."""
        del run_prefix
        return _ImageReading(self, visits, lead, how)

    def chunk(
        self,
        picked: Sequence[image_batches.Picked],
        lead: tuple[int, ...],
        place: Sharding | None = None,
    ) -> Chunk:
        """The epoch of these nodes, whose batches go to `place`."""
        examples = self._shared if lead else self._train
        return Chunk((), (examples, image_batches.stacked(picked, lead, place)))

    def nobody(self, lead: tuple[int, ...]) -> Chunk:
        """See `Feed`."""
        return self.chunk([image_batches.no_batches(self.rows, self.settings)], lead)

    def evaluation(self) -> Callable[..., Any]:
        """See `Feed`."""
        return image_scores.evaluate(self.step)

    def prefix(self) -> Callable[..., Any]:
        """Not for images."""
        raise NotImplementedError

    def held_out(self) -> Iterator[Chunk]:
        """See `Feed`: all in one call; a node that scores nothing has none."""
        if len(self._test.labels):
            yield Chunk((), (self._test,))

    def scores(self, results: Sequence[Any]) -> Scores:
        """See `Feed`."""
        ((accuracy, loss),) = results
        return Scores(float(accuracy), float(loss))

    def scoring(self) -> Callable[..., Any]:
        """See `Feed`: of each example apart, so that all nodes' are one call."""
        return score_each(self.step)

    def at_nodes(self) -> Iterator[Chunk]:
        """See `Feed`."""
        if any(map(len, self._own)):
            indices = np.concatenate(list(self._own)).astype(np.int32)
            yield Chunk((), (self._train, indices))

    def node_scores(self, results: Sequence[Any]) -> tuple[Scores | None, ...]:
        """See `Feed`."""
        if not results:
            return ()
        hits, losses = results[0]
        found: list[Scores | None] = []
        start = 0
        for held in self._own:
            stop = start + len(held)
            some = None
            if len(held):
                some = Scores(float(hits[start:stop].mean()), float(losses[start:stop].mean()))
            found.append(some)
            start = stop
        return tuple(found)

    def other_bytes(self) -> int:
        """See `Feed`; the largest node's data stays counted."""
        every, count = num_bytes(self._train), len(self._train.labels)
        return every - every // count * self.largest if count else 0


class _ImageReading:
    """See `Reading`."""

    def __init__(
        self, feed: ImageFeed, visits: Sequence[Visit], lead: tuple[int, ...], how: Emulation
    ) -> None:
        self._feed, self._visits, self._lead, self._how = feed, visits, lead, how

    def epoch(self, number: int, over: Sequence[bool]) -> Epoch:
        """See `Reading`."""
        feed, picked = self._feed, []
        for visit, ended in zip(self._visits, over, strict=True):
            if ended:
                picked.append(image_batches.no_batches(feed.rows, feed.settings))
                continue
            shard = feed.shards[visit.node]
            batches = image_batches.epoch_batches(visit, number, shard, feed.rows, feed.settings)
            picked.append(batches)
        steps = [batches.steps for batches in picked]
        # Those of padding rows are 0.
        every = [batches.factors for batches in picked if batches.factors is not None]
        factors = [float(own.sum()) for own in every]
        return Epoch(steps, self._chunks(picked), factors or None)

    def _chunks(self, picked: list[image_batches.Picked]) -> Iterator[Chunk]:
        yield self._feed.chunk(picked, self._lead, self._how.nodes)

    def told(self, node: int, outcome: Outcome) -> Outcome:
        """See `Reading`: nothing more."""
        del node
        return outcome


def _first_copy(tree: Any) -> Any:
    """Arrays that lie whole on every device, as they lie on the first."""
    return jax.tree.map(lambda w: w.addressable_shards[0].data if len(w.devices()) > 1 else w, tree)
