"""A profile as text: tables for people, JSON and CSV for programs."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jaxlib

from snake_jax.costs.roofline import Peaks
from snake_jax.costs.timing import machine
from snake_jax.models.language import LanguageModel
from snake_jax.params import num_params
from snake_jax.profiling import cut, formula, tables
from snake_jax.profiling.ask import Ask
from snake_jax.profiling.cases import Work
from snake_jax.profiling.formula import Formula
from snake_jax.profiling.rows import Case, Row, built_record, largest, record, state_record
from snake_jax.profiling.subjects import unbroken_length
from snake_jax.profiling.tables import Section
from snake_jax.report.units import human


class Profile(NamedTuple):
    """All that is told: the command, what it asked for, its cases with the works that they are of,
    the target, and the device's peaks where one ran.
    """

    command: str
    ask: Ask
    cases: Sequence[Case]
    works: Sequence[Work]
    target: str
    peaks: Peaks | None


def title(profile: Profile) -> str:
    """What the profile is of, in a line."""
    config, full = profile.works[0].setup.config, profile.cases[0].full
    kind = "blocks" if isinstance(profile.ask.model, LanguageModel) else "layers"
    depth = f"{_depth(profile.ask.model)} {kind}"
    what = f"{profile.ask.name}, {depth}, {full.params:,} parameters, {config.algorithm}"
    where = f", on {profile.target}" if profile.target else ""
    how = f"{config.optimizer}, {config.compute_dtype} arithmetic{where}"
    return f"{what}; a step of {_batch(profile)}, {how}"


def _batch(profile: Profile) -> str:
    config, model = profile.works[0].setup.config, profile.ask.model
    if isinstance(model, LanguageModel):
        return f"{config.batch_size} x {config.max_length} tokens"
    return f"{config.batch_size} images of {'x'.join(map(str, model.input_shape))}"


def _depth(model: Any) -> int:
    return model.num_blocks if isinstance(model, LanguageModel) else len(model.layers)


def formulas(profile: Profile) -> tuple[Formula, ...]:
    """The papers' formula, which is one of language models: blocks that are alike."""
    if not isinstance(profile.ask.model, LanguageModel):
        return ()
    return formula.of_model(
        profile.ask.name, profile.cases[0].full.params, _depth(profile.ask.model)
    )


def _sections(profile: Profile) -> list[Section]:
    unit = "place" if _cut(profile) else "layer"
    found = tables.sections(unit, profile.cases)
    if values := formulas(profile):
        found.insert(1, tables.formula_section(values, profile.cases))
    if _cut(profile):
        sent = cut.cut_bytes(profile.works[0].setup)
        found.append(
            Section(
                "What a step sends over the cut",
                ["", "bytes"],
                [[w, f"{size:,}"] for w, size in sent],
            )
        )
    return found


def _cut(profile: Profile) -> bool:
    return len(profile.works[0].setup.chain) > 1


def notes(profile: Profile) -> list[str]:
    """What a reader has to know about the numbers."""
    found = [
        "GiB and MiB are 2**30 and 2**20 bytes, other prefixes decimal; a multiplication and an "
        "addition are 2 FLOPs."
    ]
    if formulas(profile):
        found.append(_left_out(profile))
    if profile.target:
        found.append(_compared(profile))
    if mesh := getattr(profile.works[0].setup.config, "mesh", ""):
        found.append(
            f"Compiled memory is that of each device of the mesh {mesh}, as are the collectives "
            f"in json and csv, which "
            "count the body of a loop once; state and FLOPs are of all together."
        )
    if profile.peaks:
        rate, band = human(profile.peaks.flops_s, "FLOP/s"), human(profile.peaks.bytes_s, "B/s")
        found.append(
            f"Roofline: {rate} and {band}, the best that this device was seen to do in this run."
        )
    return found


def _left_out(profile: Profile) -> str:
    """What the papers' formula does not see, in numbers."""
    ends = end_params(profile.ask.model)
    share = f"{ends:,} parameters of embedding and head, which are no block"
    rows = [largest(case) for case in profile.cases]
    temporaries = [
        max(0, row.built.memory.temporaries - row.state.gradients)
        for row in rows
        if row.built is not None and row.built.memory is not None
    ]
    activations = "activations and other temporaries"
    if temporaries:
        low, high = (f"{pick(temporaries) / 2**30:.2f}" for pick in (min, max))
        activations += (
            f" ({low if low == high else f'{low} to {high}'} GiB beyond gradients by the compiler)"
        )
    rest = "narrower storage than 2 bytes, adapters, and a teacher"
    return f"The formula leaves out {share}; {activations}; {rest}."


def end_params(model: Any) -> int:
    """Parameters of a language model's embedding and head."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return num_params((shapes["embed"], shapes["head"]))


def _compared(profile: Profile) -> str:
    """What the compiler's count is of."""
    config, model = profile.works[0].setup.config, profile.ask.model
    here = jax.devices()[0].platform
    if not isinstance(model, LanguageModel):
        return (
            "The compiler's FLOPs are of the compiled step, elementwise work among them; where it "
            "keeps its own "
            "convolution (not on cpu) it leaves out products with padding."
        )
    length = unbroken_length(model, config.max_length)
    return (
        f"The compiler's FLOPs are those that {here}'s compiler counts for one block and the "
        f"output matrix with its "
        f"loss, each unrolled, {config.batch_size} x {length} tokens, put together as the step "
        f"does; compared with the "
        "formula for as many. The step's own loops it would count once."
    )


def as_table(profile: Profile) -> str:
    """For a terminal."""
    return "\n\n".join(
        [title(profile), *map(tables.text, _sections(profile)), "\n".join(notes(profile))]
    )


def as_markdown(profile: Profile) -> str:
    """For a document."""
    return "\n\n".join([title(profile), *map(tables.markdown, _sections(profile)), *notes(profile)])


def as_json(profile: Profile) -> str:
    """Everything, as numbers; `rows` are the cases, each with the record of its row that holds the
    most.
    """
    config = profile.works[0].setup.config
    setting = {
        "model": profile.ask.name,
        "algorithm": config.algorithm,
        "batch_size": config.batch_size,
    }
    setting |= {
        n: getattr(config, n)
        for n in ("max_length", "recompute", "optimizer", "compute_dtype")
        if hasattr(config, n)
    }
    found = {
        "command": profile.command,
        **setting,
        "target": profile.target,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "machine": {
            name: machine()[name] for name in ("processor", "cores", "python", "load_1min")
        },
        "peaks": profile.peaks._asdict() if profile.peaks else None,
        "formula": [value._asdict() for value in formulas(profile)],
        "notes": notes(profile),
        "full": record(profile.cases[0].full, profile.cases[0].full),
        "cut": [{"sends": words, "bytes": size} for words, size in _cut_sends(profile)],
        "rows": [_case(case) for case in profile.cases],
    }
    return json.dumps(found, indent=1)


def _cut_sends(profile: Profile) -> list[tuple[str, int]]:
    return cut.cut_bytes(profile.works[0].setup) if _cut(profile) else []


def _case(case: Case) -> dict[str, Any]:
    most = largest(case)
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
    lines = [
        _line(case.train, case.frozen_dtype, row, full)
        for case in profile.cases
        for row in case.rows
    ]
    lines.append(_line("full", "-", full, full))
    names = dict.fromkeys(name for line in lines for name in line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().rstrip("\n")


def _line(train: str, dtype: str, row: Row, full: Row) -> dict[str, Any]:
    found = record(row, full)
    return {"train": train, "frozen_dtype": dtype, **found, "trained": "+".join(row.trained)}


FORMATS: dict[str, Callable[[Profile], str]] = {
    "table": as_table,
    "json": as_json,
    "csv": as_csv,
    "markdown": as_markdown,
}
