"""Every architecture against PyTorch in float32: logits, saving, generation, adapters, storage.

python -m experiments.parity           prints the table that docs/models.md shows
python -m experiments.parity --update  also writes experiments/results/parity.json and the page

Needs torch, transformers and peft (`make parity`); random models of a few thousand parameters.
"""

import importlib.metadata
import json

import jax
from absl import flags

from experiments.parity import table
from experiments.parity.measure import measure
from experiments.parity.variants import VARIANTS
from snake_jax.cli import launch

UPDATE = flags.DEFINE_bool("update", False, "write experiments/results/parity.json and the page")
FIRST_SEED = 200
"""Not those of the golden files."""


def main(_: list[str]) -> None:
    """Measures, prints, and writes where it is asked to."""
    # Every program here runs once: what the compiler would do for speed takes longer than it saves.
    jax.config.update("jax_disable_most_optimizations", True)
    rows = []
    for number, variant in enumerate(VARIANTS):
        rows.append(measure(variant, FIRST_SEED + number)._asdict())
    packages = ("jax", "torch", "transformers", "peft")
    versions = {package: importlib.metadata.version(package) for package in packages}
    command = "python -m experiments.parity --update"
    result = {"command": command, "versions": versions, "rows": rows}
    print(table.section(result))
    if UPDATE.value:
        table.RESULT.write_text(json.dumps(result, indent=1) + "\n")
        table.PAGE.write_text(table.filled(table.PAGE.read_text(), result))


if __name__ == "__main__":
    launch.run(main)
