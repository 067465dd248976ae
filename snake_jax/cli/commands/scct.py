"""`snake-jax scct`: its help and its flags."""

from absl import flags
from absl.flags import FlagValues

from snake_jax import names
from snake_jax.cli.commands import scct_train
from snake_jax.cli.commands.command import Command

_TEXT = """\
  snake-jax scct --random=0,4,16,5 --out=scenario.json
  snake-jax scct --solve=scenario.json --out=solution.json
  snake-jax scct --solve=scenario.json --solver=paper --splits=enumerate
  snake-jax scct --solve=scenario.json --solver=exact --splits=fixed:6
  snake-jax scct --figure=9 --scale=cpu --out=runs/scct
  snake-jax scct --train=personal --model=FOLDER --tokenizer=FOLDER --workdir=runs/scct
  snake-jax scct --train=personal --mechanisms=cloudo --workdir=runs/cloudo

In SCCT each device computes the first layers of a small language model, an edge server the others,
and the cloud a large one. --solve reads a scenario (what devices, channels and servers can do) and
chooses where each device's model is split, once a round, and how many subcarriers and which share
of the edge server each device has, in every sample of what an epoch may bring. It prints a table of
seconds and how far the answer can be from the best there is, and writes the answer as JSON. Both
files are described in docs/scct.md; that trains nothing. --random writes a scenario of N devices, K
subcarriers and Q samples, drawn by SEED. --figure repeats a figure of the paper: 6 the convergence
of Algorithm 1, 7 that of Algorithm 2, 9 the latency of four mechanisms; or map, over devices' rates
and common splits, of which mechanism is faster. --train trains such a system on questions: the set
`personal`, or a file in SQuAD's format; the same command goes on after a kill, and `snake-jax
report` draws the folder.
"""


def _define(values: FlagValues) -> None:
    flags.DEFINE_string(
        "train", "", "train on these questions: personal, or a JSON file", flag_values=values
    )
    flags.DEFINE_string("workdir", "", "of --train: the run's folder", flag_values=values)
    scct_train.define(values)
    flags.DEFINE_integer(
        "seed", 0, "of the search for split points, or of --train", flag_values=values
    )
    flags.DEFINE_string(
        "out",
        "",
        "the file that --solve or --random writes, or the folder of --figure (empty: runs/scct)",
        flag_values=values,
    )
    _define_solving(values)
    _define_figures(values)


def _define_solving(values: FlagValues) -> None:
    """Scenarios, and how they are solved."""
    flags.DEFINE_string("solve", "", "the scenario to solve, a JSON file", flag_values=values)
    flags.DEFINE_list(
        "random",
        [],
        "SEED,N,K,Q: write a drawn scenario of N devices, K subcarriers, Q samples to --out",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "solver",
        "exact",
        names.SCCT_SOLVERS,
        "of subcarriers and shares: exact (optimal), paper (Algorithm 1), equal (K / N and 1 / N), "
        "brute (all allocations, few devices)",
        flag_values=values,
    )
    flags.DEFINE_string(
        "splits",
        "alns",
        "of split points: alns (Algorithm 2), enumerate (all, few devices), branch (branch and "
        "bound), descent (single moves), fixed:N (N layers at every device, as far as they fit)",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "fresh",
        100,
        "of --solve: samples, drawn as by --random, that the answer is valued on beside its own; "
        "0: none",
        lower_bound=0,
        flag_values=values,
    )


def _define_figures(values: FlagValues) -> None:
    """The paper's figures."""
    flags.DEFINE_enum(
        "figure", None, names.SCCT_FIGURES, "draw this into the folder --out", flag_values=values
    )
    flags.DEFINE_enum(
        "scale",
        "smoke",
        names.SCCT_SCALES,
        "of --figure: smoke shows in seconds that it works, cpu takes minutes",
        flag_values=values,
    )
    flags.DEFINE_float(
        "cloud_flops",
        0.0,
        "of --figure=9: FLOP/s of the cloud; 0: it takes no time, as the paper has it",
        lower_bound=0,
        flag_values=values,
    )


SCCT = Command(
    name="scct",
    purpose="says how fast devices, edge and cloud train together (SCCT), and chooses split points "
    "and resources with a proof of how good they are",
    example="snake-jax scct --solve=scenario.json --out=solution.json",
    text=_TEXT,
    define=_define,
    module="snake_jax.cli.scct",
    newcomers=(
        "solve",
        "random",
        "figure",
        "scale",
        "solver",
        "splits",
        "out",
        "train",
        "model",
        "arm",
        "workdir",
    ),
)
