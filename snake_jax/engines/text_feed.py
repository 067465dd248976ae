"""The feed of text: rows that lie on the host, a batch a call."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from snake_jax import processes
from snake_jax.algorithms.visits import Outcome, Passed, Text, Visit
from snake_jax.data.text import packing
from snake_jax.engines import text_batches
from snake_jax.engines.contract import NodeInfo, Scores
from snake_jax.engines.emulations import Axes, Emulation
from snake_jax.engines.epochs import VisitSettings, rate_factors
from snake_jax.engines.feeds import Chunk, Epoch, RunPrefix
from snake_jax.engines.text_batches import (
    Batch,
    Entrance,
    Shard,
    num_tokens,
    packed_lengths,
    row_batches,
    rows_of,
)
from snake_jax.training import sharding, text_scores, text_step
from snake_jax.training.text_step import LanguageStep, TextBatch
from snake_jax.training.update import EpochStats


class TextFeed:
    """Rows on the host, a batch of one length a call.

    On a mesh each process reads its own rows of a batch.
    """

    ahead = False
    axes: Axes = (0,)

    def __init__(
        self,
        step: LanguageStep,
        train: Mapping[int, packing.TextRows],
        test: Mapping[int, packing.TextRows],
        shards: Sequence[Shard],
        settings: VisitSettings,
        packed: frozenset[int] | None = None,
        own: Sequence[Shard] = (),
    ) -> None:
        """Leaves the rows where they are.

        Args:
          step: the local step.
          train: all nodes' rows, by tokens in a row.
          test: rows to score.
          shards: for each node, which rows are its own.
          settings: see `VisitSettings`.
          packed: lengths of which some node of the run has rows with several texts, since that
            decides all nodes' programs; None: these rows are all nodes'.
          own: for each node, which of the rows it holds out; empty: nothing.
        """
        self._own = own
        self.packed = packed_lengths(train) if packed is None else packed
        self._test_packed = packed_lengths(test)
        self.step, self.train, self.shards, self.settings = step, train, shards, settings
        self.shape = (settings.accumulate, settings.batch_size)
        self._test = test

    def nodes(self) -> list[NodeInfo]:
        """See `Feed`; examples are tokens with a loss."""
        infos = []
        for shard in self.shards:
            held = sum(self.train[length].weight[rows].sum() for length, rows in shard.items())
            infos.append(NodeInfo(int(held)))
        return infos

    def program(self, names: tuple[str, ...], lead: tuple[int, ...]) -> Callable[..., Any]:
        """See `Feed`: a step; side by side, one that a node may sit out."""
        step = text_step.train_step(self.step, names)
        return _sat_out(step) if lead else step

    def read(
        self,
        visits: Sequence[Visit],
        lead: tuple[int, ...],
        how: Emulation,
        run_prefix: RunPrefix | None,
    ) -> "_TextReading":
        """See `Feed`."""
        return _TextReading(self, visits, lead, how, run_prefix)

    def nobody(self, lead: tuple[int, ...]) -> Chunk:
        """Not known ahead: lengths are those of the visit's rows."""
        raise NotImplementedError

    def evaluation(self) -> Callable[..., Any]:
        """See `Feed`."""
        return text_scores.evaluate(self.step)

    def prefix(self) -> Callable[..., Any]:
        """See `Feed`."""
        return text_step.prefix(self.step)

    def held_out(self) -> Iterator[Chunk]:
        """See `Feed`."""
        for length, rows in self._test.items():
            for batch in row_batches(length, np.arange(len(rows.ids)), self.shape[1:]):
                some = rows_of(self.step.mesh, rows, batch, length in self._test_packed)
                yield Chunk((length, some.segments is not None, False), (some,))

    def scores(self, results: Sequence[Any]) -> Scores:
        """See `Feed`: the share of tokens that the model holds likeliest, and their mean negative
        log-likelihood in nats.
        """
        sums = np.sum([np.array(score, np.float64) for score in results], axis=0)
        nll, hits, tokens, exact, texts = sums
        return Scores(float(hits / tokens), float(nll / tokens), exact=float(exact / texts))

    def scoring(self) -> Callable[..., Any]:
        """See `Feed`."""
        return text_scores.evaluate(self.step)

    def at_nodes(self) -> Iterator[Chunk]:
        """See `Feed`: a node's rows after the other's."""
        for _, length, batch in self._own_batches():
            some = rows_of(self.step.mesh, self.train[length], batch, length in self.packed)
            yield Chunk((length, some.segments is not None, False), (some,))

    def _own_batches(self) -> Iterator[tuple[int, int, Batch]]:
        """Node, length and rows of what nodes hold out."""
        for node, shard in enumerate(self._own):
            for length in sorted(shard):
                for batch in row_batches(length, shard[length], self.shape[1:]):
                    yield node, length, batch

    def node_scores(self, results: Sequence[Any]) -> tuple[Scores | None, ...]:
        """See `Feed`."""
        parts: list[list[Any]] = [[] for _ in self._own]
        for (node, _, _), result in zip(self._own_batches(), results, strict=True):
            parts[node].append(result)
        return tuple(self.scores(part) if part else None for part in parts)

    def other_bytes(self) -> int:
        """See `Feed`: a program has one batch."""
        return 0


class _TextReading:
    """See `Reading`."""

    def __init__(
        self,
        feed: TextFeed,
        visits: Sequence[Visit],
        lead: tuple[int, ...],
        how: Emulation,
        run_prefix: RunPrefix | None,
    ) -> None:
        self._feed, self._visits, self._lead, self._how = feed, visits, lead, how
        self._run_prefix = run_prefix
        self._entrance: Entrance | None = None
        self._passed: list[list[Passed]] = [[] for _ in visits]
        self._trained: list[list[Batch]] = [[] for _ in visits]

    def epoch(self, number: int, over: Sequence[bool]) -> Epoch:
        """See `Reading`."""
        feed, every, factors = self._feed, [], []
        settings = feed.settings
        for visit, ended in zip(self._visits, over, strict=True):
            batches: list[Batch] = []
            if not ended:
                shard = feed.shards[visit.node]
                epochs = settings.epochs_at(visit.node)
                batches = text_batches.epoch_batches(
                    visit, number, shard, feed.shape, epochs, settings.seed
                )
            every.append(batches)
            factors.append(self._factors(visit, number, len(batches)))
        if self._lead:
            chunks = self._side_by_side(every, factors)
        else:
            chunks = self._alone(every[0], factors[0])
        steps = [len(batches) for batches in every]
        if not settings.changes_rate:
            return Epoch(steps, chunks)
        return Epoch(steps, chunks, [float(own.sum()) for own in factors])

    def _factors(self, visit: Visit, number: int, count: int) -> np.ndarray:
        """Of the learning rate of an epoch's batches."""
        feed = self._feed
        settings = feed.settings
        of_epoch = text_batches.steps_of_epoch(feed.shards[visit.node], feed.shape)
        epochs = settings.epochs_at(visit.node)
        begin, _ = text_batches.part_of_epoch(visit, number, of_epoch, epochs)
        return rate_factors(settings, number * of_epoch + begin, count, of_epoch * epochs)

    def _alone(self, batches: list[Batch], factors: np.ndarray) -> Iterator[Chunk]:
        """A batch after the other; the next is gathered while the device trains."""
        feed = self._feed
        if self._entrance is None:
            self._entrance = self._kept_prefix()
        for number, batch in enumerate(batches):
            hidden = self._entrance.of(batch)
            packed = batch.length in feed.packed
            rows = rows_of(feed.step.mesh, feed.train[batch.length], batch, packed, hidden)
            self._note(0, batch, hidden is not None)
            if feed.settings.changes_rate:
                rows = rows._replace(rate_factor=factors[number])
            shape = (batch.length, rows.segments is not None, hidden is not None)
            yield Chunk(shape, (rows,), number)

    def _side_by_side(self, every: list[list[Batch]], factors: list[np.ndarray]) -> Iterator[Chunk]:
        """All nodes' first batches, their second ones, ...; those of unlike length in calls of
        their own, which the other nodes sit out.
        """
        for number in range(max(map(len, every))):
            now = [batches[number] if number < len(batches) else None for batches in every]
            for length in sorted({batch.length for batch in now if batch is not None}):
                chosen = [batch if batch and batch.length == length else None for batch in now]
                for node, batch in enumerate(chosen):
                    if batch is not None:
                        self._note(node, batch, False)
                rows, trains = self._stacked(length, chosen)
                if self._feed.settings.changes_rate:
                    rows = rows._replace(rate_factor=self._factors_of_call(factors, number))
                shape = (length, rows.segments is not None, False)
                yield Chunk(shape, (processes.put((rows, trains), self._how.nodes),), number)

    def _factors_of_call(self, factors: list[np.ndarray], number: int) -> Any:
        """Of each node's batch of that number, along the nodes' axes; 0 where it has none."""
        found = np.zeros(math.prod(self._lead), np.float32)
        for node, own in enumerate(factors):
            if number < len(own):
                found[node] = own[number]
        return found.reshape(self._lead)

    def _stacked(self, length: int, chosen: list[Batch | None]) -> tuple[TextBatch, np.ndarray]:
        """Rows of one length along the nodes' axes, and who trains."""
        held, shape = self._feed.train[length], self._feed.shape
        empty = Batch(length, np.zeros(shape, np.int32), np.zeros(shape, bool))
        filled = [batch or empty for batch in chosen]
        filled += [empty] * (math.prod(self._lead) - len(chosen))
        packed = length in self._feed.packed
        gathered = [text_batches.gathered(held, batch, packed) for batch in filled]

        def one(*parts: np.ndarray) -> np.ndarray:
            return np.stack(parts).reshape(*self._lead, *parts[0].shape)

        trains = np.zeros(math.prod(self._lead), bool)
        trains[: len(chosen)] = [batch is not None for batch in chosen]
        return jax.tree.map(one, *gathered), trains.reshape(self._lead)

    def _kept_prefix(self) -> Entrance:
        """The input of the first block that trains, for all rows of the node, where it is kept."""
        if self._run_prefix is None:
            return Entrance({}, {})
        feed, kept, places = self._feed, {}, {}
        on_host = feed.settings.cache_prefix == "host"
        for length, held in feed.shards[self._visits[0].node].items():
            parts = []
            for batch in row_batches(length, held, feed.shape[1:]):
                rows = rows_of(feed.step.mesh, feed.train[length], batch, length in feed.packed)
                values = self._run_prefix((length, rows.segments is not None, False), rows)
                parts.append(sharding.fetch(values) if on_host else values)
                self._passed[0].append(Passed(length, batch.indices.size, prefix=True))
            kept[length] = np.concatenate(parts) if on_host else jnp.concatenate(parts)
            places[length] = {int(row): place for place, row in enumerate(held)}
        return Entrance(kept, places)

    def _note(self, node: int, batch: Batch, given: bool) -> None:
        """Counts a batch that is trained on."""
        self._passed[node].append(Passed(batch.length, batch.indices.size, given=given))
        self._trained[node].append(batch)

    def told(self, node: int, outcome: Outcome) -> Outcome:
        """See `Reading`: rows as examples, and tokens. An outcome comes with its tokens that have a
        loss as examples.
        """
        trained, rows = self._trained[node], self._feed.train
        tokens = sum(num_tokens(rows[batch.length], batch) for batch in trained)
        examples = sum(int(batch.real.sum()) for batch in trained)
        text = Text(tokens, outcome.examples, tuple(self._passed[node]))
        return outcome._replace(examples=examples, text=text)


def _sat_out(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step whose batch is `(rows, whether the node trains on them)`."""

    def function(trainable, states, frozen, received, batch, key, learning_rate, given):
        rows, trains = batch

        def train(own):
            return step(*own, frozen, received, rows, key, learning_rate, given)

        def sit_out(own):
            return *own, EpochStats(jnp.zeros(()), jnp.zeros(()), jnp.bool_(True))

        return lax.cond(trains, train, sit_out, (trainable, states))

    return function
