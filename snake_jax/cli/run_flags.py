"""Flags of all launches that train into a workdir, beside those of the configuration, and what they
ask for.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from absl import flags

from snake_jax.cli import cluster, one_run, preemption
from snake_jax.cli.one_run import How, Trace
from snake_jax.errors import UserError

flags.disclaim_key_flags()  # they belong to the launch that calls `define`


def define() -> None:
    """Defines the flags."""
    flags.DEFINE_string(
        "workdir", "", "folder of the run, here or as gs://BUCKET/FOLDER; a run there goes on"
    )
    flags.DEFINE_bool("tensorboard", False, "write TensorBoard events into the workdir")
    flags.DEFINE_string(
        "compilation_cache_dir", "", "keep compiled programs here, or in a bucket, for later runs"
    )
    flags.DEFINE_string(
        "trace_dir", "", "write a profile of some rounds here, for TensorBoard or xprof"
    )
    flags.DEFINE_integer(
        "trace_rounds", 3, "so many, from the second on: the first compiles", lower_bound=1
    )
    preemption.define()
    cluster.define()


def workdir() -> str:
    """The flag's value.

    Raises:
      UserError: it was not given.
    """
    if not _value("workdir"):
        raise UserError("--workdir is needed: the folder that the run's results go to")
    return _value("workdir")


@contextlib.contextmanager
def training() -> Iterator[How]:
    """Around training: programs are kept, SIGTERM is heeded, and ends are told of."""
    if folder := _value("compilation_cache_dir"):
        one_run.keep_programs(folder)
    trace = Trace(_value("trace_dir"), _value("trace_rounds"))
    with one_run.ends_told(), preemption.heeded(_value("grace_s")) as terminated:
        yield How(_value("tensorboard"), trace, terminated)


def _value(name: str) -> Any:
    return flags.FLAGS[name].value
