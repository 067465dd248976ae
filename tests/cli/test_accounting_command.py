"""`snake-jax accounting`: its analytic half is the committed one, and files get their tables."""

import json

import pytest

from snake_jax.cli import accounting, accounting_tables
from tests.launches import ROOT, Launcher

COMMITTED = json.loads((ROOT / "experiments/results/accounting.json").read_text())
COMPILED = {
    "flops": 2e9,
    "argument_bytes": 40_000_000,
    "temporary_bytes": 60_000_000,
}


@pytest.fixture
def run(monkeypatch, capfd):
    """The command, with a compiler that is asked nothing."""
    analytic = {key: COMMITTED[key] for key in ("layers", "steps", "memory", "traffic")}
    monkeypatch.setattr(accounting, "analytic", lambda batch: json.loads(json.dumps(analytic)))
    monkeypatch.setattr(accounting, "_compiled", lambda *_: COMPILED)
    return Launcher(monkeypatch, capfd, "accounting")


def without_compiled(rows):
    left = []
    for row in rows:
        rest = dict(row)
        rest.pop("matmul", None)
        rest.pop("xla", None)
        left.append(rest)
    return left


def test_what_follows_from_shapes_is_what_the_documents_cite():
    found = json.loads(json.dumps(accounting.analytic(COMMITTED["batch_size"])))
    assert found["layers"] == COMMITTED["layers"]
    assert found["traffic"] == COMMITTED["traffic"]
    assert found["steps"] == without_compiled(COMMITTED["steps"])
    assert found["memory"] == without_compiled(COMMITTED["memory"])


def test_tables_are_printed_or_put_between_the_marks_of_a_file(run, tmp_path):
    printed = run("--batch=32")
    assert printed.code == 0
    assert "Written by `snake-jax accounting --batch=32`, batch 32" in printed.stdout
    page = tmp_path / "page.md"
    page.write_text(f"before\n{accounting_tables.BEGIN}\nold\n{accounting_tables.END}\nafter\n")
    ended = run(f"--output={page}", f"--results={tmp_path / 'numbers.json'}")
    assert ended.stdout == f"{tmp_path / 'numbers.json'}\n{page}\n"
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "### Bytes of a visit" in text
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["steps"][0]["matmul"] == COMPILED


def test_a_file_without_marks_is_one_line_before_anything_is_compiled(run, tmp_path, monkeypatch):
    monkeypatch.setattr(accounting, "_compiled", lambda *_: pytest.fail("compiled"))
    (tmp_path / "page.md").write_text("no marks\n")
    ended = run(f"--output={tmp_path / 'page.md'}")
    assert (ended.code, ended.stdout) == (2, "")
    assert "no lines <!-- tables: begin -->" in ended.stderr
