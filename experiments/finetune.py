"""Fine-tunes a language model over nodes that each hold their own text, and reports what it cost.

  python -m experiments.finetune --model=tiny-llama --data=pydoc --algorithm=snake --lora_rank=0 \\
      --always_train=embed,head --learning_rate=3e-3 --workdir=runs/snake_llm
  python -m experiments.finetune --model=DIR --data=answers.jsonl --algorithm=snake --cycles=1 --local_epochs=1 \\
      --lora_rank=128 --frozen_dtype=int8 --batch_size=6 --max_length=512 --partition=by_category --workdir=runs/lora
  python -m experiments.compare runs/snake_llm runs/fedavg_llm
  python -m experiments.generate --model=runs/snake_llm/model --prompt="What is a generator?"

DIR is a folder as Hugging Face's save_pretrained writes it (OPT or Llama). The same command after a kill goes on from
the last finished visit. The workdir gets what that of experiments.classify gets, and model/: the fine-tuned model with
adapters merged, or, with --save=adapter, adapter/ for the library peft.
"""

from functools import partial
from pathlib import Path

from absl import flags

from experiments import config_flags, launch, one_run
from experiments.one_run import Job
from snake_jax import runner, tuned
from snake_jax.config import TuneConfig
from snake_jax.errors import UserError

config_flags.define(TuneConfig)
WORKDIR = flags.DEFINE_string("workdir", "", "folder of the run; a run there goes on")
SAVE = flags.DEFINE_enum("save", "model", ("model", "adapter", "both", "none"), "what to write into the workdir")
PROMPT = flags.DEFINE_string("prompt", "", "print what the model answers to this, before training and after")
TENSORBOARD = flags.DEFINE_bool("tensorboard", False, "write TensorBoard events into the workdir")
CACHE = flags.DEFINE_string("compilation_cache_dir", "", "keep compiled programs here for later runs")


def main(_: list[str]) -> None:
    """Checks flags, model and data, then trains."""
    if not WORKDIR.value:
        raise UserError("--workdir is needed: the folder that the run's results go to")
    config = config_flags.from_flags(TuneConfig)
    if SAVE.value in ("adapter", "both") and not config.lora_rank:
        raise UserError(f"--save={SAVE.value}: there is no adapter with --lora_rank=0; say --save=model")
    setup = runner.prepare(config)
    if CACHE.value:
        one_run.keep_programs(CACHE.value)
    with one_run.ends_told():
        one_run.carry_out(setup, WORKDIR.value, tuned.describe(setup), TENSORBOARD.value, _begin, partial(_end, setup))


def _begin(job: Job) -> None:
    if PROMPT.value and not job.state.rounds:
        print(_sample(job.setup, job.state, "before"))


def _end(setup: runner.Setup, state: runner.State, folder: Path) -> None:
    if PROMPT.value:
        print(_sample(setup, state, "after"))
    for saved in _save(setup, state, folder):
        print(f"saved: {saved}")


def _sample(setup: runner.Setup, state: runner.State, when: str) -> str:
    return f"{when} training, to {PROMPT.value!r}: {tuned.answer(setup, state.params, PROMPT.value)!r}"


def _save(setup: runner.Setup, state: runner.State, folder: Path) -> list[Path]:
    """Writes what the flag asks for."""
    saved = []
    if SAVE.value in ("model", "both"):
        saved.append(tuned.save_model(setup, state.params, folder / "model"))
    if SAVE.value in ("adapter", "both"):
        saved.append(tuned.save_adapter(setup, state.params, folder / "adapter"))
    return saved


if __name__ == "__main__":
    launch.run(main)
