"""What the launches of the acceptance train on, where it is not bundled."""

import json
from pathlib import Path

_PAIRS = 64


def write_pairs(folder: Path) -> str:
    """Sums and their results, a text that a small model begins to learn at once; the file."""
    lines = []
    for number in range(_PAIRS):
        pair = {"prompt": f"{number} + 7 =", "response": f" {number + 7}"}
        lines.append(json.dumps(pair) + "\n")
    file = folder / "pairs.jsonl"
    file.write_text("".join(lines))
    return str(file)
