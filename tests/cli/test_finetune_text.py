"""What the fine-tuning launch makes of users' text: rows that are bad, texts without prompts, the
day in a chat template.
"""

import datetime
import json

import pytest

from snake_jax.cli import one_run
from snake_jax.config import TextConfig
from snake_jax.runs import loop, text_inputs
from tests.data.text.chat_folders import TEMPLATES, write_folder
from tests.launches import Launcher, write_model

SMALL = (
    "--nodes=2",
    "--max_length=64",
    "--batch_size=4",
    "--lora_rank=0",
    "--cycles=1",
    "--save=none",
)


@pytest.fixture
def run(monkeypatch, capfd):
    monkeypatch.setattr(one_run, "draw_curves", lambda run, picture: None)
    return Launcher(monkeypatch, capfd, "finetune")


@pytest.fixture
def dated(tmp_path):
    """The folder of a tokenizer whose chat template writes the day."""
    pytest.importorskip("transformers")
    pytest.importorskip("jinja2")
    return write_folder(tmp_path / "tokenizer", "bytes", TEMPLATES["llama3"])


@pytest.fixture
def on_day(monkeypatch):
    """`on_day(2026, 11, 28)`: what today is from now on."""

    def set_today(*numbers):
        class Day(datetime.date):
            @classmethod
            def today(cls):
                return datetime.date(*numbers)

        monkeypatch.setattr("snake_jax.data.text.chat_template.datetime.date", Day)

    return set_today


def pairs(file, count=20, **more):
    rows = [{"prompt": f"is it {i}?", "response": f"it is {i}.", **more} for i in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def same_rows(one, other):
    """Whether two setups train on the same ids."""
    (a,), (b,) = one.data.rows.train.rows.values(), other.data.rows.train.rows.values()
    return a.ids.tobytes() == b.ids.tobytes()


def test_a_run_keeps_the_day_it_began_on(tmp_path, dated, on_day):
    values = {"data": str(pairs(tmp_path / "data.jsonl")), "tokenizer": str(dated)}
    config = TextConfig(max_length=128, nodes=2, lora_rank=0, **values)
    on_day(2026, 11, 28)
    first = loop.prepare(text_inputs.with_first_day(config, str(tmp_path / "run")))
    assert first.config.template_date == "2026-11-28"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({**vars(first.config)}))
    on_day(2026, 11, 29)
    again = loop.prepare(text_inputs.with_first_day(config, str(tmp_path / "run")))
    assert again.config == first.config
    assert same_rows(again, first)
    other = loop.prepare(text_inputs.with_first_day(config, str(tmp_path / "other")))
    assert other.config.template_date == "2026-11-29"
    assert not same_rows(other, first)
    asked = text_inputs.with_first_day(
        TextConfig(template_date="2026-11-30", **values), str(tmp_path / "run")
    )
    assert asked.template_date == "2026-11-30"


def test_a_launch_goes_on_the_next_day_and_says_the_day(run, tmp_path, dated, on_day):
    flags = (
        *SMALL,
        "--model=tiny-llama",
        f"--tokenizer={dated}",
        f"--data={pairs(tmp_path / 'data.jsonl')}",
        f"--workdir={tmp_path / 'run'}",
    )
    on_day(2026, 11, 28)
    ended = run(*flags, "--max_length=128")
    assert (ended.code, ended.stderr) == (0, "")
    assert "the chat template writes the day 2026-11-28 (--template_date)" in ended.stdout
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["template_date"] == "2026-11-28"
    on_day(2026, 11, 29)
    again = run(*flags, "--max_length=128")
    assert (again.code, again.stderr) == (0, "")
    assert "finished before" in again.stdout
    other = run(*flags, "--max_length=128", "--template_date=2026-11-29")
    assert "holds a run with other flags: --template_date=2026-11-28 (here" in other.stderr


def test_a_day_that_no_text_holds_is_refused(tmp_path):
    config = TextConfig(data=str(pairs(tmp_path / "data.jsonl")), template_date="2026-11-28")
    with pytest.raises(ValueError, match="the texts of this run hold no date; leave it out"):
        loop.prepare(config)


def test_a_run_on_texts_without_prompts_trains_on_all_of_them(run, tmp_path):
    texts = [f"it is {i}, and so on. " * (1 + i % 5) for i in range(20)]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "data.jsonl").write_text(rows + '{"text": null}\n')
    flags = (*SMALL, "--model=tiny-llama", f"--data={tmp_path / 'data.jsonl'}")
    refused = run(*flags, f"--workdir={tmp_path / 'run'}")
    assert refused.code == 2
    assert "field text is not text but None; leave such rows out" in refused.stderr
    ended = run(*flags, "--skip_bad_rows", f"--workdir={tmp_path / 'run'}")
    assert (ended.code, ended.stderr) == (0, "")
    assert "data: 1 of 21 rows skipped, the first: " in ended.stdout
    assert "continued pre-training on 18 texts, in " in ended.stdout
    assert "the loss is of all their tokens" in ended.stdout


def test_all_bytes_of_texts_are_targets_once(tmp_path):
    texts = [f"it is {i}, and so on. " * (1 + i % 5) for i in range(20)]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "data.jsonl").write_text(rows)
    for more in ({}, {"loss_on": "all"}, {"template": "alpaca"}, {"packing": False}):
        values = {"data": str(tmp_path / "data.jsonl"), "nodes": 2, "max_length": 64, **more}
        values["lora_rank"] = 0
        data = loop.prepare(TextConfig(**values)).data.rows
        held = sum(int(rows.weight.sum()) for rows in data.test.values())
        # Every byte and an end; the begin is predicted from nothing.
        assert data.train.target_tokens.sum() + held == sum(len(text) + 1 for text in texts)


def test_generate_takes_special_tokens_of_a_prompt_where_that_is_asked_for(
    tmp_path, monkeypatch, capfd
):
    generate = Launcher(monkeypatch, capfd, "generate")
    model = write_model(tmp_path / "model", vocab_size=264)
    flags = (f"--model={model}", "--prompt=</s>", "--max_new_tokens=2", "--template=none")
    assert generate(*flags).code == 0
    ended = generate(*flags, "--allow_special_tokens")
    assert ended.code == 2
    assert "--allow_special_tokens: the tokenizer bytes has no special tokens" in ended.stderr


def test_generate_takes_a_day_for_the_template(tmp_path, monkeypatch, capfd, dated):
    generate = Launcher(monkeypatch, capfd, "generate")
    flags = (f"--model={tmp_path}", f"--tokenizer={dated}", "--prompt=it")
    ended = generate(*flags, "--template_date=tomorrow")
    assert ended.code == 2
    assert "--template_date=tomorrow is no day; write it as 2026-01-31" in ended.stderr
