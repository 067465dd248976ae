"""Trains an image classifier over nodes that each hold their own data, and reports what it cost.

  python -m experiments.classify --algorithm=snake --dataset=digits --nodes=9 --partition=dirichlet
  --alpha=2.0 \\
      --cycles=2 --local_epochs=1 --workdir=runs/snake
  python -m experiments.classify --flagfile=experiments/presets/demo_fedavg.flags
  --workdir=runs/fedavg python -m experiments.compare runs/snake runs/fedavg

The same command after a kill goes on from the last finished visit. The workdir gets config.json,
metrics.jsonl (a line a visit or round), ledger.jsonl (a line a transfer), summary.json,
checkpoints/ and curves.png.
"""

import jax
from absl import flags

from snake_jax.cli import cluster, config_flags, launch, one_run, run_flags, seeds
from snake_jax.config import ImageConfig
from snake_jax.errors import UserError
from snake_jax.runs import loop

config_flags.define()
run_flags.define()
SEEDS = flags.DEFINE_string(
    "seeds", "", "several seeds as 0,1,2, side by side over the devices, in WORKDIR/seed_K"
)


def main(_: list[str]) -> None:
    """Checks the flags and the data, then trains."""
    folder = run_flags.workdir()
    if SEEDS.value and not flags.FLAGS["seed"].using_default_value:
        raise UserError(
            f"--seeds={SEEDS.value} and --seed={flags.FLAGS['seed'].value}: give one of them"
        )
    config = config_flags.from_flags(ImageConfig)
    with cluster.together():
        _check_processes(config)
        configs = seeds.parse(SEEDS.value, config) if SEEDS.value else [config]
        setups = [loop.prepare(config) for config in configs]
        with run_flags.training() as how:
            if SEEDS.value:
                seeds.run(setups, folder, how, launch.warn)
            else:
                one_run.carry_out(setups[0], folder, one_run.describe(setups[0]), how)


def _check_processes(config: ImageConfig) -> None:
    if jax.process_count() == 1:
        return
    if SEEDS.value:
        raise UserError(
            f"--seeds={SEEDS.value}: each seed is a run of one process; leave the flags of "
            f"several out"
        )
    if config.executor != "shard_map":
        raise UserError(
            f"--executor={config.executor} uses the devices of one process; say "
            f"--executor=shard_map"
        )


if __name__ == "__main__":
    launch.run(main)
