"""Trains an image classifier over nodes that each hold their own data, and reports what it cost.

  python -m experiments.classify --algorithm=snake --dataset=digits --nodes=9 --partition=dirichlet --alpha=2.0 \\
      --cycles=2 --local_epochs=1 --workdir=runs/snake
  python -m experiments.classify --flagfile=experiments/presets/demo_fedavg.flags --workdir=runs/fedavg
  python -m experiments.compare runs/snake runs/fedavg

The same command after a kill goes on from the last finished visit. The workdir gets config.json, metrics.jsonl (a line
a visit or round), ledger.jsonl (a line a transfer), summary.json, checkpoints/ and curves.png.
"""

from pathlib import Path

from absl import flags

from experiments import config_flags, launch, one_run, seeds
from snake_jax import runner
from snake_jax.config import Config
from snake_jax.errors import UserError

config_flags.define()
WORKDIR = flags.DEFINE_string("workdir", "", "folder of the run; a run there goes on")
SEEDS = flags.DEFINE_string("seeds", "", "several seeds as 0,1,2, side by side over the devices, in WORKDIR/seed_K")
TENSORBOARD = flags.DEFINE_bool("tensorboard", False, "write TensorBoard events into the workdir")
CACHE = flags.DEFINE_string("compilation_cache_dir", "", "keep compiled programs here for later runs")


def main(_: list[str]) -> None:
    """Checks the flags and the data, then trains."""
    if not WORKDIR.value:
        raise UserError("--workdir is needed: the folder that the run's results go to")
    if SEEDS.value and not flags.FLAGS["seed"].using_default_value:
        raise UserError(f"--seeds={SEEDS.value} and --seed={flags.FLAGS['seed'].value}: give one of them")
    config = config_flags.from_flags(Config)
    configs = seeds.parse(SEEDS.value, config) if SEEDS.value else [config]
    setups = [runner.prepare(config) for config in configs]
    if CACHE.value:
        one_run.keep_programs(CACHE.value)
    with one_run.ends_told():
        if SEEDS.value:
            seeds.run(setups, Path(WORKDIR.value), TENSORBOARD.value, launch.warn)
        else:
            one_run.carry_out(setups[0], WORKDIR.value, one_run.describe(setups[0]), TENSORBOARD.value)


if __name__ == "__main__":
    launch.run(main)
