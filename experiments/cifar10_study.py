"""Snake Learning against FedAvg on CIFAR-10, IID and Dirichlet, each with its own tuned learning rate.

  python -m experiments.cifar10_study --data=npz:DIR --workdir=runs/cifar10 [--width=0.5 --cycles=8]

Trains each method for `--tune_cycles` cycles at every learning rate of its grid on the IID partition, picks the one
with the best final test loss, and with it trains on IID and Dirichlet(2.0) data: the same nodes, examples and cycles
for both methods. Runs that are finished are not run again; one that was cut off goes on. `--results` gets config,
metrics and summary of every run, the comparison's picture and table, and study.json with the machine and the time.
(snake_learning_magazine, "Training of Classification Tasks".)
"""

import json
import math
import subprocess
import sys
from pathlib import Path

from absl import flags

from experiments import launch
from snake_jax.errors import UserError
from snake_jax.kernels.timing import machine
from snake_jax.report.plots import plot_curves
from snake_jax.report.runs import read_run, read_runs
from snake_jax.report.table import comparison_table

DATA = flags.DEFINE_string("data", "", "CIFAR-10 as a --dataset of experiments.classify: cifar10 or npz:DIR")
WORKDIR = flags.DEFINE_string("workdir", "runs/cifar10", "folder of the runs")
RESULTS = flags.DEFINE_string("results", "experiments/results/cifar10", "folder of what is kept")
CYCLES = flags.DEFINE_integer("cycles", 8, "cycles (fedavg: rounds) of the four runs")
TUNE_CYCLES = flags.DEFINE_integer("tune_cycles", 2, "cycles of each tuning run")
WIDTH = flags.DEFINE_float("width", 0.5, "width of VGG-11")
GRIDS = {
    "snake": flags.DEFINE_list("snake_grid", ["0.01", "0.03", "0.1"], "learning rates tried for snake"),
    "fedavg": flags.DEFINE_list("fedavg_grid", ["0.03", "0.1", "0.3"], "learning rates tried for fedavg"),
}
PARTITIONS = ("iid", "dirichlet")
# What a finished run leaves behind here: everything but its checkpoints and the picture that comparison.png repeats.
KEPT = ("config.json", "metrics.jsonl", "summary.json", "ledger.jsonl")


def main(_: list[str]) -> None:
    """Tunes, trains, compares, keeps."""
    if not DATA.value:
        raise UserError("--data is needed: cifar10, or npz:DIR with train_*.npz and test_*.npz")
    rates = {method: _tune(method) for method in GRIDS}
    paths = [_run(method, part, rates[method], CYCLES.value) for part in PARTITIONS for method in GRIDS]
    _keep(paths, rates)
    print(comparison_table(read_runs(paths), "text"))


def _tune(method: str) -> str:
    """The learning rate of the grid whose tuning run ends with the lowest test loss."""
    losses = {}
    for rate in GRIDS[method].value:
        last = read_run(_run(method, "iid", rate, TUNE_CYCLES.value, prefix="tune_")).metrics[-1]
        losses[rate] = math.inf if last["test_loss"] is None or last["event"] == "skipped" else last["test_loss"]
    return min(losses, key=losses.__getitem__)


def _run(method: str, partition: str, rate: str, cycles: int, prefix: str = "") -> Path:
    path = Path(WORKDIR.value) / f"{prefix}{method}_{partition}_{rate}"
    if not (path / "summary.json").exists():
        subprocess.run(_command(method, partition, rate, cycles, path), check=True)
    return path


def _command(method: str, partition: str, rate: str, cycles: int, path: Path) -> list[str]:
    flagged = {
        "algorithm": method,
        "dataset": DATA.value,
        "partition": partition,
        "learning_rate": rate,
        "cycles": cycles,
        "width": WIDTH.value,
        "augment": "flip",
        "eval_every": 3 if method == "snake" else 1,
        "on_divergence": "skip",
        "compilation_cache_dir": str(Path(WORKDIR.value) / "programs"),
        "workdir": path,
    }
    return [sys.executable, "-m", "experiments.classify", *(f"--{k}={v}" for k, v in flagged.items())]


def _keep(paths: list[Path], rates: dict[str, str]) -> None:
    """Copies what is worth committing; paths and data folders of this machine stay out of it."""
    results = Path(RESULTS.value)
    for path in [*paths, *Path(WORKDIR.value).glob("tune_*")]:
        (results / path.name).mkdir(parents=True, exist_ok=True)
        for name in KEPT if path in paths else ("metrics.jsonl", "summary.json"):
            (results / path.name / name).write_text((path / name).read_text().replace(DATA.value, "cifar10"))
    runs = read_runs([results / path.name for path in paths])
    plot_curves(runs, results / "comparison.png")
    (results / "table.md").write_text(comparison_table(runs, "markdown") + "\n")
    (results / "study.json").write_text(json.dumps(_study(paths, rates), indent=2) + "\n")


def _study(paths: list[Path], rates: dict[str, str]) -> dict:
    measured = machine()
    seconds = {
        path.name: sum(r["train_s"] for r in read_run(path).metrics) for path in Path(WORKDIR.value).glob("*_*_*")
    }
    return {
        "command": f"python -m experiments.cifar10_study --data=cifar10 --width={WIDTH.value} "
        f"--cycles={CYCLES.value} --tune_cycles={TUNE_CYCLES.value}",
        "machine": {name: measured[name] for name in ("processor", "cores", "python", "backend", "jax", "jaxlib")},
        "learning_rates": rates,
        "runs": [path.name for path in paths],
        "train_s": seconds,
    }


if __name__ == "__main__":
    launch.run(main)
