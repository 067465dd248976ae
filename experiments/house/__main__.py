"""What the house is made of, counted, beside seven codebases of the field.

python -m experiments.house            prints the table that docs/design.md shows
python -m experiments.house --update   also writes experiments/results/house.json
"""

import json
from pathlib import Path

from absl import flags

from experiments.house.counts import PARTS, measure
from experiments.house.imports import imports_of
from experiments.house.table import BEFORE, FIELD, NAMES, table
from snake_jax.cli import launch

ROOT = Path(__file__).parents[2]
UPDATE = flags.DEFINE_bool("update", False, "write experiments/results/house.json too")


def main(_: list[str]) -> None:
    """Counts, prints, and writes where it is asked to."""
    houses = {part: measure(ROOT, tops) for part, tops in PARTS.items()}
    imports = imports_of(ROOT)
    if UPDATE.value:
        content = {
            "command": "python -m experiments.house --update",
            "houses": {part: house._asdict() for part, house in houses.items()},
            "imports": imports._asdict(),
            "quoted": {"rows": NAMES, **BEFORE, **FIELD},
        }
        file = ROOT / "experiments/results/house.json"
        file.write_text(json.dumps(content, indent=1) + "\n")
    print(table(houses))
    print(
        f"\nThe library has {imports.rooms} rooms (folders, and modules loose at the top) and "
        f"{imports.arrows} arrows between them, {imports.cycles} cycles, {imports.upward} imports "
        f"against the order of folders."
    )


if __name__ == "__main__":
    launch.run(main)
