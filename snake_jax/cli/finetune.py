"""Fine-tunes a language model over nodes that each hold their own text, and reports what it cost.

  python -m experiments.finetune --model=tiny-llama --data=pydoc --algorithm=snake --lora_rank=0 \\
      --always_train=embed,head --learning_rate=3e-3 --workdir=runs/snake_llm
  python -m experiments.finetune --model=DIR --data=answers.jsonl --algorithm=snake --cycles=1 \\
      --local_epochs=1 --lora_rank=128 --frozen_dtype=int8 --batch_size=6 --max_length=512 \\
      --partition=by_category --workdir=runs/lora
  python -m experiments.compare runs/snake_llm runs/fedavg_llm
  python -m experiments.generate --model=runs/snake_llm/model --prompt="What is a generator?"

DIR is a folder as Hugging Face's save_pretrained writes it (OPT or Llama). The same command after a
kill goes on from the last finished visit. The workdir gets what that of experiments.classify gets,
and model/: the fine-tuned model with adapters merged, or, with --save=adapter, adapter/ for the
library peft.
"""

from functools import partial

from absl import flags
from etils import epath

from snake_jax import processes
from snake_jax.cli import cluster, config_flags, launch, one_run, run_flags
from snake_jax.cli.one_run import Job
from snake_jax.config import TextConfig
from snake_jax.errors import UserError
from snake_jax.runs import loop, storage, text_results, text_task

config_flags.define(TextConfig)
run_flags.define()
SAVE = flags.DEFINE_enum(
    "save", "model", ("model", "adapter", "both", "none"), "what to write into the workdir"
)
PROMPT = flags.DEFINE_string(
    "prompt", "", "print what the model answers to this, before training and after"
)


def main(_: list[str]) -> None:
    """Checks flags, model and data, then trains."""
    workdir = run_flags.workdir()
    config = config_flags.from_flags(TextConfig)
    if SAVE.value in ("adapter", "both") and not config.lora_rank:
        raise UserError(
            f"--save={SAVE.value}: there is no adapter with --lora_rank=0; say --save=model"
        )
    with cluster.together():
        setup = loop.prepare(text_task.with_first_day(config, workdir))
        with run_flags.training() as how:
            one_run.carry_out(
                setup, workdir, text_results.describe(setup), how, _begin, partial(_end, setup)
            )


def _begin(job: Job) -> None:
    if PROMPT.value and not job.state.rounds:
        print(_sample(job.setup, job.state, "before"))


def _end(setup: loop.Setup, state: loop.State, folder: epath.Path) -> None:
    if PROMPT.value:
        print(_sample(setup, state, "after"))
    if processes.is_first():
        for saved in _save(setup, state, folder):
            print(f"saved: {saved}")


def _sample(setup: loop.Setup, state: loop.State, when: str) -> str:
    answer = text_results.answer(setup, state.params, PROMPT.value)
    return f"{when} training, to {PROMPT.value!r}: {answer!r}"


def _save(setup: loop.Setup, state: loop.State, folder: epath.Path) -> list[epath.Path]:
    """Writes what the flag asks for."""
    wanted = {"model": text_results.save_model, "adapter": text_results.save_adapter}
    chosen = [name for name in wanted if SAVE.value in (name, "both")]
    for name in chosen:
        with storage.stored(folder / name) as local:
            wanted[name](setup, state.params, local)
    return [folder / name for name in chosen]


if __name__ == "__main__":
    launch.run(main)
