"""`snake-jax generate`: its help and its flags."""

from absl import flags
from absl.flags import FlagValues

from snake_jax import names
from snake_jax.cli.commands.command import Command

_TEXT = """\
  snake-jax generate --model=runs/snake_llm/model --prompt="What is a generator?"
  snake-jax generate --model=DIR --adapter=runs/lora/adapter --prompt="..." --temperature=0.8 \\
      --seed=1
  snake-jax generate --model=DIR --prompt="Once upon a time" --template=none

Each --prompt is put into the form that the model was trained on (--template as in finetune) and
answered, all in one batch. --template=none takes the text as it stands, to be continued.
"""


def _define(values: FlagValues) -> None:
    _define_inputs(values)
    # How an answer is drawn.
    flags.DEFINE_integer(
        "max_new_tokens",
        None,
        "length of the longest answer; 128, or as many as the model has positions",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_float(
        "temperature",
        0.0,
        "0: the likeliest token; above: drawn",
        lower_bound=0.0,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "top_k",
        0,
        "draw from the likeliest so many only; 0: all",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_float(
        "top_p",
        1.0,
        "draw from the likeliest with this share of probability",
        0.0,
        1.0,
        flag_values=values,
    )
    flags.DEFINE_integer("seed", 0, "of the draws", lower_bound=0, flag_values=values)
    flags.DEFINE_enum(
        "compute_dtype",
        "float32",
        ("float32", "bfloat16"),
        "arithmetic of the network",
        flag_values=values,
    )


def _define_inputs(values: FlagValues) -> None:
    # The model: whole, or with an adapter beside it.
    flags.DEFINE_string(
        "model",
        "",
        "folder of the model, as Hugging Face's save_pretrained writes it",
        flag_values=values,
    )
    flags.DEFINE_string(
        "adapter",
        "",
        "folder of an adapter, as the library peft writes it",
        flag_values=values,
    )
    # What it is asked, and how that becomes tokens.
    flags.DEFINE_multi_string(
        "prompt", None, "what to answer; may be given several times", flag_values=values
    )
    flags.DEFINE_string(
        "tokenizer",
        "",
        "folder of the tokenizer; empty: the model's, or bytes",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "template",
        "auto",
        (*names.TEMPLATES, "none"),
        "form of the prompt",
        flag_values=values,
    )
    flags.DEFINE_string(
        "template_date",
        "",
        "the day that chat templates with a date write, as 2026-01-31; empty: today",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "allow_special_tokens",
        False,
        "special tokens that the prompt spells (</s>) become their ids; else text",
        flag_values=values,
    )


GENERATE = Command(
    name="generate",
    purpose="says what a language model answers: after fine-tuning, or before",
    example='snake-jax generate --model=runs/snake_llm/model --prompt="What is a generator?"',
    text=_TEXT,
    define=_define,
    module="snake_jax.cli.generate",
    newcomers=("model", "adapter", "prompt", "max_new_tokens", "temperature"),
)
