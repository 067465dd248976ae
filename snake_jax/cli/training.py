"""What surrounds training in the commands that train."""

import contextlib
from collections.abc import Iterator

from absl.flags import FlagValues

from snake_jax.cli import one_run, preemption
from snake_jax.cli.one_run import How, ProfilerTrace


@contextlib.contextmanager
def training(flags: FlagValues) -> Iterator[How]:
    """Around training: programs are kept, SIGTERM is heeded, and ends are told of."""
    if flags.compilation_cache_dir:
        one_run.keep_programs(flags.compilation_cache_dir)
    trace = ProfilerTrace(flags.trace_dir, flags.trace_rounds)
    with one_run.ends_told(), preemption.heeded(flags.grace_s) as terminated:
        yield How(flags.tensorboard, trace, terminated)
