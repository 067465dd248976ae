"""A profile as a picture: memory of a node and FLOPs of a step, in stacked bars."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from snake_jax.profiling.rows import Case, ProfileRow, largest_row
from snake_jax.profiling.tables import memory_scale
from snake_jax.report.canvas import COLOURS, look, new_figure, save
from snake_jax.report.units import scale_for

MEMORY = {
    "frozen": "frozen",
    "trained": "trained",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "received": "teacher",
}
FLOPS = {
    "forward": "forward",
    "recomputed": "computed again",
    "input_gradients": "input gradients",
    "weight_gradients": "weight gradients",
    "teacher": "teacher",
}
TEMPORARIES = "activations and other\ncompiled temporaries"
_MANY = 14  # bars from which on labels stand upright


def draw_profile(path: str | Path, title: str, cases: Sequence[Case]) -> Path:
    """Writes a PNG: what each case holds at most, and what a step of each layer of the first case
    takes.

    Raises:
      UserError: it cannot be written.
    """
    figure = new_figure(11.0, 4.6)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
    _memory(left, cases)
    _flops(right, cases[0])
    figure.suptitle(title)
    return save(figure, path)


def _memory(panel: Axes, cases: Sequence[Case]) -> None:
    full = cases[0].full
    scale = memory_scale(full)
    names, rows = [], []
    for case in cases:
        if largest_row(case).trained != full.trained:
            names.append(_name(case))
            rows.append(largest_row(case))
    names.append("full")
    rows.append(full)
    parts = {}
    for kind, word in MEMORY.items():
        parts[word] = [getattr(row.state, kind) / scale.factor for row in rows]
    if any(row.built and row.built.memory for row in rows):
        parts[TEMPORARIES] = [_temporaries(row) / scale.factor for row in rows]
    _bars(panel, names, parts)
    panel.set_ylabel(f"{scale.unit} that a node holds")


def _temporaries(row: ProfileRow) -> int:
    """Beyond the gradients, which are temporaries to the compiler."""
    memory = row.built.memory if row.built else None
    return max(0, memory.temporaries - row.state.gradients) if memory else 0


def _name(case: Case) -> str:
    return case.train if case.frozen_dtype == "-" else f"{case.train}\n{case.frozen_dtype}"


def _flops(panel: Axes, case: Case) -> None:
    rows = [*case.rows, case.full._replace(layer="full")]
    scale = scale_for(case.full.flops.total, "FLOP")
    parts = {}
    for kind, word in FLOPS.items():
        parts[word] = [getattr(row.flops, kind) / scale.factor for row in rows]
    _bars(panel, [row.layer for row in rows], parts)
    panel.set_ylabel(f"{scale.unit} a step")
    panel.set_title(_name(case).replace("\n", ", frozen as "), fontsize="medium")


def _bars(panel: Axes, names: Sequence[str], parts: dict[str, list[float]]) -> None:
    """A bar for each name, of parts on top of one another; a part has its colour, zero or not."""
    places = range(len(names))
    base = [0.0] * len(names)
    for colour, (word, sizes) in zip(COLOURS, parts.items(), strict=False):
        if any(sizes):
            panel.bar(places, sizes, bottom=base, color=colour, label=word, width=0.75)
        base = [below + size for below, size in zip(base, sizes, strict=True)]
    rotation = 90 if len(names) > _MANY else 0
    panel.set_xticks(places, names, rotation=rotation, fontsize="small")
    look(panel)
    panel.grid(visible=False, axis="x")
    panel.legend(frameon=False, fontsize="small")
