"""The search for what fits, over configurations of runs, and the launch of what was found."""

import dataclasses
import shlex
from collections.abc import Sequence
from typing import Any

from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.config import ImageConfig, RunConfig, TextConfig
from snake_jax.costs import memory
from snake_jax.costs.compiled import Compiled, Refused, devices
from snake_jax.costs.shapes import Model
from snake_jax.errors import UserError
from snake_jax.params import LayerNames
from snake_jax.profiling import build, cases, fits, measure, subjects
from snake_jax.profiling.ask import Ask, TrainingWay
from snake_jax.profiling.build import Note
from snake_jax.profiling.cases import Work
from snake_jax.profiling.fits import Candidate, FitSearch, Tried
from snake_jax.profiling.subjects import Subject

LEAST_LENGTH = 128
LEAST_RANK = 8
_TOLD = ("model", "algorithm", "frozen_dtype", "batch_size", "max_length", "lora_rank")


def largest_launch(ask: Ask, target: str, spare: float, note: Note) -> str | None:
    """What the largest step is that fits, and how to launch a run of such.

    Args:
      ask: ways that train alike; the ways to store are searched among.
      target: see `compiled.devices`.
      spare: the share of its memory that is left free.
      note: is told of each try.

    Returns:
      None where not one row fits.

    Raises:
      UserError: several ways to train, or a method that lies on several places.
    """
    # The search is for one step of one node: ways that differ in storage alone, nothing cut.
    way, model = ask.ways[0], ask.model
    trains = {way.train for way in ask.ways}
    if len(trains) > 1:
        raise UserError(f"--fits={target}: it searches one way to train; give one --train")
    chain = cases.work(way.train, way.config, model).job.chain
    if len(chain) > 1:
        raise UserError(
            f"--fits={target}: {way.config.algorithm} lies on several places; it is for methods "
            f"of one"
        )

    # A device of this machine may be in use: what is free counts. A described one is empty.
    here = build.present(target)
    if here is None:
        capacity_bytes = fits.capacity(devices(target)[0])
    else:
        capacity_bytes = measure.free_bytes(here)
    usable_bytes = int((1 - spare) * capacity_bytes)
    left = f", {usable_bytes / 2**30:.2f} of them to use" if spare else ""
    note(f"{target}: {capacity_bytes / 2**30:.2f} GiB{left}")
    found = fits.largest(_search(ask, target, usable_bytes, note))
    return None if found is None else _told(way, model, found, capacity_bytes)


def _search(ask: Ask, target: str, capacity_bytes: int, note: Note) -> FitSearch:
    """What to search in, from what was asked for and what there is."""
    way = ask.ways[0]

    # A candidate fits where its largest visit does.
    def largest_visit(candidate: Candidate, target: str) -> tuple[Subject, LayerNames]:
        config = configured(way.config, candidate)
        work = cases.work(way.train, config, ask.model, target)
        return work.subject, _largest_visit(work)

    def compiled(candidate: Candidate) -> Compiled | Refused:
        subject, trained = largest_visit(candidate, target)
        return subjects.compile_subject(subject, trained)

    # Gradients are temporaries to the compiler, which may do without them all at once.
    def least_bytes(candidate: Candidate) -> int:
        subject, trained = largest_visit(candidate, "")
        state = subjects.state(subject, trained)
        return state.total - state.gradients

    def tell(tried: Tried) -> None:
        note(_said(tried))

    # What else may give way; 0 stands for what there is none of.
    lengths: tuple[int, ...] = (0,)
    ranks: tuple[int, ...] = (0,)
    if isinstance(way.config, TextConfig):
        lengths = fits.halvings(way.config.max_length, LEAST_LENGTH)
        if way.config.rank:
            raise UserError(
                f"--train={way.train}: --fits searches for a rank of its own; say "
                f"--train=lora:{way.config.lora_rank}"
            )
        if way.config.lora_rank:
            ranks = fits.halvings(way.config.lora_rank, LEAST_RANK)
    return FitSearch(
        lengths=lengths,
        dtypes=_dtypes(ask.ways),
        ranks=ranks,
        compiled=compiled,
        least_bytes=least_bytes,
        capacity_bytes=capacity_bytes,
        note=tell,
    )


def _largest_visit(work: Work) -> LayerNames:
    """What the visit trains that holds the most; of several the first."""

    def held_bytes(trained: LayerNames) -> int:
        return subjects.state(work.subject, trained).total

    return max(cases.assignments(work).values(), key=held_bytes)


def _dtypes(ways: Sequence[TrainingWay]) -> list[str]:
    """The ways to store that were named, the most precise first."""
    named = {way.config.frozen_dtype for way in ways}
    return [dtype for dtype in fits.PRECISION if dtype in named]


def configured(config: RunConfig, candidate: Candidate) -> RunConfig:
    """The configuration of a run that takes such steps."""
    # Storage of what does not train is no matter where all of it does.
    changes: dict[str, Any] = {"batch_size": candidate.batch}
    if ALGORITHMS[config.algorithm].trains_parts or candidate.rank:
        changes["frozen_dtype"] = candidate.frozen_dtype
    if isinstance(config, TextConfig):
        changes |= {"max_length": candidate.length, "lora_rank": candidate.rank}
    return dataclasses.replace(config, **changes)


def _said(tried: Tried) -> str:
    """A try, in a line."""
    peak = "does not fit"
    if tried.peak_bytes is not None:
        peak = f"fits, {tried.peak_bytes / 2**30:.2f} GiB"
    return f"{_words(tried.candidate)}: {peak}, {tried.wall_s:.1f} s"


def _words(candidate: Candidate) -> str:
    """A candidate, in words."""
    size = f"{candidate.batch} images"
    if candidate.length:
        size = f"{candidate.batch} x {candidate.length} tokens"
    rank = f", rank {candidate.rank}" if candidate.rank else ""
    return f"{size}, frozen as {candidate.frozen_dtype}{rank}"


def _told(way: TrainingWay, model: Model, found: Tried, capacity_bytes: int) -> str:
    """The candidate that was found, and the launch of a run with it."""
    config = configured(way.config, found.candidate)
    peak_bytes = found.peak_bytes or 0
    percent = 100 * peak_bytes / capacity_bytes
    size = f"{peak_bytes / 2**30:.2f} GiB, {percent:.0f} % of the device"
    lines = [f"{_words(found.candidate)}: {size}"]
    if isinstance(config, TextConfig):
        lines += _evaluated(config, way, model, capacity_bytes)
    return "\n".join([*lines, command(config)])


def _evaluated(
    config: TextConfig, way: TrainingWay, model: Model, capacity_bytes: int
) -> list[str]:
    """What to know of a run's evaluation, where it takes more than there is.

    It lays all that may train, in the arithmetic's dtype, beside the frozen blocks.
    """
    work = cases.work(way.train, config, model)
    beside_bytes = memory.evaluation_bytes(work.subject.step, work.subject.adapters)
    frozen_bytes = 0
    for trained in cases.assignments(work).values():
        state = subjects.state(work.subject, trained)
        frozen_bytes = max(frozen_bytes, state.frozen)
    if beside_bytes + frozen_bytes <= capacity_bytes:
        return []
    return [
        f"Its evaluation would not fit: {beside_bytes / 2**30:.2f} GiB of all that may train "
        f"beside {frozen_bytes / 2**30:.2f} GiB of what does not; --train=lora:R evaluates in less."
    ]


def command(config: RunConfig) -> str:
    """The launch of a run: what is not as it would be anyway, and its folder."""
    assert isinstance(config, ImageConfig | TextConfig)
    launch = "finetune" if isinstance(config, TextConfig) else "classify"
    words = ["snake-jax", launch]

    # First what the search is about, whatever it is; then all else that was set.
    names = [name for name in _TOLD if hasattr(config, name)]
    for field in dataclasses.fields(config):
        if field.name not in _TOLD and getattr(config, field.name) != field.default:
            names.append(field.name)
    for name in names:
        words.append(f"--{name}={getattr(config, name)}")
    folder = config.model.rstrip("/").rsplit("/", 1)[-1]
    words.append(f"--workdir=runs/{folder}")
    return shlex.join(words)
