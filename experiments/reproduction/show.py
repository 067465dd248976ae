"""What a topic says of its figures, so that one function can write any of them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.reproduction.cases import Case
from experiments.reproduction.run_numbers import Numbers
from experiments.reproduction.runs import Study
from snake_jax.report.runs import Run

Found = Mapping[Case, Run]
"""The runs that have something to show."""


def nothing(study: Study, figure: str, rows: Sequence[Numbers]) -> dict[str, Any]:
    """Of figures whose JSON has rows alone."""
    del study, figure, rows
    return {}


class Show(NamedTuple):
    """How the figures of a topic are shown; each function takes the study and the figure first.

    Attributes:
      title: of the figure.
      model_in_words: (study, runs) to the network, in a few words.
      numbers_of: (study, figure, runs) to the numbers of each run.
      sections: (study, figure, numbers, runs) to the Markdown below the title.
      draw: (study, figure, numbers, runs, path, caption) draws the picture there.
      further: (study, figure, numbers) to what the JSON has beside the rows.
    """

    title: Callable[[Study, str], str]
    model_in_words: Callable[[Study, Found], str]
    numbers_of: Callable[[Study, str, Found], list[Numbers]]
    sections: Callable[[Study, str, Sequence[Numbers], Found], list[str]]
    draw: Callable[[Study, str, Sequence[Numbers], Found, Path, str], Path]
    further: Callable[[Study, str, Sequence[Numbers]], dict[str, Any]] = nothing
