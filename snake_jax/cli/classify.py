"""Carries out `snake-jax classify`: from flags to trained image classifiers."""

import jax
from absl.flags import FlagValues

from snake_jax.cli import cluster, defaults, launch, one_run, seeds
from snake_jax.cli.commands import config_flags, run_flags
from snake_jax.cli.commands.command import Given
from snake_jax.cli.training import launched, training
from snake_jax.config import ImageConfig
from snake_jax.engines import choice
from snake_jax.errors import UserError
from snake_jax.runs import loop


def main(given: Given) -> None:
    """Checks the flags and the data, then trains."""
    flags = given.flags
    folder = run_flags.workdir(flags)
    if flags.seeds and not flags["seed"].using_default_value:
        raise UserError(f"--seeds={flags.seeds} and --seed={flags.seed}: give one of them")
    if flags.distill_each_seed and not flags.seeds:
        raise UserError("--distill_each_seed is for several seeds: give --seeds, or leave it out")
    config = config_flags.from_flags(flags, ImageConfig)
    where = run_flags.engine(flags)
    if flags.seeds and where.name != choice.LOCAL:
        raise UserError(
            f"--seeds={flags.seeds}: seeds share this process's devices; leave "
            f"--engine={where.name} out, or give one --seed"
        )
    # Where there are several processes they have to know each other before one asks for devices.
    with cluster.together(flags), launched(where, config):
        _check_processes(config, flags)
        configs = seeds.seed_configs(flags.seeds, config) if flags.seeds else [config]
        setups = [loop.prepare(config) for config in configs]
        if flags.seeds and not flags.distill_each_seed:
            setups = seeds.decided_together(setups)
        given.stages.ended_copying("data", one_run.data_bytes(setups[0]))
        described = one_run.describe_images(setups[0])
        by_default = defaults.said_of_defaults(setups[0], flags)
        about = f"{described}\n{by_default}".rstrip()
        with training(flags, given.stages) as how:
            if flags.seeds:
                seeds.run_seeds(setups, folder, about, how, launch.warn)
            else:
                one_run.carry_out(setups[0], folder, about, how)


def _check_processes(config: ImageConfig, flags: FlagValues) -> None:
    if jax.process_count() == 1:
        return
    if flags.seeds:
        raise UserError(
            f"--seeds={flags.seeds}: each seed is a run of one process; leave the flags of "
            f"several out"
        )
    if config.executor != "shard_map":
        raise UserError(
            f"--executor={config.executor} uses the devices of one process; say "
            f"--executor=shard_map"
        )
