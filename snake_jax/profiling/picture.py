"""A profile as a picture: memory of a node and FLOPs of a step, in stacked bars."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from snake_jax.costs.flops import StepFlops
from snake_jax.costs.memory import StateBytes
from snake_jax.profiling.rows import Case, ProfileRow, largest_row
from snake_jax.profiling.tables import memory_scale
from snake_jax.report.canvas import COLOURS, look, new_figure, save
from snake_jax.report.units import Scale, scale_for

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
    """Writes a PNG: what each case holds at most, and FLOPs of each layer of the first case.

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
    """Bars of the bytes that a node holds, by kind."""
    full = cases[0].full
    scale = memory_scale(full)

    # A bar for each case, of its row that holds the most, and one for full training.
    names, rows = [], []
    for case in cases:
        row = largest_row(case)
        if row.trained != full.trained:
            names.append(_name(case))
            rows.append(row)
    names.append("full")
    rows.append(full)

    # Temporaries are known only of what was compiled and fits.
    parts = {}
    for kind, word in MEMORY.items():
        parts[word] = _sizes([row.state for row in rows], kind, scale)
    if any(row.built and row.built.memory for row in rows):
        parts[TEMPORARIES] = [_temporaries(row) / scale.factor for row in rows]
    _bars(panel, names, parts)
    panel.set_ylabel(f"{scale.unit} that a node holds")


def _sizes(of_rows: Sequence[StateBytes | StepFlops], kind: str, scale: Scale) -> list[float]:
    """One kind of bytes or FLOPs of each row, in the unit of a scale."""
    sizes = []
    for row in of_rows:
        sizes.append(getattr(row, kind) / scale.factor)
    return sizes


def _temporaries(row: ProfileRow) -> int:
    """Bytes beyond the gradients, which are temporaries to the compiler."""
    if row.built is None or row.built.memory is None:
        return 0
    return max(0, row.built.memory.temporaries - row.state.gradients)


def _name(case: Case) -> str:
    return case.train if case.frozen_dtype == "-" else f"{case.train}\n{case.frozen_dtype}"


def _flops(panel: Axes, case: Case) -> None:
    """Bars of a case's FLOPs, by what they are for."""
    rows = [*case.rows, case.full._replace(layer="full")]
    scale = scale_for(case.full.flops.total, "FLOP")
    parts = {}
    for kind, word in FLOPS.items():
        parts[word] = _sizes([row.flops for row in rows], kind, scale)
    names = [row.layer for row in rows]
    _bars(panel, names, parts)
    panel.set_ylabel(f"{scale.unit} a step")
    panel.set_title(_name(case).replace("\n", ", frozen as "), fontsize="medium")


def _bars(panel: Axes, names: Sequence[str], parts: dict[str, list[float]]) -> None:
    """A bar for each name, of parts on top of one another; a part has its colour, zero or not."""
    # Each part stands on the sum of those below it.
    positions = range(len(names))
    base = np.zeros(len(names))
    for colour, (word, sizes) in zip(COLOURS, parts.items(), strict=False):
        if any(sizes):
            panel.bar(positions, sizes, bottom=base, color=colour, label=word, width=0.75)
        base = base + sizes

    # Many names stand upright, to have room beside one another.
    rotation = 90 if len(names) > _MANY else 0
    panel.set_xticks(positions, names, rotation=rotation, fontsize="small")
    look(panel)
    panel.grid(visible=False, axis="x")
    panel.legend(frameon=False, fontsize="small")
