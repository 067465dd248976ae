"""Where a run ends before its plan does: `--max_steps`."""

from collections.abc import Sequence

from snake_jax.algorithms.visits import Outcome, Round, Visit
from snake_jax.config import RunConfig
from snake_jax.runs.setup import Setup


def shortened(setup: Setup, visits: Round, steps: int) -> Round:
    """The visits of a round, none longer than what `--max_steps` leaves.

    Args:
      setup: of the run.
      visits: as planned.
      steps: of the run so far.
    """
    most = setup.config.max_steps
    if not most:
        return visits
    return tuple(_cut(visit, setup.steps[visit.node], most - steps) for visit in visits)


def _cut(visit: Visit, planned: int, left: int) -> Visit:
    """A visit of at most so many steps, where its whole turn has `planned`."""
    begin, end = (int(part * planned) for part in visit.share)
    if end - begin <= left:
        return visit
    # Half a step more, so that rounding down gives just this one.
    return visit._replace(share=(visit.share[0], (begin + left + 0.5) / planned))


def steps_after(steps: int, outcomes: Sequence[Outcome]) -> int:
    """Steps of the run after a round: its visits ran side by side, so the longest counts."""
    return steps + max(outcome.iterations for outcome in outcomes)


def why_over(config: RunConfig, steps: int) -> str:
    """Why a run of so many steps is over before its plan; empty where it is not."""
    if 0 < config.max_steps <= steps:
        return f"it has done the {config.max_steps} steps of --max_steps"
    return ""
