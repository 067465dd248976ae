"""Stage `steps`: the time of steps that train a part, over that of the full step and the FLOPs."""

import sys
from typing import Any

import jax

from experiments.accept.outcome import Outcome, line_of
from experiments.accept.sizes import Alone
from experiments.accept.stages import Given
from experiments.bench.rows import LOWER, Row
from snake_jax.profiling import ask, build, cases, measure
from snake_jax.profiling.rows import Case, ProfileRow
from snake_jax.profiling.subjects import Subject

TABLE = "Time and FLOPs of a step, over those of the full step"
MOST_OF_FULL = 1.1
"""A part may not take longer than the whole, but for what measuring is off."""


def run(given: Given) -> Outcome:
    """The lowest, the middle and the highest layer of every network."""
    rows: list[Row] = []
    failures = []
    for step in given.sizes.steps:
        try:
            rows += _rows(step, given.sizes.held)
        except Exception as error:
            failures.append(f"{step.subject}: {line_of(error)}")
    return Outcome(rows, failures)


def _rows(step: Alone, held: bool) -> list[Row]:
    device = jax.devices()[0]
    case, subject, full = compiled_case(step, device.platform)
    dtype = subject.step.compute_dtype if hasattr(subject.step, "compute_dtype") else "float32"
    at_best = measure.peaks(device, dtype)
    found = build.measured_case(case, subject, full, device, at_best, _note)
    rows = []
    for row in found.rows:
        rows += _row(step, row, found.full, held)
    return rows


def compiled_case(step: Alone, target: str) -> tuple[Case, Subject, Subject]:
    """Three visits and full training, compiled; what they are of.

    Args:
      step: how to train.
      target: see `costs.compiled.devices`.
    """
    settings: dict[str, Any] = {"batch_size": step.batch}
    if step.length:
        settings["max_length"] = step.length
    asked = ask.resolve(step.model, "snake", [step.train], [step.frozen_dtype], settings, target)
    way = asked.ways[0]
    work = cases.work(way.train, way.config, asked.model, target)
    full = cases.full(way.config, asked.model, target)
    layers = list(cases.assignments(work))
    wanted = {layers[0], layers[len(layers) // 2], layers[-1]}
    reference = build.compiled_row(cases.reference(full), full.subject, {}, _note)
    case = cases.case(work, reference, wanted.__contains__)
    programs: build.Programs = {}
    rows = []
    for row in case.rows:
        rows.append(build.compiled_row(row, work.subject, programs, _note))
    return case._replace(rows=tuple(rows)), work.subject, full.subject


def _row(step: Alone, row: ProfileRow, full: ProfileRow, held: bool) -> list[Row]:
    """One visit's, beside full training; with its goal where it is held to that."""
    if row.measured is None or row.measured.of_full is None:
        raise RuntimeError(f"{row.layer}: it does not fit beside the full step")
    subject = f"{step.subject}: {row.layer}"
    time = row.measured.of_full
    flops = row.flops.total / full.flops.total
    limit = MOST_OF_FULL if held else None
    return [
        Row(TABLE, subject, "step", 1e3 * row.measured.step_s, "ms"),
        Row(TABLE, subject, "time / full", time, better=LOWER, limit=limit),
        Row(TABLE, subject, "FLOPs / full", flops),
        Row(TABLE, subject, "time off FLOPs", abs(time / flops - 1), better=LOWER),
        Row(TABLE, subject, "of roofline", row.measured.roofline),
    ]


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
