"""`snake-jax finetune`: its help and its flags."""

from absl import flags
from absl.flags import FlagValues

from snake_jax.cli.commands import config_flags, run_flags
from snake_jax.cli.commands.command import Command
from snake_jax.config import TextConfig

_TEXT = """\
  snake-jax finetune --model=tiny-llama --data=pydoc --algorithm=snake --lora_rank=0 \\
      --always_train=embed,head --learning_rate=3e-3 --workdir=runs/snake_llm
  snake-jax finetune --model=DIR --data=answers.jsonl --algorithm=snake --cycles=1 \\
      --local_epochs=1 --lora_rank=128 --frozen_dtype=int8 --batch_size=6 --max_length=512 \\
      --partition=by_category --workdir=runs/lora
  snake-jax compare runs/snake_llm runs/fedavg_llm
  snake-jax generate --model=runs/snake_llm/model --prompt="What is a generator?"

DIR is a folder as Hugging Face's save_pretrained writes it. The same command after a kill goes on
from the last finished visit. The workdir gets what that of classify gets, and model/: the
fine-tuned model with adapters merged, or, with --save=adapter, adapter/ for the library peft.
"""


def _define(values: FlagValues) -> None:
    config_flags.define_settings(values, TextConfig)
    run_flags.define_run(values)
    flags.DEFINE_enum(
        "save",
        "model",
        ("model", "adapter", "both", "none"),
        "what to write into the workdir",
        flag_values=values,
    )
    flags.DEFINE_string(
        "push_adapter_to",
        "",
        "write the adapter here too, as a repository of the Hugging Face hub: with a README card, "
        "the tokenizer's files; nothing is sent",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "show_rows",
        0,
        "print so many training texts as the model sees them, what trains marked",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_string(
        "prompt",
        "",
        "print what the model answers to this, before training and after",
        flag_values=values,
    )


FINETUNE = Command(
    name="finetune",
    purpose="fine-tunes a language model over nodes that each hold their own text, and reports "
    "what it cost",
    example="snake-jax finetune --preset=demo_llm_snake --workdir=runs/snake_llm",
    text=_TEXT,
    define=_define,
    module="snake_jax.cli.finetune",
    newcomers=(
        "preset",
        "data",
        "max_length",
        "partition",
        "model",
        "lora_rank",
        "algorithm",
        "cycles",
        "always_train",
        "nodes",
        "local_epochs",
        "batch_size",
        "learning_rate",
        "seed",
        "workdir",
        "save",
        "show_rows",
        "prompt",
        "interrupt",
        "frozen_dtype",
    ),
)
