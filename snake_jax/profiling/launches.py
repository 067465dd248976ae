"""The search for what fits, over configurations of runs, and the command that launches what was
found.
"""

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from snake_jax.config import RunConfig, TextConfig
from snake_jax.costs import targets
from snake_jax.errors import UserError
from snake_jax.profiling import build, cases, fits, language, measure
from snake_jax.profiling.ask import Ask, Way
from snake_jax.profiling.cases import Model, Work
from snake_jax.profiling.fits import Candidate, Search, Tried
from snake_jax.runs.text_task import make_lora, make_step

LEAST_LENGTH, LEAST_RANK = 128, 8


def largest(ask: Ask, target: str, note: Callable[[str], None]) -> str | None:
    """What the largest step is that fits, and how to launch a run of such; None where not one row
    fits.

    Args:
      ask: ways that train alike; the ways to store are searched among.
      target: see `targets.devices`.
      note: is told of each try.

    Raises:
      UserError: several ways to train, or a method that lies on several places.
    """
    if len({way.train for way in ask.ways}) > 1:
        raise UserError(f"--fits={target}: it searches one way to train; give one --train")
    way, model = ask.ways[0], ask.model
    if len(cases.work(way.train, way.config, model).setup.chain) > 1:
        raise UserError(
            f"--fits={target}: {way.config.algorithm} lies on several places; it is for methods "
            f"of one"
        )
    device = targets.devices(target)[0]
    here = build.present(target)
    capacity_bytes = fits.capacity(device) if here is None else measure.free_bytes(here)
    note(f"{target}: {capacity_bytes / 2**30:.2f} GiB")
    found = fits.largest(_search(ask, target, capacity_bytes, note))
    return None if found is None else _told(way, model, found, capacity_bytes)


def _search(ask: Ask, target: str, capacity_bytes: int, note: Callable[[str], None]) -> Search:
    way = ask.ways[0]

    def tried(candidate: Candidate, target: str) -> tuple[Work, tuple[str, ...]]:
        work = cases.work(way.train, configured(way.config, candidate), ask.model, target)
        return work, max(
            cases.assignments(work).values(), key=lambda trained: work.subject.state(trained).total
        )

    def compiled(candidate: Candidate) -> targets.Compiled | targets.Refused:
        work, trained = tried(candidate, target)
        return work.subject.compiled(trained)

    def least_bytes(candidate: Candidate) -> int:
        work, trained = tried(candidate, "")
        state = work.subject.state(trained)
        return state.total - state.gradients

    of_text = isinstance(way.config, TextConfig)
    lengths = (
        fits.halvings(way.config.max_length, LEAST_LENGTH)
        if isinstance(way.config, TextConfig)
        else (0,)
    )
    rank = way.config.lora_rank if isinstance(way.config, TextConfig) else 0
    ranks = fits.halvings(rank, LEAST_RANK) if of_text and rank else (rank,)
    return Search(
        lengths,
        _dtypes(ask.ways),
        ranks,
        compiled,
        least_bytes,
        capacity_bytes,
        lambda t: note(said(t)),
    )


def _dtypes(ways: Sequence[Way]) -> list[str]:
    named = {way.config.frozen_dtype for way in ways}
    return [dtype for dtype in fits.PRECISION if dtype in named]


def configured(config: RunConfig, candidate: Candidate) -> RunConfig:
    """The configuration of a run that takes such steps."""
    changes: dict[str, Any] = {"batch_size": candidate.batch}
    if config.algorithm == "snake" or candidate.rank:
        changes["frozen_dtype"] = candidate.frozen_dtype
    if isinstance(config, TextConfig):
        changes |= {"max_length": candidate.length, "lora_rank": candidate.rank}
    return dataclasses.replace(config, **changes)


def said(tried: Tried) -> str:
    """A try, in a line."""
    peak = (
        "does not fit" if tried.peak_bytes is None else f"fits, {tried.peak_bytes / 2**30:.2f} GiB"
    )
    return f"{words(tried.candidate)}: {peak}, {tried.wall_s:.1f} s"


def words(candidate: Candidate) -> str:
    """A candidate, in words."""
    size = (
        f"{candidate.batch} x {candidate.length} tokens"
        if candidate.length
        else f"{candidate.batch} images"
    )
    rank = f", rank {candidate.rank}" if candidate.rank else ""
    return f"{size}, frozen as {candidate.frozen_dtype}{rank}"


def _told(way: Way, model: Model, found: Tried, capacity_bytes: int) -> str:
    config = configured(way.config, found.candidate)
    share = (found.peak_bytes or 0) / capacity_bytes
    lines = [
        f"{words(found.candidate)}: {(found.peak_bytes or 0) / 2**30:.2f} GiB, {100 * share:.0f} "
        f"% of the device"
    ]
    if isinstance(config, TextConfig):
        lines += _evaluated(config, way, model, capacity_bytes)
    return "\n".join([*lines, command(config)])


def _evaluated(config: TextConfig, way: Way, model: Model, capacity_bytes: int) -> list[str]:
    """A run evaluates too, with all that may train in the arithmetic's dtype beside the frozen
    blocks.
    """
    work = cases.work(way.train, config, model)
    step = make_step(work.setup)
    beside = language.evaluation_bytes(step, make_lora(config) if step.adapted else None)
    state = max(work.subject.state(trained).frozen for trained in cases.assignments(work).values())
    if beside + state <= capacity_bytes:
        return []
    return [
        f"Its evaluation would not fit: {beside / 2**30:.2f} GiB of all that may train beside "
        f"{state / 2**30:.2f} GiB "
        "of what does not; --train=lora:R evaluates in less."
    ]


def command(config: RunConfig) -> str:
    """The launch of a run: what is not as it would be anyway, and its folder."""
    launch = "finetune" if isinstance(config, TextConfig) else "classify"
    always = ("model", "algorithm", "frozen_dtype", "batch_size", "max_length", "lora_rank")
    given = [
        f"--{field.name}={getattr(config, field.name)}"
        for field in dataclasses.fields(config)
        if field.name in always or getattr(config, field.name) != field.default
    ]
    folder = (
        f"--workdir=runs/{config.model.rstrip('/').rsplit('/', 1)[-1]}"
        if hasattr(config, "model")
        else ""
    )
    return shlex.join(["snake-jax", launch, *sorted(given, key=_place(always)), folder])


def _place(always: Sequence[str]) -> Callable[[str], int]:
    order = {f"--{name}": place for place, name in enumerate(always)}
    return lambda flag: order.get(flag.partition("=")[0], len(order))
