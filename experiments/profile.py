"""What fine-tuning would take of a chip, by formula and by the chip's own compiler, without chip or weights.

  python -m experiments.profile --model=opt-1.3b --train=full,block,lora:128 --frozen_dtype=bfloat16,int8,nf4
  python -m experiments.profile --model=opt-1.3b --train=block --frozen_dtype=int8 --target=tpu:v5e
  python -m experiments.profile --model=llama-3-8b --train=lora:128 --frozen_dtype=nf4 --batch_size=2 \\
      --max_length=2048 --target=tpu:v5e --format=markdown

--model is a preset or a folder with config.json. Every --train is combined with every --frozen_dtype: `block` is a
Snake visit, `block+ends` one that trains embedding and head too, `lora:R` one of adapters of rank R, `full` all layers,
as federated learning trains them. With --target each is compiled for that device as well: cpu, gpu, tpu:v4, tpu:v5e,
tpu:v5p, tpu:v6e (pip install libtpu; no TPU is needed).
"""

import json
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from absl import flags

from experiments import launch
from snake_jax import language_profile as profile
from snake_jax import lora
from snake_jax.config import pick
from snake_jax.errors import UserError
from snake_jax.language_step import LanguageStep
from snake_jax.layers import num_params
from snake_jax.models.hub import read_architecture
from snake_jax.models.language import LanguageModel, build
from snake_jax.models.presets import PRESETS, from_preset
from snake_jax.optimizers import update_rule
from snake_jax.targets import Refused

MODEL = flags.DEFINE_string("model", "opt-1.3b", f"a folder with config.json, or of {', '.join(PRESETS)}")
TRAIN = flags.DEFINE_list("train", ["full", "block", "lora:128"], "block, block+ends, lora:R, full; several by comma")
DTYPES = flags.DEFINE_list("frozen_dtype", ["bfloat16", "int8", "nf4"], "of what does not train; several by comma")
BATCH = flags.DEFINE_integer("batch_size", 6, "rows in a step", lower_bound=1)
LENGTH = flags.DEFINE_integer("max_length", 512, "tokens in a row", lower_bound=8)
TARGET = flags.DEFINE_string(
    "target", "", "compile for cpu, gpu, tpu:v4, tpu:v5e, tpu:v5p or tpu:v6e; empty: not at all"
)
RECOMPUTE = flags.DEFINE_enum("recompute", "block", ("block", "none"), "what the backward pass keeps of a block")
FORMAT = flags.DEFINE_enum("format", "table", ("table", "json", "markdown"), "of the output")

_GIB = 2**30


def main(_: list[str]) -> None:
    """A line for every way to train and store."""
    model = _model()
    if LENGTH.value > model.max_positions:
        raise UserError(f"--max_length={LENGTH.value}: {model.name} has {model.max_positions} positions")
    ways: list[Any] = [*TRAIN.value]
    stored: list[Any] = [*DTYPES.value]
    for way in ways:
        _settings(way)
    for dtype in stored:
        pick("frozen_dtype", dtype, ("float32", "bfloat16", "int8", "nf4"))
    cases = [(way, dtype) for way in ways for dtype in (stored if way != "full" else ["-"])]
    rows = [_row(model, train, dtype) for train, dtype in cases]
    print({"table": _table, "markdown": _markdown, "json": _json}[FORMAT.value](model, rows))


def _model() -> LanguageModel:
    if MODEL.value in PRESETS:
        return from_preset(MODEL.value)
    if not Path(MODEL.value).is_dir():
        raise UserError(f"--model={MODEL.value}: no such folder, and no preset; presets are {', '.join(PRESETS)}")
    return build(read_architecture(Path(MODEL.value)), name=Path(MODEL.value).resolve().name)


def _settings(train: str) -> tuple[bool, tuple[str, ...], lora.Lora | None]:
    """Whether all blocks train, which ends, and the adapters."""
    kind, _, rank = train.partition(":")
    if kind == "lora" and rank.isdecimal() and int(rank):
        return False, (), lora.Lora(int(rank))
    known = {"block": (False, ()), "block+ends": (False, ("embed", "head")), "full": (True, ("embed", "head"))}
    if train not in known:
        raise UserError(f"--train={train}: want block, block+ends, lora:RANK as lora:128, or full")
    return *known[train], None


def _row(model: LanguageModel, train: str, dtype: str) -> dict[str, Any]:
    every, ends, adapters = _settings(train)
    step = LanguageStep(
        model,
        update_rule("adamw", momentum=0.0, weight_decay=0.0),
        clip_norm=1.0,
        adapted=adapters is not None,
        compute_dtype=jnp.bfloat16,
        recompute=RECOMPUTE.value,
    )
    stored = "bfloat16" if dtype == "-" else dtype
    layers = profile.visit_items(step, model.num_blocks if every else 1, ends)
    state = profile.state_bytes(step, adapters, layers, stored)
    like = profile.trainable_shapes(step, adapters, ends)
    row: dict[str, Any] = {"train": train, "frozen_dtype": dtype}
    row |= {"trainable_params": num_params({name: like[name] for name in layers})}
    row |= {f"{name}_bytes": size for name, size in state._asdict().items()} | {"state_bytes": state.total}
    if TARGET.value:
        row |= _compiled(step, adapters, layers, stored)
    return row


def _compiled(step: LanguageStep, adapters: lora.Lora | None, layers: tuple[str, ...], dtype: str) -> dict[str, Any]:
    arguments = profile.step_arguments(step, adapters, layers, dtype, (BATCH.value, LENGTH.value))
    started = time.perf_counter()
    compiled = profile.compiled_step(step, arguments, TARGET.value)
    seconds = {"compile_s": round(time.perf_counter() - started, 1)}
    if isinstance(compiled, Refused):
        return {"refused": compiled.reason, **seconds}
    memory = compiled.memory
    return {f"compiled_{name}_bytes": size for name, size in memory._asdict().items()} | {
        "compiled_peak_bytes": memory.peak,
        **seconds,
    }


def _cells(row: dict[str, Any]) -> list[str]:
    gib = lambda key: f"{row[key] / _GIB:.2f}" if key in row else ""  # noqa: E731
    peak = "does not fit" if "refused" in row else gib("compiled_peak_bytes")
    kinds = [gib(f"{name}_bytes") for name in ("frozen", "trained", "gradients", "optimizer", "state")]
    compiled = [gib("compiled_temporaries_bytes"), peak] if TARGET.value else []
    return [row["train"], row["frozen_dtype"], f"{row['trainable_params']:,}", *kinds, *compiled]


def _head() -> list[str]:
    compiled = ["temporaries", "compiled peak"] if TARGET.value else []
    return ["train", "stored", "trainable", "frozen", "trained", "gradients", "optimizer", "state", *compiled]


def _title(model: LanguageModel) -> str:
    blocks = f"{model.name}, {model.num_blocks} blocks, GiB, AdamW in float32"
    return f"{blocks}, {BATCH.value} x {LENGTH.value} tokens on {TARGET.value}" if TARGET.value else blocks


def _table(model: LanguageModel, rows: list[dict[str, Any]]) -> str:
    lines = [_head(), *map(_cells, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    body = ["  ".join([*map(str.ljust, line[:2], widths), *map(str.rjust, line[2:], widths[2:])]) for line in lines]
    return "\n".join([_title(model), *body])


def _markdown(model: LanguageModel, rows: list[dict[str, Any]]) -> str:
    head = _head()
    rule = ["---"] * 2 + ["---:"] * (len(head) - 2)
    return "\n".join(
        [_title(model), "", *("| " + " | ".join(line) + " |" for line in (head, rule, *map(_cells, rows)))]
    )


def _json(model: LanguageModel, rows: list[dict[str, Any]]) -> str:
    import jax
    import jaxlib

    setting = {"model": model.name, "batch_size": BATCH.value, "max_length": LENGTH.value, "target": TARGET.value}
    versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__}
    return json.dumps({**setting, "recompute": RECOMPUTE.value, **versions, "rows": rows}, indent=2)


if __name__ == "__main__":
    launch.run(main)
