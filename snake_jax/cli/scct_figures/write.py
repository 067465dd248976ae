"""A figure from nothing: its numbers, its picture, and how both were made."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from matplotlib.figure import Figure

from snake_jax.cli.scct_figures import algorithm1, algorithm2, compared, faster
from snake_jax.cli.scct_figures.scales import SCALES, Study
from snake_jax.costs.timing import machine
from snake_jax.errors import UserError
from snake_jax.report.canvas import save

_MACHINE = ("processor", "cores", "load_1min", "python", "backend", "jax", "jaxlib")


class Maker(Protocol):
    """A module of a figure: JSON's numbers, and the picture of such numbers."""

    def numbers(self, study: Study) -> Any:
        """What the figure shows."""

    def draw(self, found: Any) -> Figure:
        """It shown."""


FIGURES: dict[str, tuple[str, Maker]] = {
    "6": ("figure6", algorithm1),
    "7": ("figure7", algorithm2),
    "9": ("figure9", compared),
    "map": ("map", faster),
}
"""By the name of `--figure`: the name of the files, and the module."""


class Asked(NamedTuple):
    """What the command line says of a figure: its name, its scale, and the line itself."""

    figure: str
    scale: str
    command: str


def write(asked: Asked, study: Study, folder: Path) -> tuple[Path, Path]:
    """Makes a figure; returns its PNG and its JSON.

    Raises:
      UserError: they cannot be written there.
    """
    name, maker = FIGURES[asked.figure]
    # A folder that takes no file is found before the minutes that the numbers take.
    plain = folder / f"{name}.json"
    _try(plain)
    here = machine()
    started = time.monotonic()
    found = maker.numbers(study)
    said = {
        "figure": asked.figure,
        "scale": asked.scale,
        "command": asked.command,
        "machine": {key: here[key] for key in _MACHINE},
        "took_s": round(time.monotonic() - started, 1),
        "settings": SCALES[asked.scale]._asdict(),
        "numbers": found,
    }
    _put(plain, said)
    return save(maker.draw(found), folder / f"{name}.png"), plain


def _try(file: Path) -> None:
    """Whether it can be written; what it holds stays."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("a").close()
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror or error})") from error


def _put(file: Path, said: Mapping[str, object]) -> None:
    try:
        file.write_text(json.dumps(said, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror or error})") from error
