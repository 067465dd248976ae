"""Says what a language model answers: after fine-tuning, or before.

  python -m experiments.generate --model=runs/snake_llm/model --prompt="What is a generator?"
  python -m experiments.generate --model=DIR --adapter=runs/lora/adapter --prompt="..." \\
      --temperature=0.8 --seed=1
  python -m experiments.generate --model=DIR --prompt="Once upon a time" --template=none

Each --prompt is put into the form that the model was trained on (--template as in
experiments.finetune) and answered, all in one batch. --template=none takes the text as it stands,
to be continued.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from snake_jax.cli import launch
from snake_jax.data.text import templates, tokenizers
from snake_jax.errors import UserError
from snake_jax.models import lora
from snake_jax.models.generation import generate
from snake_jax.models.hub import load_pretrained
from snake_jax.runs import text_task
from snake_jax.train.text_step import own_items

MODEL = flags.DEFINE_string(
    "model", "", "folder of the model, as Hugging Face's save_pretrained writes it"
)
ADAPTER = flags.DEFINE_string("adapter", "", "folder of an adapter, as the library peft writes it")
PROMPT = flags.DEFINE_multi_string("prompt", None, "what to answer; may be given several times")
TOKENIZER = flags.DEFINE_string(
    "tokenizer", "", "folder of the tokenizer; empty: the model's, or bytes"
)
TEMPLATE = flags.DEFINE_enum(
    "template", "auto", (*templates.TEMPLATES, "none"), "form of the prompt"
)
TEMPLATE_DATE = flags.DEFINE_string(
    "template_date",
    "",
    "the day that chat templates with a date write, as 2026-01-31; empty: today",
)
ALLOW_SPECIAL_TOKENS = flags.DEFINE_bool(
    "allow_special_tokens",
    False,
    "special tokens that the prompt spells (</s>) become their ids; else text",
)
TOKENS = flags.DEFINE_integer(
    "max_new_tokens",
    None,
    "length of the longest answer; 128, or as many as the model has positions",
    lower_bound=1,
)
TEMPERATURE = flags.DEFINE_float(
    "temperature", 0.0, "0: the likeliest token; above: drawn", lower_bound=0.0
)
TOP_K = flags.DEFINE_integer(
    "top_k", 0, "draw from the likeliest so many only; 0: all", lower_bound=0
)
TOP_P = flags.DEFINE_float(
    "top_p", 1.0, "draw from the likeliest with this share of probability", 0.0, 1.0
)
SEED = flags.DEFINE_integer("seed", 0, "of the draws", lower_bound=0)
DTYPE = flags.DEFINE_enum(
    "compute_dtype", "float32", ("float32", "bfloat16"), "arithmetic of the network"
)


def main(_: list[str]) -> None:
    """Loads, answers, prints."""
    if not MODEL.value:
        raise UserError("--model is needed: a folder, such as the model/ of a run's workdir")
    if not PROMPT.value:
        raise UserError("--prompt is needed: what the model is to answer")
    tokenizer = tokenizers.load_tokenizer(
        TOKENIZER.value or text_task.tokenizer_beside(MODEL.value), TEMPLATE_DATE.value
    )
    prompts = [_ids(prompt, tokenizer) for prompt in PROMPT.value]
    model, params = load_pretrained(MODEL.value)
    tokenizers.check_fits(tokenizer, model.vocab_size)
    adapters = {}
    if ADAPTER.value:
        found, settings = lora.load_peft(Path(ADAPTER.value))
        names = own_items(model, False)
        adapters = {
            names[block]: lora.scaled(tree, settings.scale) for block, tree in found.items()
        }
    answers = generate(
        model,
        jax.tree.map(jnp.asarray, params),
        prompts,
        max_new_tokens=TOKENS.value or _room(prompts, model.max_positions),
        temperature=TEMPERATURE.value,
        top_k=TOP_K.value,
        top_p=TOP_P.value,
        seed=SEED.value,
        stop_ids=(tokenizer.eos_id,),
        adapters=adapters,
        dtype=jnp.dtype(DTYPE.value),
    )
    for prompt, answer in zip(PROMPT.value, answers, strict=True):
        print(f"> {prompt}\n{tokenizer.decode(answer).strip()}\n")


def _ids(prompt: str, tokenizer: tokenizers.Tokenizer) -> list[int]:
    if TEMPLATE.value == "none":
        return templates.render_text(prompt, tokenizer, ALLOW_SPECIAL_TOKENS.value)
    return templates.render_prompt(prompt, tokenizer, TEMPLATE.value, ALLOW_SPECIAL_TOKENS.value)


def _room(prompts: list[list[int]], positions: int) -> int:
    """New tokens by default; at least one is asked for, so that a prompt without room is
    refused.
    """
    return min(128, max(1, positions - max(map(len, prompts))))


if __name__ == "__main__":
    launch.run(main)
