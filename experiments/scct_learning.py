"""What SCCT does to learning: five arms on the data set `personal`, over seeds.

  python -m experiments.scct_learning --scale=cpu --model=FOLDER --tokenizer=FOLDER --text=STORIES
  python -m experiments.scct_learning --scale=span --data=SQUAD.json --model=FOLDER \\
      --tokenizer=FOLDER --small_model=ENCODER

The arms: SCCT; SCCT with one shared small model; CloudO, which trains adapters, or all weights, in
the cloud alone; and small models alone with a span head. Each is a run in a folder of its own,
which the same command goes on with. After each run the numbers so far are written: learning.json,
and Figures 8 (loss), 10 (F1) and 11 (exact match) of the paper as figure8.png and so on, by round
and by simulated second, with personal and shared questions apart. `--text` is other text, on which
the large model is measured with what was trained plugged in, and unplugged. With `--data`, a file
in SQuAD's format, all arms answer with a span of the context.
"""

import dataclasses
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from snake_jax.cli import launch, scct_train
from snake_jax.costs.timing import machine
from snake_jax.errors import UserError
from snake_jax.report.canvas import COLOURS, STYLES, look, new_figure, save
from snake_jax.runs.workdir import Workdir
from snake_jax.scct.system import build, evaluate, folder
from snake_jax.scct.system.settings import PERSONAL, SystemSettings

SCALE = flags.DEFINE_enum("scale", "smoke", ("smoke", "cpu", "span"), "smoke shows that it works")
MODEL = flags.DEFINE_string("model", "tiny-llama", "the large model: a folder or a preset")
TOKENIZER = flags.DEFINE_string("tokenizer", "", "its tokenizer's folder; empty: bytes")
DATA = flags.DEFINE_string("data", PERSONAL, "personal, or a file in SQuAD's format")
SMALL_MODEL = flags.DEFINE_string("small_model", "", "folder of an encoder; empty: a fresh one")
TEXT = flags.DEFINE_string("text", "", "a file of other text, plain or gzip; empty: none")
RUNS = flags.DEFINE_string("runs", "runs/scct_learning", "folder of the runs")
OUT = flags.DEFINE_string("out", "runs/scct_learning", "folder of numbers and pictures")

ARMS = ("scct", "cloudo", "cloudo_all", "scct_shared", "small")
NAMES = {
    "scct": "SCCT",
    "cloudo": "CloudO, adapters",
    "cloudo_all": "CloudO, all weights",
    "scct_shared": "SCCT, one small model",
    "small": "small models alone",
}
# Figure of the paper, field of a line by sort, and what its axis says.
FIGURES = {
    "8": (("loss",), "training loss, nats"),
    "10": (("personal_f1", "shared_f1", "questions_f1"), "F1"),
    "11": (("personal_exact_match", "shared_exact_match", "questions_exact_match"), "exact match"),
}
Line = Mapping[str, Any]


class Scale(NamedTuple):
    """The size of the study: seeds, what all runs share, and how much other text is read."""

    seeds: tuple[int, ...]
    settings: SystemSettings
    texts: int


SCALES = {
    "smoke": Scale(
        seeds=(0,),
        settings=SystemSettings(
            nodes=2,
            rounds=2,
            epochs=1,
            iterations=2,
            batch_size=2,
            small_layers=2,
            small_width=16,
            adapter_width=2,
            train_questions=8,
            held_out=2,
            max_length=48,
            max_answer=4,
            subcarriers=4,
            samples=2,
            splits="fixed:1",
            plain_loss="never",
        ),
        texts=2,
    ),
    "cpu": Scale(
        seeds=(0, 1, 2),
        settings=SystemSettings(
            nodes=3,
            rounds=8,
            epochs=1,
            iterations=100,
            batch_size=4,
            small_layers=2,
            small_width=64,
            adapter_width=16,
            adapter_rate=5e-3,
            small_rate=1e-3,
            train_questions=2000,
            held_out=16,
            max_length=56,
            max_answer=9,
            # What stories260K was trained on has no end of text.
            answer_end=".",
            subcarriers=20,
            samples=10,
            splits="descent",
            plain_loss="never",
        ),
        texts=64,
    ),
    "span": Scale(
        seeds=(0,),
        settings=SystemSettings(
            nodes=2,
            rounds=4,
            epochs=1,
            iterations=25,
            batch_size=4,
            small_layers=4,
            small_width=64,
            adapter_rate=1e-3,
            small_rate=1e-4,
            held_out=48,
            max_length=192,
            max_answer=16,
            subcarriers=20,
            samples=10,
            splits="descent",
            plain_loss="never",
        ),
        texts=64,
    ),
}


class Ask(NamedTuple):
    """What the flags say."""

    scale: str
    model: str
    tokenizer: str
    text: str
    runs: str
    out: str
    data: str = PERSONAL
    small_model: str = ""


def main(_: list[str]) -> None:
    """The study of the flags."""
    folders = (MODEL.value, TOKENIZER.value, TEXT.value, RUNS.value, OUT.value)
    study(Ask(SCALE.value, *folders, DATA.value, SMALL_MODEL.value))


def study(ask: Ask) -> None:
    """Every seed, every arm; what is there already is not done again."""
    scale = SCALES[ask.scale]
    texts = _texts(ask.text, scale.texts)
    found: dict[str, dict[str, Any]] = {}
    for seed in scale.seeds:
        for arm in ARMS:
            settings = dataclasses.replace(
                scale.settings,
                model=ask.model,
                tokenizer=ask.tokenizer,
                data=ask.data,
                small_model=ask.small_model,
                arm=arm,
                head="generate" if ask.data == PERSONAL and arm != "small" else "span",
                seed=seed,
            )
            workdir = Path(ask.runs) / f"{arm}_{seed}"
            scct_train.run(settings, str(workdir), is_quiet=True)
            found[f"{arm}_{seed}"] = _numbers(settings, workdir, texts)
            _write(ask, found)
            print(f"{workdir}: {found[f'{arm}_{seed}']['last']}", flush=True)


def _texts(path: str, count: int) -> list[str]:
    """The first texts of a file, which ends each with <|endoftext|> or an empty line."""
    if not path:
        return []
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"--text={path}: {error.strerror or error}; give a file of text") from error
    plain = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    parts = plain.decode().replace("<|endoftext|>", "\n\n").split("\n\n")
    return [part.strip() for part in parts if part.strip()][:count]


def _numbers(settings: SystemSettings, workdir: Path, texts: Sequence[str]) -> dict[str, Any]:
    """What a finished run says: its lines, its clocks, and the large model on other text."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    fields = ["loss", "clocks_s", "bytes_up", "bytes_down", "place_flops", "devices"]
    fields += [name for name in lines[-1] if name.endswith(("f1", "exact_match"))]
    kept = [{name: line.get(name) for name in fields} for line in lines]
    last = {name: lines[-1][name] for name in fields if name.endswith(("f1", "exact_match"))}
    said: dict[str, Any] = {
        "arm": settings.arm,
        "seed": settings.seed,
        "rounds": kept,
        "last": last,
    }
    if texts and settings.has_large:
        system = build.prepare(settings)
        opened = Workdir(workdir, settings)
        try:
            state = folder.resume(opened, system, print)
        finally:
            opened.close()
        said["other_text_loss"] = {
            "plugged": evaluate.text_loss(system, state.trained, texts, plugged=True),
            "unplugged": evaluate.text_loss(system, state.trained, texts, plugged=False),
        }
    return said


def _write(ask: Ask, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Numbers and pictures of the runs so far."""
    out, here = Path(ask.out), machine()
    settings = dataclasses.asdict(SCALES[ask.scale].settings)
    # Names of folders, not where they lie on some machine.
    for name in ("data", "model", "tokenizer", "small_model"):
        settings[name] = Path(getattr(ask, name)).name
    content = {
        "scale": ask.scale,
        "machine": {key: here[key] for key in ("processor", "cores", "load_1min", "jax")},
        "settings": settings,
        "runs": found,
    }
    for number in FIGURES:
        save(_figure(number, found), out / f"figure{number}.png")
    (out / "learning.json").write_text(json.dumps(content, indent=1) + "\n")


def _figure(number: str, found: Mapping[str, Mapping[str, Any]]) -> Figure:
    """By round and by simulated second: means over seeds, with the least and the greatest."""
    fields, label = FIGURES[number]
    figure = new_figure(10.0, 4.2)
    for panel, axis in zip(figure.subplots(1, 2, sharey=True), ("round", "seconds"), strict=True):
        for colour, arm in zip(COLOURS, ARMS, strict=False):
            runs = [run for run in found.values() if run["arm"] == arm]
            for style, field in zip(STYLES, fields, strict=False):
                x, values = _curves(runs, field, axis)
                if not values.size:
                    continue
                kind = f", {field.split('_')[0]}" if len(fields) > 1 else ""
                name = f"{NAMES[arm]}{kind}"
                panel.plot(x, values.mean(0), style, color=colour, label=name)
                panel.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.15)
        panel.set_xlabel("round" if axis == "round" else "simulated seconds")
        look(panel)
    panel.legend(frameon=False, fontsize=7)
    figure.supylabel(label)
    return figure


def _curves(
    runs: Sequence[Mapping[str, Any]], field: str, axis: str
) -> tuple[np.ndarray, np.ndarray]:
    """Positions [R], and values [seeds, R]; the seconds are those of the arm's first mechanism."""
    if not runs or runs[0]["rounds"][0].get(field) is None:
        return np.zeros(0), np.zeros((0, 0))
    values = np.array([[line[field] for line in run["rounds"]] for run in runs])
    if axis == "round":
        return np.arange(1, values.shape[1] + 1), values
    seconds = [[next(iter(line["clocks_s"].values())) for line in run["rounds"]] for run in runs]
    return np.cumsum(seconds, axis=1).mean(0), values


if __name__ == "__main__":
    launch.run(main)
