"""The best evaluated model of a run, kept in `best/` of its folder (`--save_best`).

It is written after the round's own checkpoint. A kill between the two loses nothing: the state that
is gone on from then is the best model.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from snake_jax import processes
from snake_jax.config import RunConfig, TextConfig
from snake_jax.errors import UserError
from snake_jax.params import Params
from snake_jax.runs.checkpoint import Checkpoints, Saved
from snake_jax.runs.job import state_like
from snake_jax.runs.records import Record
from snake_jax.runs.setup import Setup
from snake_jax.runs.state import State
from snake_jax.runs.workdir import Workdir


class Figure(NamedTuple):
    """What models are compared by.

    Attributes:
      name: as people say it.
      field: of a line of metrics.
      lower_is_better: False where higher is.
    """

    name: str
    field: str
    lower_is_better: bool = False


_OF_TEXT: Mapping[str, Figure] = {
    "perplexity": Figure("perplexity", "perplexity", True),
    "token_accuracy": Figure("token accuracy", "accuracy"),
    "exact_match": Figure("exact match", "exact_match"),
}


def figure_of(config: RunConfig) -> Figure:
    """What the run's models are compared by: accuracy, or of language models `--metric`."""
    if isinstance(config, TextConfig):
        return _OF_TEXT[config.metric]
    return Figure("accuracy", "accuracy")


def best_round(config: RunConfig, lines: Sequence[Record]) -> int:
    """After how many rounds the model was best, of equally good ones the first; 0: not evaluated.

    Args:
      config: of the run.
      lines: of metrics, one a round.
    """
    figure = figure_of(config)
    found, least = 0, math.inf
    for number, line in enumerate(lines, 1):
        value = line[figure.field]
        if value is None:
            continue
        signed = value if figure.lower_is_better else -value
        if signed < least:
            found, least = number, signed
    return found


def keep_if_best(setup: Setup, folder: Workdir, state: State) -> None:
    """Writes the state's model to `best/` if no model of the run was better, where that is asked.

    Args:
      setup: of the run.
      folder: its own, the round's line and checkpoint in it.
      state: after the round.
    """
    is_asked = setup.config.save_best and processes.is_first()
    if not is_asked or not state.rounds:
        return
    if best_round(setup.config, folder.records) != state.rounds:
        return
    Checkpoints(folder.path / "best").save(Saved(state.rounds, state.params, {}))


class Best(NamedTuple):
    """The best model: after how many rounds, and what trained of it."""

    rounds: int
    params: Params


def restored(setup: Setup, folder: Workdir, warn: Callable[[str], None]) -> Best:
    """The best model of a run, the same in all its processes.

    Args:
      setup: of the run.
      folder: its own.
      warn: is told of damaged files.

    Raises:
      UserError: `best/` cannot be read, or is gone.
    """
    like, *_ = state_like(setup.job, ())
    rounds, params = 0, jax.tree.map(lambda w: np.zeros(w.shape, w.dtype), like)
    if processes.is_first():
        saved = Checkpoints(folder.path / "best").restore(lambda meta: like, warn)
        if saved is None:
            raise UserError(
                f"{folder.path / 'best'} holds no model, and the run kept one there: bring it "
                "back, or give another --workdir"
            )
        rounds, params = saved.rounds, saved.tree
    rounds = int(processes.from_first(np.int32(rounds)))
    return Best(rounds, jax.device_put(processes.from_first(params)))


def said(config: RunConfig, best: Best, lines: Sequence[Record], unit: str) -> str:
    """Which model is the best, in a line."""
    figure = figure_of(config)
    value = lines[best.rounds - 1][figure.field]
    return f"best: after {unit} {best.rounds} of {len(lines)}, {figure.name} {value:.4g}"
