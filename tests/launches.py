"""Runs launches on images or text small enough for seconds, in this process or in one of its
own.
"""

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from snake_jax.cli import main
from snake_jax.models.presets import from_preset
from snake_jax.models.save import save_pretrained

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-W", "error", "-m"]
MEASURED = {"train_s", "compile_s", "num_compilations", "train_s_to_target", "tokens_per_s"}


class Ended(NamedTuple):
    """How a launch ended."""

    code: int
    stdout: str
    stderr: str


class Launcher(NamedTuple):
    """Launches in this process, as from a command line."""

    monkeypatch: pytest.MonkeyPatch
    capfd: pytest.CaptureFixture
    name: str = "classify"

    def __call__(self, *flag_list: object) -> Ended:
        """Runs to the exit; whatever else is raised comes through."""
        self.capfd.readouterr()
        self.monkeypatch.setattr(sys, "argv", ["snake-jax", self.name, *map(str, flag_list)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        return Ended(ended.value.code, *self.capfd.readouterr())


def is_silent(stdout):
    """Whether it holds nothing but the greetings of the CPU's collectives, whose threads speak all
    at once.
    """
    words = r"\[Gloo\]|Rank|is|connected|to|peer|ranks\.?|Expected|number|of|:|\d|\s"
    return re.fullmatch(f"(?:{words})*", stdout) is not None


def write_pairs(file: Path, count: int = 30) -> Path:
    """Prompts and short responses of two categories that a small network can begin to learn, as
    JSON lines.
    """
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    records = []
    for i in range(count):
        first, second = words[i % 10], words[(3 * i + i // 10) % 10]
        kind, response = [("words", f"{first} {second}"), ("letters", f"{first[0]} {second[0]}")][
            i % 2
        ]
        prompt = f"{i}: {words.index(first)}{words.index(second)} in {kind}"
        records.append({"prompt": prompt, "response": f"{response} end", "category": kind})
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def write_model(folder: Path, preset: str = "tiny-llama", **changes: Any) -> Path:
    """An untrained model of three narrow blocks, for bytes, as transformers writes it."""
    narrow = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "max_position_embeddings": 64,
    }
    if preset != "tiny-opt":
        narrow |= {"intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8}
    else:
        narrow |= {"ffn_dim": 24}
    model, rng = from_preset(preset, **(narrow | changes)), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))

    def drawn(w):
        return np.float32(rng.normal(0, 0.05, w.shape) if len(w.shape) > 1 else np.ones(w.shape))

    save_pretrained(folder, model, jax.tree.map(drawn, shapes))
    return folder


def write_images(file: Path, **changes: Any) -> Path:
    """90 training and 30 test images `[4, 4, 3]` of 4 classes that a small network can tell apart,
    or other arrays.
    """
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 4
    images = rng.integers(0, 256, (4, 4, 4, 3))[labels] + rng.normal(0, 40, (120, 4, 4, 3))
    images = np.clip(images, 0, 255).astype(np.uint8)
    arrays = {
        "train_x": images[:90],
        "train_y": labels[:90],
        "test_x": images[90:],
        "test_y": labels[90:],
    }
    np.savez(file, **(arrays | changes))
    return file


def in_new_process(
    flag_list: Sequence[str], name: str = "classify", module: str = "snake_jax", **options: Any
) -> subprocess.Popen:
    """Starts a launch with its output in pipes."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([*COMMAND, module, name, *flag_list], cwd=ROOT, **pipes)


def strict_json(text: str) -> Any:
    """Parses JSON; NaN and infinities, which JSON does not have, are an error."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def json_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, measured times left out."""
    return [_lasting(strict_json(line)) for line in file.read_text().splitlines()]


def results(workdir: Path) -> dict[str, Any]:
    """All that a run has to end with whatever happened on its way: arrays' bytes, metrics, ledger,
    summary.
    """
    return {
        "arrays": last_arrays(workdir),
        "metrics": json_lines(workdir / "metrics.jsonl"),
        "ledger": json_lines(workdir / "ledger.jsonl"),
        "summary": _lasting(strict_json((workdir / "summary.json").read_text())),
    }


def last_arrays(workdir: Path) -> tuple[int, dict[str, bytes]]:
    """Number and content of the newest checkpoint, read by orbax and numpy alone."""
    folder = workdir / "checkpoints"
    written = {int(path.stem): path for path in folder.iterdir()}
    step = max(written)
    meta = json.loads(arrays_of(written[step])["meta"].tobytes())
    # It says in which checkpoints its arrays lie: a visit changes some of them.
    read = {}
    for other in {other for other, *_ in meta["arrays"].values()}:
        read[other] = arrays_of(written[other])
    arrays = {}
    for name, (other, stored, *_) in meta["arrays"].items():
        arrays[name] = np.asarray(read[other][stored]).tobytes()
    return step, arrays


def arrays_of(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint itself holds: a whole one, or one of changes."""
    if checkpoint.is_file():
        with np.load(checkpoint) as archive:
            return dict(archive)
    with warnings.catch_warnings(), ocp.PyTreeCheckpointer() as checkpointer:
        warnings.simplefilter("ignore")  # about devices, of which there is one
        return checkpointer.restore(checkpoint.absolute())


def _lasting(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in MEASURED}
