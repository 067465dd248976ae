"""Carries out `snake-jax profile`: what training takes of a node, or the search for what fits."""

import sys
from collections.abc import Sequence

from absl.flags import FlagValues

from snake_jax.cli import profile_scct
from snake_jax.cli.commands.command import Given
from snake_jax.costs import shapes
from snake_jax.errors import UserError
from snake_jax.profiling import ask, build, cases, launches, measure, output
from snake_jax.profiling.ask import Ask
from snake_jax.profiling.cases import Work
from snake_jax.profiling.output import FORMATS, Profile
from snake_jax.profiling.rows import Case, ProfileRow

# Flags with the names of a run's settings; None: as in a run.
_SETTINGS = (
    "batch_size",
    "max_length",
    "recompute",
    "mesh",
    "frozen_matmul",
    "packing",
    "optimizer",
    "compute_dtype",
    "nodes",
    "cut",
    "cloud_cut",
    "tail",
    "snake_length",
    "dp_clip",
)


def main(given: Given) -> None:
    """Tables, or the search."""
    flags = given.flags
    if flags.algorithm == "scct":
        profile_scct.run(flags, given.line)
        return
    if flags["small_model"].present:
        raise UserError(f"--small_model: says nothing to --algorithm={flags.algorithm}")
    asked = _asked(flags)
    if flags.fits:
        print(_search(asked, flags.fits, flags.spare))
    else:
        _profile(asked, given)


def _asked(flags: FlagValues) -> Ask:
    """The settings that were given, for configurations of runs."""
    settings = {}
    for name in _SETTINGS:
        if flags[name].value is not None:
            settings[name] = flags[name].value
    if flags.distill:
        settings["distill"] = "on"
    if flags.spare and not flags.fits:
        raise UserError(f"--spare={flags.spare:g}: it is what --fits leaves free; give --fits too")
    if flags.fits and flags.target:
        raise UserError(f"--fits={flags.fits} and --target={flags.target}: give one of them")
    target = flags.fits or flags.target
    return ask.resolve(
        flags.model, flags.algorithm, flags.train, flags.frozen_dtype, settings, target
    )


def _profile(asked: Ask, given: Given) -> None:
    flags = given.flags
    target = flags.target
    works = [cases.work(way.train, way.config, asked.model, target) for way in asked.ways]
    if target and any(len(work.job.chain) > 1 for work in works):
        raise UserError(
            f"--target={target}: {flags.algorithm} is compiled as one program, of no place; leave "
            f"it out"
        )
    # What follows from shapes: the rows that were chosen, and full training to set them against.
    full = cases.full(asked.ways[0].config, asked.model, target)
    layers: list[str] = []
    for work in works:
        layers.extend(cases.assignments(work))
    chosen = cases.choice(flags.layers, layers)
    reference = cases.reference(full)
    found = [cases.case(work, reference, chosen) for work in works]
    # What the compiler says, and the clock where the device is here. Steps on a mesh are compiled
    # and not timed: the peaks are those of one device.
    device = None if flags.mesh else build.present(target)
    peaks = None
    if target:
        reference = build.compiled_row(reference, full.subject, {}, _note)
        found = [_compiled(case, work, reference) for case, work in zip(found, works, strict=True)]
    if device is not None:
        peaks = measure.peaks(device, full.job.config.compute_dtype)
        for index, work in enumerate(works):
            found[index] = build.measured_case(
                found[index], work.subject, full.subject, device, peaks, _note
            )
    profile = Profile(given.line, asked, found, works, target, peaks)
    print(FORMATS[flags.format](profile))
    if flags.plot:
        _draw(flags.plot, output.title(profile), found)


def _draw(path: str, title: str, found: Sequence[Case]) -> None:
    # Here, since matplotlib takes a second, and most profiles draw nothing.
    from snake_jax.profiling import picture

    _note(f"written: {picture.draw_profile(path, title, found)}")


def _compiled(case: Case, work: Work, reference: ProfileRow) -> Case:
    """The case with what the compiler says of its rows; the reference's program serves both."""
    programs: build.Programs = {}
    if work.train == "full" and reference.built is not None:
        programs[shapes.program_key(work.subject.step, reference.trained)] = reference.built
    rows = tuple(build.compiled_row(row, work.subject, programs, _note) for row in case.rows)
    return case._replace(rows=rows, full=reference)


def _search(asked: Ask, target: str, spare: float) -> str:
    """The largest step that the target takes."""
    found = launches.largest_launch(asked, target, spare, _note)
    if found is None:
        left = f" beside the {spare:g} of its memory that --spare leaves free" if spare else ""
        raise UserError(
            f"--fits={target}: not one row fits, in any storage, rank or length that was "
            f"tried{left}"
        )
    return found


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
