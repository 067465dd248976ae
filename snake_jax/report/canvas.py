"""What all pictures have in common: size, colours, axes, how they are written. No global pyplot
state.
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from snake_jax.errors import UserError
from snake_jax.report.runs import Merit

# Okabe and Ito's colours, which colour-blind readers tell apart; line styles and markers tell the
# rest.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINEAR = 3  # up to this factor between the least and the greatest perplexity its axis is linear
FEW = 60  # points up to which each gets a marker
DPI = 150


def new_figure(width: float, height: float) -> Figure:
    """An empty one, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | Path) -> Path:
    """Writes the PNG and the folders above it; returns its path."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(
            path, dpi=DPI, metadata={"Software": None}
        )  # no version inside: same run, same file
    except OSError as error:
        raise UserError(f"{path}: cannot write the picture ({error.strerror or error})") from error
    return path


def look(panel: Axes) -> None:
    """What all panels have in common."""
    panel.grid(color="0.9", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(x=0.02)


def percent_axis(panel: Axes) -> None:
    """Shares in [0, 1] as percentages, upwards."""
    panel.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    panel.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))


def merit_axis(panel: Axes, merit: Merit) -> None:
    """Shares as percentages; perplexity in factors where what is drawn spans more than a factor of
    LINEAR.
    """
    if merit.unit == "%":
        percent_axis(panel)
        return
    values = np.concatenate(
        [np.asarray(line.get_ydata(), float) for line in panel.lines] or [np.ones(1)]
    )
    span = np.max(values, initial=1.0) / np.min(values, initial=np.inf)
    if span > LINEAR:
        _factors(panel, span)


def _factors(panel: Axes, span: float) -> None:
    """A logarithmic axis that is labelled with plain numbers."""
    panel.set_yscale("log")
    between = (1, 1.5, 2, 3, 4, 6, 8) if span < 10 else (1, 2, 5) if span < 1e3 else (1,)
    panel.yaxis.set_major_locator(LogLocator(subs=between))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    panel.yaxis.set_minor_locator(NullLocator())
