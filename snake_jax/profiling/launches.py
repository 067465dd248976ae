"""The search for what fits, over configurations of runs, and the launch of what was found."""

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.config import ImageConfig, RunConfig, TextConfig
from snake_jax.costs import memory
from snake_jax.costs.compiled import Compiled, Refused, devices
from snake_jax.costs.memory import StateBytes
from snake_jax.costs.shapes import Model
from snake_jax.errors import UserError
from snake_jax.profiling import build, cases, fits, measure, subjects
from snake_jax.profiling.ask import Ask, Way
from snake_jax.profiling.cases import Work
from snake_jax.profiling.fits import Candidate, Search, Tried
from snake_jax.profiling.subjects import Subject

LEAST_LENGTH, LEAST_RANK = 128, 8


def largest_launch(ask: Ask, target: str, note: Callable[[str], None]) -> str | None:
    """What the largest step is that fits, and how to launch a run of such.

    Args:
      ask: ways that train alike; the ways to store are searched among.
      target: see `compiled.devices`.
      note: is told of each try.

    Returns:
      None where not one row fits.

    Raises:
      UserError: several ways to train, or a method that lies on several places.
    """
    if len({way.train for way in ask.ways}) > 1:
        raise UserError(f"--fits={target}: it searches one way to train; give one --train")
    way, model = ask.ways[0], ask.model
    if len(cases.work(way.train, way.config, model).job.chain) > 1:
        raise UserError(
            f"--fits={target}: {way.config.algorithm} lies on several places; it is for methods "
            f"of one"
        )
    here = build.present(target)
    if here is None:
        capacity_bytes = fits.capacity(devices(target)[0])
    else:
        capacity_bytes = measure.free_bytes(here)
    note(f"{target}: {capacity_bytes / 2**30:.2f} GiB")
    found = fits.largest(_search(ask, target, capacity_bytes, note))
    return None if found is None else _told(way, model, found, capacity_bytes)


def _search(ask: Ask, target: str, capacity_bytes: int, note: Callable[[str], None]) -> Search:
    way = ask.ways[0]

    def largest_visit(candidate: Candidate, target: str) -> tuple[Subject, tuple[str, ...]]:
        work = cases.work(way.train, configured(way.config, candidate), ask.model, target)
        visits = cases.assignments(work).values()
        return work.subject, max(visits, key=lambda layers: _state(work, layers).total)

    def compiled(candidate: Candidate) -> Compiled | Refused:
        return subjects.compile_subject(*largest_visit(candidate, target))

    # Gradients are temporaries to the compiler, which may do without them all at once.
    def least_bytes(candidate: Candidate) -> int:
        state = subjects.state(*largest_visit(candidate, ""))
        return state.total - state.gradients

    lengths: tuple[int, ...] = (0,)
    ranks: tuple[int, ...] = (0,)
    if isinstance(way.config, TextConfig):
        lengths = fits.halvings(way.config.max_length, LEAST_LENGTH)
        if way.config.lora_rank:
            ranks = fits.halvings(way.config.lora_rank, LEAST_RANK)
    return Search(
        lengths=lengths,
        dtypes=_dtypes(ask.ways),
        ranks=ranks,
        compiled=compiled,
        least_bytes=least_bytes,
        capacity_bytes=capacity_bytes,
        note=lambda tried: note(_said(tried)),
    )


def _state(work: Work, trained: tuple[str, ...]) -> StateBytes:
    return subjects.state(work.subject, trained)


def _dtypes(ways: Sequence[Way]) -> list[str]:
    named = {way.config.frozen_dtype for way in ways}
    return [dtype for dtype in fits.PRECISION if dtype in named]


def configured(config: RunConfig, candidate: Candidate) -> RunConfig:
    """The configuration of a run that takes such steps."""
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


def _told(way: Way, model: Model, found: Tried, capacity_bytes: int) -> str:
    config = configured(way.config, found.candidate)
    peak_bytes = found.peak_bytes or 0
    percent = 100 * peak_bytes / capacity_bytes
    size = f"{peak_bytes / 2**30:.2f} GiB, {percent:.0f} % of the device"
    lines = [f"{_words(found.candidate)}: {size}"]
    if isinstance(config, TextConfig):
        lines += _evaluated(config, way, model, capacity_bytes)
    return "\n".join([*lines, command(config)])


def _evaluated(config: TextConfig, way: Way, model: Model, capacity_bytes: int) -> list[str]:
    """What to know of a run's evaluation, where it takes more than there is.

    It lays all that may train, in the arithmetic's dtype, beside the frozen blocks.
    """
    work = cases.work(way.train, config, model)
    beside = memory.evaluation_bytes(work.subject.step, work.subject.adapters)
    frozen = max(_state(work, trained).frozen for trained in cases.assignments(work).values())
    if beside + frozen <= capacity_bytes:
        return []
    return [
        f"Its evaluation would not fit: {beside / 2**30:.2f} GiB of all that may train beside "
        f"{frozen / 2**30:.2f} GiB "
        "of what does not; --train=lora:R evaluates in less."
    ]


def command(config: RunConfig) -> str:
    """The launch of a run: what is not as it would be anyway, and its folder."""
    launch = "finetune" if isinstance(config, TextConfig) else "classify"
    always = ("model", "algorithm", "frozen_dtype", "batch_size", "max_length", "lora_rank")
    given = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in always or value != field.default:
            given.append(f"--{field.name}={value}")
    words = ["snake-jax", launch, *sorted(given, key=_place(always))]
    assert isinstance(config, ImageConfig | TextConfig)
    name = config.model.rstrip("/").rsplit("/", 1)[-1]
    return shlex.join([*words, f"--workdir=runs/{name}"])


def _place(always: Sequence[str]) -> Callable[[str], int]:
    order = {f"--{name}": place for place, name in enumerate(always)}
    return lambda flag: order.get(flag.partition("=")[0], len(order))
