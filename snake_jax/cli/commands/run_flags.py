"""Flags of the commands that train into a workdir, beside those of the configuration."""

from typing import TYPE_CHECKING

from absl import flags
from absl.flags import FlagValues

from snake_jax.cli import presets
from snake_jax.errors import UserError

if TYPE_CHECKING:
    from snake_jax.engines.choice import Choice

AUTO = "auto"
PROGRAMS = "~/.cache/snake_jax/programs"
"""Where compiled programs are kept unless a launch says otherwise."""


def define_run(values: FlagValues) -> None:
    """Defines the flags."""
    presets.define_flag(values)
    flags.DEFINE_string(
        "workdir",
        "",
        "folder of the run, here or as gs://BUCKET/FOLDER; a run there goes on",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "verbose",
        False,
        "tell of each stage up to the first result, with its floor",
        flag_values=values,
    )
    # What a run writes besides, to be looked at.
    flags.DEFINE_bool(
        "tensorboard", False, "write TensorBoard events into the workdir", flag_values=values
    )
    flags.DEFINE_string(
        "compilation_cache_dir",
        AUTO,
        "compiled programs are kept here, or in a bucket, for later runs; auto: where jax was told "
        f"to, else {PROGRAMS}, at most 2 GiB; empty: nowhere",
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
    _define_engine(values)
    _define_deadlines(values)


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


def _define_engine(values: FlagValues) -> None:
    """Flags of where nodes are; none of them changes a result."""
    flags.DEFINE_enum(
        "engine",
        "local",
        ("local", "ray"),
        "nodes are played by this process (local), or are processes with data of their own (ray)",
        flag_values=values,
    )
    flags.DEFINE_string(
        "ray_address",
        "",
        "engine=ray: a cluster that is there, auto or HOST:PORT; empty: one is started here",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "ray_actors",
        0,
        "engine=ray: processes that the nodes share; 0: one a node, up to the cluster's cores",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_string(
        "ray_resources",
        "",
        "engine=ray: what each process takes of the cluster, as CPU=1,GPU=0.5 or a name of your "
        "own; empty: a GPU where there are some",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "ray_without_tls",
        False,
        "engine=ray: join machines whose traffic others on their network could read and change",
        flag_values=values,
    )
    flags.DEFINE_string(
        "ray_pool",
        "",
        "engine=ray: the run's part in nodes that several runs share; snake-jax serve gives it",
        flag_values=values,
    )


def _define_deadlines(values: FlagValues) -> None:
    """Flags of when a node on Ray is lost."""
    flags.DEFINE_float(
        "ray_deadline_s",
        5.0,
        "engine=ray: seconds without a heart-beat after which a node that works is lost",
        lower_bound=0.5,
        flag_values=values,
    )
    flags.DEFINE_float(
        "ray_stall_s",
        0.0,
        "engine=ray: seconds without a further step after which a node that works, and does not "
        "compile, is lost; more than an epoch of images takes; 0: never",
        lower_bound=0.0,
        flag_values=values,
    )
    flags.DEFINE_float(
        "visit_deadline_s",
        0.0,
        "engine=ray: seconds after which a visit that is not finished is lost; 0: never",
        lower_bound=0.0,
        flag_values=values,
    )


def engine(values: FlagValues) -> "Choice":
    """Where nodes are.

    Raises:
      UserError: the flags contradict each other.
    """
    # Here, since help and wrong flags are answered without jax.
    from snake_jax.engines import choice

    return choice.Choice(
        values.engine,
        values.ray_address,
        values.ray_actors,
        choice.resources(values.ray_resources),
        values.ray_deadline_s,
        values.ray_stall_s,
        values.visit_deadline_s,
        pool=values.ray_pool,
        without_tls=values.ray_without_tls,
    )


def workdir(values: FlagValues) -> str:
    """The folder of the run.

    Raises:
      UserError: it was not given.
    """
    if not values.workdir:
        raise UserError("--workdir is needed: the folder that the run's results go to")
    return values.workdir
