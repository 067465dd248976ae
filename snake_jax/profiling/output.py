"""A profile as text: tables for people, JSON and CSV for programs."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jaxlib

from snake_jax.costs.roofline import Peaks
from snake_jax.costs.shapes import Model, model_shapes
from snake_jax.costs.timing import machine
from snake_jax.models.language import LanguageModel
from snake_jax.params import num_params
from snake_jax.profiling import cut, formula, tables
from snake_jax.profiling.ask import Ask
from snake_jax.profiling.cases import Work
from snake_jax.profiling.formula import Formula
from snake_jax.profiling.rows import (
    Case,
    ProfileRow,
    built_record,
    largest_row,
    record,
    state_record,
)
from snake_jax.profiling.subjects import unbroken_length
from snake_jax.profiling.tables import Section
from snake_jax.report.units import human

_OF_MACHINE = ("processor", "cores", "python", "load_1min")


class Profile(NamedTuple):
    """All that is told.

    Attributes:
      command: the launch.
      ask: what it asked for.
      cases: ways to train and store.
      works: those that the cases are of, one each.
      target: that steps are compiled for; empty: none.
      peaks: of the device; None where none ran.
    """

    command: str
    ask: Ask
    cases: Sequence[Case]
    works: Sequence[Work]
    target: str
    peaks: Peaks | None


def title(profile: Profile) -> str:
    """What the profile is of, in a line."""
    config = profile.works[0].job.config
    params = f"{profile.cases[0].full.params:,} parameters"
    what = f"{profile.ask.name}, {_depth(profile.ask.model)}, {params}, {config.algorithm}"
    how = f"{config.optimizer}, {config.compute_dtype} arithmetic"
    if profile.target:
        how += f", on {profile.target}"
    return f"{what}; a step of {_batch(profile)}, {how}"


def _batch(profile: Profile) -> str:
    """What a step takes at once, for people."""
    config, model = profile.works[0].job.config, profile.ask.model
    if isinstance(model, LanguageModel):
        return f"{config.batch_size} x {config.max_length} tokens"
    sides = "x".join(map(str, model.input_shape))
    return f"{config.batch_size} images of {sides}"


def _depth(model: Model) -> str:
    if isinstance(model, LanguageModel):
        return f"{model.num_blocks} blocks"
    return f"{len(model.layers)} layers"


def formulas(profile: Profile) -> tuple[Formula, ...]:
    """The papers' formula, which is one of language models: blocks that are alike."""
    model = profile.ask.model
    if not isinstance(model, LanguageModel):
        return ()
    return formula.of_model(profile.ask.name, profile.cases[0].full.params, model.num_blocks)


def _sections(profile: Profile) -> list[Section]:
    """All tables, in the order in which they are told."""
    unit = "place" if _cut(profile) else "layer"
    found = tables.sections(unit, profile.cases)

    # The formula is one of memory: it stands after the table of that.
    values = formulas(profile)
    if values:
        found.insert(1, tables.formula_section(values, profile.cases))
    if _cut(profile):
        lines = []
        for words, num_bytes in _cut_sends(profile):
            lines.append([words, f"{num_bytes:,}"])
        found.append(Section("What a step sends over the cut", ["", "bytes"], lines))
    return found


def _cut(profile: Profile) -> bool:
    return len(profile.works[0].job.chain) > 1


def notes(profile: Profile) -> list[str]:
    """What a reader has to know about the numbers."""
    # Units first; then what the numbers leave out, and what measured ones are relative to.
    found = [
        "GiB and MiB are 2**30 and 2**20 bytes, other prefixes decimal; a multiplication and an "
        "addition are 2 FLOPs."
    ]
    if isinstance(profile.ask.model, LanguageModel):
        found.append(_left_out(profile, profile.ask.model))
    if profile.target:
        found.append(_compared(profile))
    mesh = getattr(profile.works[0].job.config, "mesh", "")
    if mesh:
        found.append(
            f"Compiled memory is that of each device of the mesh {mesh}, as are the collectives "
            "in json and csv, which count the body of a loop once; state and FLOPs are of all "
            "together."
        )
    if profile.peaks:
        rate = human(profile.peaks.flops_s, "FLOP/s")
        band = human(profile.peaks.bytes_s, "B/s")
        found.append(
            f"Roofline: {rate} and {band}, the best that this device was seen to do in this run."
        )
    return found


def _left_out(profile: Profile, model: LanguageModel) -> str:
    """What the papers' formula does not see, in numbers."""
    ends = f"{end_params(model):,} parameters of embedding and head, which are no block"

    # Gradients are temporaries to the compiler, and in the formula.
    temporaries = []
    for case in profile.cases:
        row = largest_row(case)
        if row.built is not None and row.built.memory is not None:
            beyond_bytes = row.built.memory.temporaries - row.state.gradients
            temporaries.append(max(0, beyond_bytes))
    activations = "activations and other temporaries"
    if temporaries:
        low = f"{min(temporaries) / 2**30:.2f}"
        high = f"{max(temporaries) / 2**30:.2f}"
        sizes = low if low == high else f"{low} to {high}"
        activations += f" ({sizes} GiB beyond gradients by the compiler)"
    rest = "narrower storage than 2 bytes, adapters, and a teacher"
    return f"The formula leaves out {ends}; {activations}; {rest}."


def end_params(model: LanguageModel) -> int:
    """Parameters of a language model's embedding and head."""
    shapes = model_shapes(model)
    return num_params((shapes["embed"], shapes["head"]))


def _compared(profile: Profile) -> str:
    """What the compiler's count is of."""
    config, model = profile.works[0].job.config, profile.ask.model
    if not isinstance(model, LanguageModel):
        return (
            "The compiler's FLOPs are of the compiled step, elementwise work among them; of "
            "its own convolution it leaves out products with padding."
        )
    here = jax.devices()[0].platform
    length = unbroken_length(model, config.max_length)
    return (
        f"The compiler's FLOPs are those that {here}'s compiler counts for one block and the "
        f"output matrix with its loss, each unrolled, {config.batch_size} x {length} tokens, put "
        "together as the step does; compared with the formula for as many. The step's own loops "
        "it would count once."
    )


def as_table(profile: Profile) -> str:
    """For a terminal."""
    parts = [title(profile)]
    parts += map(tables.text_table, _sections(profile))
    parts.append("\n".join(notes(profile)))
    return "\n\n".join(parts)


def as_markdown(profile: Profile) -> str:
    """For a document."""
    parts = [title(profile)]
    parts += map(tables.markdown_table, _sections(profile))
    parts += notes(profile)
    return "\n\n".join(parts)


def as_json(profile: Profile) -> str:
    """Everything, as numbers.

    `rows` are the cases, each with the record of its row that holds the most.
    """
    # What was asked for: settings that only one kind of model has are left out for the other.
    config, full = profile.works[0].job.config, profile.cases[0].full
    found: dict[str, Any] = {
        "command": profile.command,
        "model": profile.ask.name,
        "algorithm": config.algorithm,
        "batch_size": config.batch_size,
    }
    for name in ("max_length", "recompute", "optimizer", "compute_dtype"):
        if hasattr(config, name):
            found[name] = getattr(config, name)

    # What the numbers depend on.
    found["target"] = profile.target
    found["jax"] = jax.__version__
    found["jaxlib"] = jaxlib.__version__
    here = machine()
    found["machine"] = {name: here[name] for name in _OF_MACHINE}
    found["peaks"] = profile.peaks._asdict() if profile.peaks else None

    # The numbers.
    found["formula"] = [formula._asdict() for formula in formulas(profile)]
    found["notes"] = notes(profile)
    found["full"] = record(full, full)
    found["cut"] = []
    for words, num_bytes in _cut_sends(profile):
        found["cut"].append({"sends": words, "bytes": num_bytes})
    found["rows"] = [_case(case) for case in profile.cases]
    return json.dumps(found, indent=1)


def _cut_sends(profile: Profile) -> list[tuple[str, int]]:
    if not _cut(profile):
        return []
    work = profile.works[0]
    return cut.cut_bytes(work.job, work.subject.batch)


def _case(case: Case) -> dict[str, Any]:
    """A case as a record, of its row that holds the most; its rows beside it."""
    most = largest_row(case)
    return {
        "train": case.train,
        "frozen_dtype": case.frozen_dtype,
        "trainable_params": most.params,
        **state_record(most.state),
        **built_record(most.built),
        "layers": [record(row, case.full) for row in case.rows],
    }


def as_csv(profile: Profile) -> str:
    """A line for each case and layer, and for full training."""
    full = profile.cases[0].full
    lines = []
    for case in profile.cases:
        for row in case.rows:
            lines.append(_line(case.train, case.frozen_dtype, row, full))
    lines.append(_line("full", "-", full, full))

    # Columns in the order in which lines first have them; not every line has all.
    names: dict[str, None] = {}
    for line in lines:
        names.update(dict.fromkeys(line))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().rstrip("\n")


def _line(train: str, dtype: str, row: ProfileRow, full: ProfileRow) -> dict[str, Any]:
    """A row as a line of CSV."""
    found = record(row, full)
    return {"train": train, "frozen_dtype": dtype, **found, "trained": "+".join(row.trained)}


FORMATS: dict[str, Callable[[Profile], str]] = {
    "table": as_table,
    "json": as_json,
    "csv": as_csv,
    "markdown": as_markdown,
}
