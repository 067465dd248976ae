"""Carries out `snake-jax scct --train`: trains devices, edge and cloud, and keeps every round."""

import sys
from pathlib import Path

from snake_jax.errors import UserError
from snake_jax.report.progress import progress
from snake_jax.runs.workdir import Workdir
from snake_jax.scct.system import build, folder, rounds
from snake_jax.scct.system.settings import SystemSettings
from snake_jax.scct.system.settings import checked as checked_settings


def run(settings: SystemSettings, workdir: str, is_quiet: bool = False) -> None:
    """Does what is left of a run, and writes its summary.

    Args:
      settings: the run.
      workdir: its folder.
      is_quiet: prints nothing.

    Raises:
      UserError: a setting is wrong, or the folder is another run's.
    """
    checked_settings(settings)
    if not workdir:
        raise UserError("--workdir: the folder that the run is kept in is missing")
    system = build.prepare(settings)
    opened = Workdir(workdir, settings)
    try:
        state = folder.resume(opened, system, _warn)
        with progress(settings.rounds, state.rounds, "round", enabled=not is_quiet) as (update, _):
            for report in rounds.train(system, state):
                folder.add(opened, report)
                update(report.record)
                state = report.state
        opened.finish(folder.summary(system, opened.records, state))
    finally:
        opened.close()
    if not is_quiet:
        print(_ended(settings, state, Path(workdir)))


def _ended(settings: SystemSettings, state: rounds.SystemState, workdir: Path) -> str:
    """The last words: simulated time by mechanism, and where everything is."""
    lines = []
    for mechanism in settings.clocks:
        lines.append(f"{mechanism}: {state.clock_s[mechanism]:,.1f} simulated seconds")
    return "\n".join([*lines, f"{workdir}: snake-jax report {workdir} draws it"])


def _warn(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
