"""What decides a visit, and what is counted in it, epoch after epoch; nothing here is compiled."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from snake_jax.algorithms.schedule import epochs_of
from snake_jax.algorithms.visits import Visit
from snake_jax.config import RunConfig, TextConfig
from snake_jax.training.update import EpochStats


class VisitSettings(NamedTuple):
    """What decides a visit besides the step: see the flags of the same names in `config`.

    Attributes:
      local_epochs: passes over the node's data.
      batch_size: examples, or rows of text, that are passed at a time.
      frozen_dtype: how a node stores what does not train.
      early_stop: a visit ends with the epoch that lowers the loss by a smaller share; 0: never.
      seed: of the run.
      carry_optimizer_state: whether an outcome has optimizer states.
      accumulate: how many parts of `batch_size` make a step.
      cache_prefix: off, host or device: where what lies below the trained blocks is kept from
        epoch to epoch.
      enough_loss: a visit ends with the epoch whose mean loss is at most this; minus infinity:
        none is.
      enough_accuracy: or whose training accuracy is at least this; infinity: none is.
      node_epochs: passes of each node, where they have different numbers of them; else empty.
      warmup_steps: at the start of a visit, over which the rate rises.
      lr_in_visit: constant, linear or cosine: how the rate falls after them.
    """

    local_epochs: int
    batch_size: int
    frozen_dtype: str
    early_stop: float
    seed: int
    carry_optimizer_state: bool = False
    accumulate: int = 1
    cache_prefix: str = "off"
    enough_loss: float = -math.inf
    enough_accuracy: float = math.inf
    node_epochs: tuple[int, ...] = ()
    warmup_steps: int = 0
    lr_in_visit: str = "constant"

    def epochs_at(self, node: int) -> int:
        """Passes over a node's data in a visit."""
        return self.node_epochs[node] if self.node_epochs else self.local_epochs

    @property
    def changes_rate(self) -> bool:
        """Whether the steps of a visit have unlike learning rates."""
        return self.warmup_steps > 0 or self.lr_in_visit != "constant"

    @property
    def ends_early(self) -> bool:
        """Whether what an epoch came to may end a visit before its last one."""
        enough = self.enough_loss > -math.inf or self.enough_accuracy < math.inf
        return enough or self.early_stop > 0


def rate_factors(settings: VisitSettings, first: int, count: int, total: int) -> np.ndarray:
    """What the learning rate is multiplied by in steps of a visit, float32 `[count]`.

    Of `total` steps the first W = `warmup_steps` have (step + 1) / W, so that none is void. With
    x = (step - W) / (total - W) the others have 1 (constant), 1 - x (linear) or
    (1 + cos(pi x)) / 2 (cosine).

    Args:
      settings: of visits.
      first: the first of these steps, counted from 0 over the whole visit. One that a node took
        over goes on where the other stopped.
      count: how many.
      total: steps of the visit as planned.
    """
    steps = np.arange(first, first + count)
    done = np.clip((steps - settings.warmup_steps) / max(total - settings.warmup_steps, 1), 0, 1)
    if settings.lr_in_visit == "linear":
        factors = 1 - done
    elif settings.lr_in_visit == "cosine":
        factors = (1 + np.cos(np.pi * done)) / 2
    else:
        factors = np.ones(count)
    if settings.warmup_steps:
        factors = np.minimum((steps + 1) / settings.warmup_steps, factors)
    return factors.astype(np.float32)


def settings_of(config: RunConfig) -> VisitSettings:
    """What a configuration says of its visits."""
    node_epochs: tuple[int, ...] = ()
    if config.node_epochs:
        node_epochs = tuple(epochs_of(config, node) for node in range(config.nodes))
    return VisitSettings(
        config.local_epochs,
        config.batch_size,
        config.frozen_dtype,
        config.early_stop,
        config.seed,
        config.carry_optimizer_state,
        config.accumulate,
        config.cache_prefix if isinstance(config, TextConfig) else "off",
        _enough_loss(config),
        getattr(config, "visit_accuracy", 0.0) or math.inf,
        node_epochs=node_epochs,
        warmup_steps=config.warmup_steps,
        lr_in_visit=config.lr_in_visit,
    )


def _enough_loss(config: RunConfig) -> float:
    """The greater of the losses that `--visit_loss` and `--visit_perplexity` say."""
    enough = config.visit_loss or -math.inf
    if isinstance(config, TextConfig) and config.visit_perplexity:
        enough = max(enough, math.log(config.visit_perplexity))
    return enough


class Tally(NamedTuple):
    """A visit's sums so far, the last epoch's mean loss, whether it is over, its epochs, and the
    last epoch's accuracy, 0 where hits are not counted.
    """

    loss_sum: float = 0.0
    examples: float = 0.0
    iterations: int = 0
    train_s: float = 0.0
    previous: float = np.inf
    finite: bool = True
    over: bool = False
    epochs: int = 0
    accuracy: float = 0.0


class Called(NamedTuple):
    """An epoch that the device was asked for.

    Attributes:
      stats: what each call of a program gives, in order.
      steps: of each visit.
      factors: sums of what each visit's learning rates are multiplied by.
      since_s: when the device was asked, on this process's clock.
    """

    stats: list[EpochStats]
    steps: Sequence[int]
    factors: Sequence[float]
    since_s: float


class Sums(NamedTuple):
    """The tallies of visits side by side, and sums of what their rates are multiplied by."""

    tallies: list[Tally]
    factors: np.ndarray


def counted(
    sums: Sums,
    called: Called,
    fetched: Sequence[EpochStats],
    train_s: float,
    settings: VisitSettings,
) -> Sums:
    """The sums with an epoch more, of those visits that were not over before it.

    Args:
      sums: before it.
      called: the epoch.
      fetched: its `stats`, on the host.
      train_s: seconds that training took.
      settings: of visits.
    """
    bounds = settings.early_stop, settings.enough_loss, settings.enough_accuracy
    tallies = count(sums.tallies, fetched, called.steps, train_s, *bounds)
    before_end = [not tally.over for tally in sums.tallies]
    factors = sums.factors + np.where(before_end, called.factors, 0.0)
    return Sums(tallies, factors)


def count(
    tallies: Sequence[Tally],
    stats: Sequence[EpochStats],
    steps: Sequence[int],
    train_s: float,
    early_stop: float,
    enough_loss: float = -math.inf,
    enough_accuracy: float = math.inf,
) -> list[Tally]:
    """The tallies after an epoch that was trained for several visits side by side.

    Args:
      tallies: of the visits.
      stats: what each call of a program gave, in order, with any leading axes, perhaps of more
        nodes.
      steps: of each visit; one without any keeps its tally, and one that was over before: what was
        begun of it after it diverged counts for nothing.
      train_s: seconds that training took.
      early_stop: see `VisitSettings`.
      enough_loss: likewise.
      enough_accuracy: likewise.
    """
    rows = []
    for stat in stats:
        rows.append([np.ravel(column) for column in stat if column is not None])
    numbers = np.array(rows, np.float64)
    counts_hits = numbers.shape[1] > 3
    enough = early_stop, enough_loss, enough_accuracy
    share_s = train_s / sum(done > 0 for done in steps)
    counted = []
    for node, (tally, done) in enumerate(zip(tallies, steps, strict=True)):
        if done and not tally.over:
            loss_sum, examples, finite = (numbers[:, column, node] for column in range(3))
            hits = float(numbers[:, 3, node].sum()) if counts_hits else 0.0
            sums = EpochSums(float(loss_sum.sum()), float(examples.sum()), bool(finite.all()), hits)
            tally = after_epoch(tally, sums, done, share_s, *enough)
        counted.append(tally)
    return counted


def mean_rate(settings: VisitSettings, rate: float, factors: float, tally: Tally) -> float:
    """The mean of a visit's learning rates: what a method's client makes of it is linear in them.

    Args:
      settings: of visits.
      rate: that the factors multiply.
      factors: their sum over the visit's steps.
      tally: of the visit.
    """
    if not settings.changes_rate or not tally.iterations:
        return rate
    return rate * factors / tally.iterations


class EpochSums(NamedTuple):
    """`EpochStats` of one visit, on the host."""

    loss_sum: float
    examples: float
    finite: bool
    hits: float = 0.0


def after_epoch(
    tally: Tally,
    sums: EpochSums,
    iterations: int,
    train_s: float,
    early_stop: float,
    enough_loss: float = -math.inf,
    enough_accuracy: float = math.inf,
) -> Tally:
    """The tally after an epoch of these sums; one that diverged, lowered the loss too little or
    enough, or is as accurate as is enough, is the last.
    """
    loss = sums.loss_sum / max(sums.examples, 1.0)
    accuracy = sums.hits / max(sums.examples, 1.0)
    good = loss <= enough_loss or accuracy >= enough_accuracy
    stalled = bool(early_stop) and tally.previous - loss < early_stop * abs(tally.previous)
    return Tally(
        tally.loss_sum + sums.loss_sum,
        tally.examples + sums.examples,
        tally.iterations + iterations,
        tally.train_s + train_s,
        loss,
        sums.finite,
        stalled or good or not sums.finite,
        tally.epochs + 1,
        accuracy,
    )


def why_ended(tally: Tally, settings: VisitSettings, node: int) -> str:
    """Why a node's visit ended before its last epoch; empty where it did not, or diverged."""
    epochs = settings.epochs_at(node)
    if not tally.over or not tally.finite or tally.epochs >= epochs:
        return ""
    after = f"after {tally.epochs} of {epochs} epochs"
    if tally.previous <= settings.enough_loss:
        return f"its loss of {tally.previous:.4g} is at most {settings.enough_loss:.4g}, {after}"
    if tally.accuracy >= settings.enough_accuracy:
        enough = settings.enough_accuracy
        return f"its accuracy of {tally.accuracy:.4g} is at least {enough:.4g}, {after}"
    return f"its loss fell by less than --early_stop={settings.early_stop:g} of itself, {after}"


def annotation(visits: Sequence[Visit]) -> str:
    """What a profile calls the visits that one program carries out: `visit 3, node 1: conv1,
    fc11`.
    """
    first, several = visits[0], len(visits) > 1
    which = f"visits {first.turn} to {visits[-1].turn}" if several else f"visit {first.turn}"
    who = f"{len(visits)} nodes" if several else f"node {first.node}"
    return f"{which}, {who}: {', '.join(first.layers)}"
