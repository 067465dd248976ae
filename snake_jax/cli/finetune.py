"""Carries out `snake-jax finetune`: from flags to a fine-tuned language model."""

from functools import partial

from absl.flags import FlagValues
from etils import epath

from snake_jax import processes
from snake_jax.cli import cluster, defaults, one_run
from snake_jax.cli.commands import config_flags, run_flags
from snake_jax.cli.commands.command import Given
from snake_jax.cli.one_run import OpenRun
from snake_jax.cli.training import launched, training
from snake_jax.config import TextConfig
from snake_jax.data.text import shown
from snake_jax.errors import UserError
from snake_jax.runs import loop, storage, text_inputs, text_results


def main(given: Given) -> None:
    """Checks flags, model and data, then trains."""
    flags = given.flags
    workdir = run_flags.workdir(flags)
    config = config_flags.from_flags(flags, TextConfig)
    if flags.save in ("adapter", "both") and not config.lora_rank:
        raise UserError(
            f"--save={flags.save}: there is no adapter with --lora_rank=0; say --save=model"
        )
    _check_push(flags, config)
    # Where there are several processes they have to know each other before one asks for devices.
    with cluster.together(flags), launched(run_flags.engine(flags), config):
        config = text_inputs.with_first_day(config, workdir)
        setup = loop.prepare(config)
        given.stages.ended_copying("data", one_run.data_bytes(setup))
        about = f"{text_results.describe_texts(setup)}\n{defaults.said_of_defaults(setup, flags)}"
        if flags.show_rows:
            rows = setup.data.rows.train.rows
            about += "\n\n" + shown.show(rows, setup.data.tokenizer, flags.show_rows)
        begin = partial(_begin, flags)
        end = partial(_end, flags, setup)
        with training(flags, given.stages) as how:
            one_run.carry_out(setup, workdir, about, how, begin, end)


def _check_push(flags: FlagValues, config: TextConfig) -> None:
    """Refuses a repository of an adapter that there is not, or in a folder of something else."""
    if not flags.push_adapter_to:
        return
    said = f"--push_adapter_to={flags.push_adapter_to}"
    if not config.lora_rank:
        raise UserError(f"{said}: there is no adapter with --lora_rank=0; leave one of them out")
    place = storage.path_of(flags.push_adapter_to, "push_adapter_to")
    names = {entry.name for entry in storage.entries(place)}
    # A repository that was cloned from the hub, or written before, may be written to again.
    if names and not names & {"adapter_config.json", ".git"}:
        raise UserError(f"{said} holds files that are no adapter; give a new folder")


def _begin(flags: FlagValues, job: OpenRun) -> None:
    """What the model answers before it is trained; a run that goes on has said so before."""
    if flags.prompt and not job.state.rounds:
        print(_sample(flags, job.setup, job.state, "before"))


def _end(flags: FlagValues, setup: loop.Setup, state: loop.State, folder: epath.Path) -> None:
    if flags.prompt:
        print(_sample(flags, setup, state, "after"))
    if processes.is_first():
        for saved in _save(flags, setup, state, folder):
            print(f"saved: {saved}")


def _sample(flags: FlagValues, setup: loop.Setup, state: loop.State, when: str) -> str:
    answer = text_results.answer(setup, state.params, flags.prompt)
    return f"{when} training, to {flags.prompt!r}: {answer!r}"


def _save(
    flags: FlagValues, setup: loop.Setup, state: loop.State, folder: epath.Path
) -> list[epath.Path]:
    """Writes what `--save` asks for; returns the folders."""
    written = []
    if flags.save in ("model", "both"):
        place = folder / "model"
        with storage.stored(place) as local:
            text_results.save_model(setup, state.params, local)
        written.append(place)
    if flags.save in ("adapter", "both"):
        place = folder / "adapter"
        with storage.stored(place) as local:
            text_results.save_adapter(setup, state.params, local)
        written.append(place)
    if flags.push_adapter_to:
        place = storage.path_of(flags.push_adapter_to, "push_adapter_to")
        with storage.stored(place) as local:
            text_results.save_repository(setup, state.params, local, folder)
        written.append(place)
    return written
