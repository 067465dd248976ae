"""Flags of the commands that train into a workdir, beside those of the configuration."""

from absl import flags
from absl.flags import FlagValues

from snake_jax.cli import presets
from snake_jax.errors import UserError


def define_run(values: FlagValues) -> None:
    """Defines the flags."""
    presets.define_flag(values)
    flags.DEFINE_string(
        "workdir",
        "",
        "folder of the run, here or as gs://BUCKET/FOLDER; a run there goes on",
        flag_values=values,
    )
    # What a run writes besides, to be looked at.
    flags.DEFINE_bool(
        "tensorboard", False, "write TensorBoard events into the workdir", flag_values=values
    )
    flags.DEFINE_string(
        "compilation_cache_dir",
        "",
        "keep compiled programs here, or in a bucket, for later runs",
        flag_values=values,
    )
    flags.DEFINE_string(
        "trace_dir",
        "",
        "write a profile of some rounds here, for TensorBoard or xprof",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "trace_rounds",
        3,
        "so many, from the second on: the first compiles",
        lower_bound=1,
        flag_values=values,
    )
    # When the machine is taken away.
    flags.DEFINE_float(
        "grace_s",
        20.0,
        "seconds that a visit has left to end after SIGTERM",
        lower_bound=0.0,
        flag_values=values,
    )
    _define_processes(values)


def _define_processes(values: FlagValues) -> None:
    """Flags of a run of several processes, by the names that `jax.distributed.initialize` has."""
    flags.DEFINE_bool(
        "distributed",
        False,
        "one of several processes that a cloud or scheduler known to jax started",
        flag_values=values,
    )
    # For processes that nobody but the user has started.
    flags.DEFINE_string(
        "coordinator_address",
        "",
        "HOST:PORT of process 0, where processes are started by hand",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_processes",
        None,
        "how many were started by hand",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "process_id", None, "which of them this is, from 0", lower_bound=0, flag_values=values
    )


def workdir(values: FlagValues) -> str:
    """The folder of the run.

    Raises:
      UserError: it was not given.
    """
    if not values.workdir:
        raise UserError("--workdir is needed: the folder that the run's results go to")
    return values.workdir
