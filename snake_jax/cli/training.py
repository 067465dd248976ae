"""What surrounds training in the commands that train."""

import contextlib
from collections.abc import Iterator

from absl.flags import FlagValues

from snake_jax.cli import kept_programs, one_run, preemption
from snake_jax.cli.commands import run_flags
from snake_jax.cli.one_run import How, ProfilerTrace
from snake_jax.config import RunConfig
from snake_jax.engines import choice
from snake_jax.engines.choice import Choice
from snake_jax.report.stages import Stages


@contextlib.contextmanager
def training(flags: FlagValues, stages: Stages) -> Iterator[How]:
    """Around training: programs are kept, SIGTERM is heeded, and ends are told of.

    Args:
      flags: of the command.
      stages: is told what ends on the way to the first result.
    """
    if flags.compilation_cache_dir == run_flags.AUTO:
        kept_programs.keep_programs_at_home(run_flags.PROGRAMS)
    elif flags.compilation_cache_dir:
        kept_programs.keep_programs(flags.compilation_cache_dir)
    trace = ProfilerTrace(flags.trace_dir, flags.trace_rounds)
    with one_run.ends_told(), preemption.heeded(flags.grace_s) as terminated:
        yield How(flags.tensorboard, trace, terminated, run_flags.engine(flags), stages)


@contextlib.contextmanager
def launched(where: Choice, config: RunConfig) -> Iterator[None]:
    """Around all that a launch does: its nodes' processes can be started, if it has some.

    Raises:
      UserError: the engine cannot do what the configuration asks, or no cluster answers.
    """
    choice.check(where, config)
    with choice.around(where):
        yield
