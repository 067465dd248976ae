"""Pretrains a Llama of many narrow blocks on stories, for the studies of one block a node.

  python -m experiments.pretrain_stories --stories=STORIES.txt.gz --tokenizer=DIR
  python -m experiments.reproduce --figure=6,9 --scale=deep --tune
      --text_model=runs/stories/run/model --text_data=A.jsonl,B.jsonl

The papers' models have 24 blocks and as many nodes. Stories are texts with `<|endoftext|>` between
them, as TinyStories has them. What trains is `snake-jax finetune --algorithm=centralised`: a cycle
is a pass over all stories, the same command goes on after a kill, and OUTPUT/run/model is the model
as transformers writes it. Weights are not committed; the seed and the command make them again.
"""

import subprocess
import sys
from pathlib import Path

import jax
from absl import flags

from experiments.reproduction.stories import write_stories
from snake_jax import streams
from snake_jax.cli import launch
from snake_jax.data.text.tokenizers import load_tokenizer
from snake_jax.errors import UserError
from snake_jax.models.presets import from_preset
from snake_jax.models.save import save_pretrained
from snake_jax.params import num_params

STORIES = flags.DEFINE_string("stories", "", "file of stories, .txt or .txt.gz")
TOKENIZER = flags.DEFINE_string(
    "tokenizer", "", "folder of one, as finetune takes it; empty: bytes"
)
OUTPUT = flags.DEFINE_string("output", "runs/stories", "folder of model, text and run")
BLOCKS = flags.DEFINE_integer("blocks", 12, "of the model, as many as nodes", lower_bound=2)
HIDDEN = flags.DEFINE_integer("hidden", 64, "width; heads are 16 wide", lower_bound=32)
CYCLES = flags.DEFINE_integer("cycles", 12, "passes over the stories", lower_bound=1)
LENGTH = flags.DEFINE_integer("max_length", 128, "tokens in a row", lower_bound=8)
BATCH = flags.DEFINE_integer("batch_size", 16, "rows in a step", lower_bound=1)
RATE = flags.DEFINE_float("learning_rate", 3e-3, "of AdamW, decayed from pass to pass")
LIMIT = flags.DEFINE_integer("limit", 0, "of stories; 0: all", lower_bound=0)
SEED = flags.DEFINE_integer("seed", 0, "of weights and order")

HEAD_WIDTH = 16


def main(_: list[str]) -> None:
    """Writes text and model once, then trains, or goes on."""
    if not STORIES.value:
        raise UserError("--stories is needed: a file of texts with <|endoftext|> between them")
    if HIDDEN.value % (2 * HEAD_WIDTH):
        raise UserError(f"--hidden={HIDDEN.value}: want a multiple of {2 * HEAD_WIDTH}")
    folder = Path(OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "stories.jsonl"
    if not text.exists():
        write_stories(Path(STORIES.value), text, LIMIT.value)
    model = folder / "untrained"
    if not (model / "config.json").exists():
        write_model(model)
    command = [sys.executable, "-m", "snake_jax", "finetune", *run_flags(folder)]
    sys.exit(subprocess.run(command, check=False).returncode)


def run_flags(folder: Path) -> list[str]:
    """Those of the launch that trains."""
    settings = {
        "model": folder / "untrained",
        "data": folder / "stories.jsonl",
        "workdir": folder / "run",
        "algorithm": "centralised",
        "lora_rank": 0,
        "cycles": CYCLES.value,
        "max_length": LENGTH.value,
        "batch_size": BATCH.value,
        "learning_rate": RATE.value,
        "lr_decay": 0.9,
        "optimizer": "adamw",
        "recompute": "none",
        "seed": SEED.value,
    }
    if TOKENIZER.value:
        settings["tokenizer"] = TOKENIZER.value
    return [f"--{name}={value}" for name, value in settings.items()]


def write_model(folder: Path) -> None:
    """An untrained Llama of the flags' sizes, as transformers writes it."""
    heads = HIDDEN.value // HEAD_WIDTH
    sizes = {
        "hidden_size": HIDDEN.value,
        "num_hidden_layers": BLOCKS.value,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": HEAD_WIDTH,
        "intermediate_size": 8 * HIDDEN.value // 3,
        "max_position_embeddings": 2 * LENGTH.value,
    }
    if TOKENIZER.value:
        sizes["vocab_size"] = load_tokenizer(TOKENIZER.value).vocab_size
    model = from_preset("tiny-llama", **sizes)
    params = jax.jit(model.init)(streams.key(SEED.value, "key/weights"))
    print(f"{BLOCKS.value} blocks, {num_params(params):,} parameters", flush=True)
    save_pretrained(folder, model, jax.device_get(params))


if __name__ == "__main__":
    launch.run(main)
