"""Makes the engine of this machine for a kind of model, of parts that fit each other."""

from collections.abc import Mapping, Sequence

import numpy as np

from snake_jax.data.text import packing
from snake_jax.engines.emulations import EMULATIONS
from snake_jax.engines.epochs import VisitSettings
from snake_jax.engines.image_feed import ImageFeed
from snake_jax.engines.local import LocalEngine
from snake_jax.engines.text_batches import Shard
from snake_jax.engines.text_feed import TextFeed
from snake_jax.errors import UserError
from snake_jax.params import Params
from snake_jax.training.image_step import Examples, LocalStep
from snake_jax.training.layout import ByName
from snake_jax.training.stacked import Stacked
from snake_jax.training.text_step import LanguageStep


def image_engine(
    step: LocalStep,
    train: Examples,
    test: Examples,
    shards: Sequence[np.ndarray],
    settings: VisitSettings,
    emulation: str = "loop",
    largest: int = 0,
    own: Sequence[np.ndarray] = (),
) -> LocalEngine:
    """An engine for networks on images; puts the data on the device, or on all of them.

    Args:
      step: the local step.
      train: all nodes' examples.
      test: examples to score.
      shards: for each node, its indices into `train`.
      settings: see `VisitSettings`.
      emulation: of visits that run side by side, one of `EMULATIONS`.
      largest: see `ImageFeed`.
      own: see `ImageFeed`.
    """
    how = EMULATIONS[emulation]()
    feed = ImageFeed(step, train, test, shards, settings, how, largest, own)
    layout = ByName(step, settings.frozen_dtype)
    return LocalEngine(step, layout, feed, settings, how)


def text_engine(
    step: LanguageStep,
    base: Params,
    train: Mapping[int, packing.TextRows],
    test: Mapping[int, packing.TextRows],
    shards: Sequence[Shard],
    settings: VisitSettings,
    ranks: Sequence[int] = (),
    emulation: str = "loop",
    packed: frozenset[int] | None = None,
    own: Sequence[Shard] = (),
) -> LocalEngine:
    """An engine for language models; puts what never trains on the device, as nodes store it.

    Of several processes each carries out all visits with its own devices of the mesh: it reads its
    own rows of a batch, and has all outcomes on its host.

    Args:
      step: the local step.
      base: the layers that no visit trains, in full precision: with adapters all blocks, and ends.
      train: all nodes' rows, by tokens in a row.
      test: rows to score.
      shards: for each node, which rows are its own.
      settings: see `VisitSettings`.
      ranks: of each node's adapters, where some are smaller than the adapters'.
      emulation: of visits that run side by side, one of `EMULATIONS`.
      packed: see `TextFeed`.
      own: see `TextFeed`.

    Raises:
      UserError: see `check`.
    """
    check(emulation, step.mesh is not None, len(set(ranks)) > 1, settings.cache_prefix)
    layout = Stacked(step, base, settings.frozen_dtype, ranks)
    feed = TextFeed(step, train, test, shards, settings, packed, own)
    return LocalEngine(step, layout, feed, settings, EMULATIONS[emulation](), step.mesh)


def check(
    emulation: str, mesh: bool = False, unlike_ranks: bool = False, cache_prefix: str = "off"
) -> None:
    """Refuses what nodes side by side in one program cannot have; nothing is compiled before.

    Args:
      emulation: one of `EMULATIONS`.
      mesh: whether a node lies over several devices.
      unlike_ranks: whether nodes' adapters have unlike ranks.
      cache_prefix: see `VisitSettings`.

    Raises:
      UserError: one of these, with an emulation other than loop.
    """
    if emulation == "loop":
        return
    reason = ""
    if mesh:
        reason = "a mesh has all devices work for one node; leave --mesh out"
    elif unlike_ranks:
        reason = "nodes of one program have one rank; leave --rank out"
    elif cache_prefix != "off":
        reason = "no node's prefix is kept beside others'; say --cache_prefix=off"
    if reason:
        raise UserError(f"--executor={emulation}: {reason}, or say --executor=loop")
