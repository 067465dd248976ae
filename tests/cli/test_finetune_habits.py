"""What people expect of a tool that fine-tunes: defaults that run, the best model, a table, a
repository of the adapter.
"""

import json
import re

import pytest
from safetensors.numpy import load_file

from snake_jax.cli import one_run
from snake_jax.config import TextConfig
from snake_jax.runs import loop
from tests.cli.test_finetune import SMALL
from tests.launches import Launcher, json_lines, write_model, write_pairs

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_model(folder / "model")
    write_pairs(folder / "pairs.jsonl")
    # As a model from the hub knows its own name.
    config = folder / "model" / "config.json"
    named = json.loads(config.read_text()) | {"_name_or_path": "someone/small-llama"}
    config.write_text(json.dumps(named))
    (folder / "model" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return folder


@pytest.fixture
def run(monkeypatch, capfd):
    monkeypatch.setattr(one_run, "draw_curves", lambda run, picture: None)
    return Launcher(monkeypatch, capfd, "finetune")


def test_the_best_adapter_is_saved_as_a_repository_and_the_table_says_what_came_of_it(
    run, files, tmp_path
):
    flags = (
        *SMALL,
        f"--model={files / 'model'}",
        f"--data={files / 'pairs.jsonl'}",
        # It is best before the end: a rate like this forgets.
        "--learning_rate=0.3",
        "--lr_in_visit=linear",
        "--warmup_steps=1",
        "--max_steps=10",
        "--save_best",
        "--save=adapter",
        f"--push_adapter_to={tmp_path / 'hub'}",
        f"--workdir={tmp_path / 'run'}",
    )
    ended = run(*flags, "--cycles=4")
    assert (ended.code, ended.stderr) == (0, "")

    # The table at the end, as it is known.
    lines = json_lines(tmp_path / "run" / "metrics.jsonl")
    assert sum(line["iterations"] for line in lines) == 10
    names = ("steps", "tokens", "tokens/s", "peak bytes", "train loss", "held-out loss")
    names += ("perplexity", "token accuracy", "exact match")
    table = ended.stdout.partition("fine-tuned\n")[2].splitlines()[: len(names)]
    for name, line in zip(names, table, strict=True):
        assert re.match(rf"  {name}  +\S", line), line
    assert table[0].split() == ["steps", "10"]
    assert f"{lines[-1]['loss']:.4f}" in table[4]

    # What was saved is the best.
    perplexities = [line["perplexity"] for line in lines]
    best = perplexities.index(min(perplexities)) + 1
    assert f"best: after visit {best} of {len(lines)}, perplexity" in ended.stdout
    hub = tmp_path / "hub"
    saved = load_file(hub / "adapter_model.safetensors")
    of_run = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert saved.keys() == of_run.keys()
    trained = {
        name.split(".")[4] for name, value in saved.items() if "lora_B" in name and value.any()
    }
    assert trained == {line["layers"][0][-6] for line in lines[:best]}

    # The repository: nothing of this machine in it.
    assert {entry.name for entry in hub.iterdir()} == {
        ".gitattributes",
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
    }
    config = json.loads((hub / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "someone/small-llama"
    card = (hub / "README.md").read_text()
    assert str(tmp_path) not in card
    assert str(files) not in card
    front = card.split("---\n")[1].splitlines()
    assert 'base_model: "someone/small-llama"' in front
    assert "library_name: peft" in front
    for words in (
        "- pairs.jsonl",
        "`snake`",
        "--learning_rate=0.3",
        "--lora_rank=4",
        "--max_steps",
    ):
        assert words in card
    assert f"| perplexity | {min(perplexities):.4g} |" in card

    # The same command again trains nothing and says so.
    again = run(*flags, "--cycles=4")
    assert again.code == 0
    assert "nothing is left to train" in again.stdout


def test_wrong_repositories_are_one_line_before_anything_is_read(run, files, tmp_path):
    flags = (f"--workdir={tmp_path / 'run'}", "--model=nowhere")
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    wrong = {
        (f"--push_adapter_to={other}",): "holds files that are no adapter; give a new folder",
        (f"--push_adapter_to={tmp_path / 'hub'}", "--lora_rank=0"): "there is no adapter",
        ("--metric=f1",): "not one of perplexity, token_accuracy, exact_match",
        ("--lr_in_visit=step",): "not one of constant, linear, cosine",
    }
    for words, message in wrong.items():
        ended = run(*flags, *words)
        assert ended.code != 0
        assert message in ended.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "rank"),
    [
        # Half of what the key and value projections give: 32 of 64.
        ({}, 16),
        ({"lora_pattern": "q_proj,o_proj"}, 32),
        ({"lora_rank": 3}, 3),
        ({"lora_rank": 0}, 0),
    ],
)
def test_the_rank_that_nobody_gave_fits_the_model(flags, rank):
    config = TextConfig(**flags, limit=16)
    assert loop.prepare(config).config.lora_rank == rank
