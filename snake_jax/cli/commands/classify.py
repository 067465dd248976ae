"""`snake-jax classify`: its help and its flags."""

from absl import flags
from absl.flags import FlagValues

from snake_jax.cli.commands import config_flags, run_flags
from snake_jax.cli.commands.command import Command
from snake_jax.config import ImageConfig

_TEXT = """\
  snake-jax classify --algorithm=snake --dataset=digits --nodes=9 --partition=dirichlet \\
      --alpha=2.0 --cycles=2 --local_epochs=1 --workdir=runs/snake
  snake-jax classify --preset=demo_fedavg --workdir=runs/fedavg
  snake-jax classify --model=my_models:small --dataset=npz:my_images.npz --workdir=runs/own
  snake-jax compare runs/snake runs/fedavg

The same command after a kill goes on from the last finished visit. The workdir gets config.json,
metrics.jsonl (a line a visit or round), ledger.jsonl (a line a transfer), summary.json,
checkpoints/ and curves.png.

--model=MODULE:FUNCTION is a network of yours: FUNCTION(num_classes, input_shape, **options) in
MODULE, which is looked for in the current folder too, gives a LayeredModel, or the stages of a
Flax model as [(name, module), ...]; options are width, norm, dropout, conv and init.
"""


def _define(values: FlagValues) -> None:
    config_flags.define_settings(values, ImageConfig)
    run_flags.define_run(values)
    flags.DEFINE_string(
        "seeds",
        "",
        "several seeds as 0,1,2, side by side over the devices, in WORKDIR/seed_K",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "distill_each_seed",
        False,
        "with --seeds, --distill=auto is decided for each seed by itself, and not once for all",
        flag_values=values,
    )


CLASSIFY = Command(
    name="classify",
    purpose="trains an image classifier over nodes that each hold their own data, and reports "
    "what it cost",
    example="snake-jax classify --preset=demo_snake --workdir=runs/snake",
    text=_TEXT,
    define=_define,
    module="snake_jax.cli.classify",
    newcomers=(
        "preset",
        "dataset",
        "partition",
        "alpha",
        "model",
        "width",
        "algorithm",
        "cycles",
        "distill",
        "nodes",
        "local_epochs",
        "batch_size",
        "learning_rate",
        "seed",
        "seeds",
        "workdir",
        "interrupt",
        "executor",
    ),
)
