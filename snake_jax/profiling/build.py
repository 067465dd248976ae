"""The compiled and measured part of a profile: programs once each, steps in turns."""

import time
from collections.abc import Callable, Hashable
from typing import Any

from snake_jax.costs import shapes
from snake_jax.costs.compiled import Compiled, devices
from snake_jax.costs.roofline import Peaks
from snake_jax.profiling import measure, subjects
from snake_jax.profiling.measure import FULL
from snake_jax.profiling.rows import Built, Case, ProfileRow
from snake_jax.profiling.subjects import Subject

Note = Callable[[str], None]  # is told, in a line, of what takes a while
Programs = dict[Hashable, Built]
Runner = Callable[[], Any]


def compiled_row(row: ProfileRow, subject: Subject, programs: Programs, note: Note) -> ProfileRow:
    """The row with what the compiler says; assignments that share a program share its compilation.

    Args:
      row: from shapes.
      subject: that the row is of.
      programs: of the subject, compiled before; those compiled here are added.
      note: is told of each compilation.
    """
    # Which of the alike blocks trains is an argument: blocks share one program.
    key = shapes.program_key(subject.step, row.trained)
    if key not in programs:
        programs[key] = _built(row, subject)
        note(f"{row.layer}: {_said(programs[key])}")
    built = programs[key]
    counted = subjects.counted(subject, row.trained, built.result)
    return row._replace(built=built, counted=counted)


def _built(row: ProfileRow, subject: Subject) -> Built:
    """The row's program, and how long it took to compile."""
    wall_start_s = time.perf_counter()
    cpu_start_s = time.process_time()
    result = subjects.compile_subject(subject, row.trained)
    wall_s = time.perf_counter() - wall_start_s
    cpu_s = time.process_time() - cpu_start_s
    return Built(result, wall_s, cpu_s)


def _said(built: Built) -> str:
    outcome = "does not fit"
    if built.memory is not None:
        outcome = f"peak {built.memory.peak / 2**30:.2f} GiB"
    return f"{outcome}, compiled in {built.wall_s:.1f} s ({built.cpu_s:.1f} s of this process)"


def present(target: str) -> Any | None:
    """The device of this machine that a target names; None for none and for described ones."""
    if not target or ":" in target:
        return None
    return devices(target)[0]


def measured_case(
    case: Case, subject: Subject, full: Subject, device: Any, at_best: Peaks, note: Note
) -> Case:
    """The case with its steps, and the full one, timed on a device, where they fit.

    Args:
      case: with compiled rows.
      subject: of the rows.
      full: of full training.
      device: of this machine.
      at_best: from `measure.peaks`.
      note: is told what does not run.
    """
    # What fits into the memory that is free.
    rows, left_out = [], []
    for row in case.rows:
        if measure.runs_here(row.built, device):
            rows.append(row)
        else:
            left_out.append(row.layer)
    whole: ProfileRow | None = case.full
    if not measure.runs_here(case.full.built, device):
        whole = None
        left_out.append(FULL)
    if left_out:
        note(f"{', '.join(left_out)}: not run, it does not fit into the memory that is free")

    # Steps of one program share its arguments: they are as large as the model.
    runners: dict[str, Runner] = {}
    arrays: dict[Hashable, list[Any]] = {}
    for row in rows:
        key = shapes.program_key(subject.step, row.trained)
        shared = arrays.setdefault(key, [])
        runners[row.layer] = _runner(row, subject, shared)
    if whole is not None:
        runners[FULL] = _runner(whole, full, [])

    # Each row gets what was measured of it; those that were left out get nothing.
    found = measure.timed_steps(rows, whole, runners, at_best, device)
    every = []
    for row in case.rows:
        every.append(row._replace(measured=found.get(row.layer)))
    full_row = case.full._replace(measured=found.get(FULL))
    return case._replace(rows=tuple(every), full=full_row)


def _runner(row: ProfileRow, subject: Subject, arrays: list[Any]) -> Runner:
    """The row's step as a function of nothing; `arrays` are shared by steps of one program."""
    assert row.built is not None
    assert isinstance(row.built.result, Compiled)
    return subjects.runner(subject, row.trained, row.built.result, arrays)
