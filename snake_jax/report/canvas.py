"""What all pictures have in common: size, colours, axes, how they are written.

Nothing goes through pyplot, so no picture changes another.
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
    StrMethodFormatter,
)

from snake_jax.errors import UserError
from snake_jax.report.merits import Merit

# Okabe and Ito's colours, which colour-blind readers tell apart. Where they do not suffice, line
# styles and markers do.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINEAR = 3  # up to this factor between least and greatest, an axis of plain numbers is linear
FEW = 60  # points up to which each gets a marker
DPI = 150


def new_figure(width: float, height: float) -> Figure:
    """An empty one, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | Path) -> Path:
    """Writes the PNG and the folders above it; returns its path.

    Raises:
      UserError: it cannot be written there.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # No version inside: the same run gives the same file.
        figure.savefig(path, dpi=DPI, metadata={"Software": None})
    except OSError as error:
        raise UserError(f"{path}: cannot write the picture ({error.strerror or error})") from error
    return path


def look(panel: Axes) -> None:
    """What all panels have in common."""
    panel.grid(color="0.9", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(x=0.02)


def merit_axis(panel: Axes, merit: Merit) -> None:
    """The vertical axis of a figure of merit.

    Shares are percentages. Plain numbers, as perplexity, are compared by their ratio: where what is
    drawn spans more than a factor of LINEAR, the axis is logarithmic.
    """
    if merit.is_share:
        panel.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        panel.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        return
    lines = [np.asarray(line.get_ydata(), float) for line in panel.lines]
    values = np.concatenate(lines) if lines else np.ones(1)
    span = np.max(values, initial=1.0) / np.min(values, initial=np.inf)
    if span > LINEAR:
        logarithmic(panel, span)


def logarithmic(panel: Axes, span: float) -> None:
    """A logarithmic axis with plain numbers as labels, fewer to a decade where it is long."""
    if span < 10:
        between: tuple[float, ...] = (1, 1.5, 2, 3, 4, 6, 8)
    else:
        between = (1, 2, 5) if span < 1e3 else (1,)
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=between))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    panel.yaxis.set_minor_locator(NullLocator())
