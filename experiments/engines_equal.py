"""Engine `ray` ends with the bits of engine `local`: VGG-11 on nine nodes, tiny Llama on five.

    python -m experiments.engines_equal --output=equal.json

Both networks are as they are but for VGG-11's channels, of which there are fewer, and few examples
and steps: what is compared is every bit of the parameters, metrics and transfers, which more of
them would not make stricter. Methods that engine `ray` refuses are shown with its reason.
"""

import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments.bench import results
from experiments.faults.runs import same_bits, trained
from snake_jax.config import ImageConfig, TextConfig
from snake_jax.engines.choice import HERE, Choice, around, check
from snake_jax.errors import UserError
from snake_jax.runs.loop import RunConfig
from snake_jax.runs.state import Report

MODES = ("client_server", "peer_to_peer")
METHODS = ("snake", "fedavg", "accelerated_fl")
# What clocks say.
_MEASURED = {"train_s", "compile_s", "num_compilations", "tokens_per_s"}
_CHOICE = Choice("ray", actors=2, deadline_s=120.0)

FLAGS = flags.FlagValues()
flags.DEFINE_string("output", "", "JSON file of what was compared", flag_values=FLAGS)


def main(arguments: Sequence[str]) -> int:
    """Prints a line a run; the exit code is 1 where bits differ."""
    FLAGS(arguments)
    rows: list[dict[str, Any]] = []
    with around(_CHOICE), tempfile.TemporaryDirectory() as folder:
        for config in configs(Path(folder)):
            began_s = time.monotonic()
            row = compared(config) | {"seconds": round(time.monotonic() - began_s, 1)}
            rows.append(row)
            print("  ".join(str(value) for value in row.values()), flush=True)
    if FLAGS.output:
        command = "python -m experiments.engines_equal"
        seen = {"command": command, "machine": results.header(), "rows": rows}
        Path(FLAGS.output).write_text(json.dumps(seen, indent=1) + "\n")
    return 1 if any(row["result"] == "OTHER BITS" for row in rows) else 0


def configs(folder: Path) -> list[RunConfig]:
    """All runs that are compared, on data that is drawn into a folder."""
    rng = np.random.default_rng(0)
    labels = np.arange(108) % 4
    images = rng.integers(0, 256, (108, 32, 32, 3), dtype=np.uint8)
    file = folder / "images.npz"
    np.savez(file, train_x=images[:90], train_y=labels[:90], test_x=images[90:], test_y=labels[90:])

    # Sums, which are as good as any text.
    pairs = []
    for number in range(40):
        pairs.append({"prompt": f"{number} + 7 =", "response": f" {number + 7}"})
    text = folder / "pairs.jsonl"
    text.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))

    image: dict[str, Any] = {"model": "vgg11", "width": 0.125, "dataset": f"npz:{file}", "nodes": 9}
    image |= {"batch_size": 8, "cycles": 2}
    answers: dict[str, Any] = {"model": "tiny-llama", "data": str(text), "nodes": 5}
    answers |= {"batch_size": 4, "max_length": 32, "cycles": 2}
    found: list[RunConfig] = []
    for method in METHODS:
        for mode in MODES:
            found.append(ImageConfig(**image, algorithm=method, mode=mode))
            if method != "accelerated_fl":
                found.append(TextConfig(**answers, algorithm=method, mode=mode))
    return found


def compared(config: RunConfig) -> dict[str, Any]:
    """A run on both engines, or why one refuses it."""
    about = {
        "model": config.model,
        "nodes": config.nodes,
        "algorithm": config.algorithm,
        "mode": config.mode,
    }
    try:
        check(_CHOICE, config)
        there = trained(config, _CHOICE)
    except UserError as error:
        return about | {"rounds": 0, "result": f"refused: {error}"}
    here = trained(config, HERE)
    equal = same_bits(there, here) and _metrics(there) == _metrics(here)
    result = "same bits" if equal else "OTHER BITS"
    return about | {"rounds": len(here), "result": result}


def _metrics(reports: Sequence[Report]) -> list[str]:
    """All numbers of all rounds but what clocks say and what was really serialized."""
    return [json.dumps(_counted(report.record), sort_keys=True) for report in reports]


def _counted(record: Mapping[str, Any]) -> dict[str, Any]:
    kept = {}
    for name, value in record.items():
        if name not in _MEASURED and "serialized" not in name:
            kept[name] = value
    return kept


if __name__ == "__main__":
    sys.exit(main(sys.argv))
