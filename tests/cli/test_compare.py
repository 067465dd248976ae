"""The launches' shared entry and the comparison launch, as a user runs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.run_folders import write_language_fedavg, write_language_snake

ROOT = Path(__file__).parents[2]


def compare(*arguments):
    command = [sys.executable, "-W", "error", "-m", "snake_jax", "compare", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def runs(tmp_path):
    """Two run folders under one parent."""
    for name, flops in (("snake", 1e9), ("fedavg", 4e9)):
        line = {
            "cycle": 0,
            "node": 0,
            "layers": ["a"],
            "iterations": 5,
            "train_flops": flops,
            "accuracy": 0.5,
        }
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return tmp_path / "snake", tmp_path / "fedavg"


def test_prints_the_table_and_draws_beside_the_runs(runs):
    done = compare(*runs)
    assert (done.returncode, done.stderr.strip()) == (
        0,
        f"curves: {runs[0].parent / 'comparison.png'}",
    )
    assert done.stdout.startswith(
        "snake against fedavg: final accuracy +0.0 points, 75.0 % fewer training FLOPs"
    )
    assert (runs[0].parent / "comparison.png").stat().st_size > 10_000


def test_language_runs_and_no_mixture(runs, tmp_path):
    language = write_language_snake(tmp_path / "lora"), write_language_fedavg(tmp_path / "full")
    done = compare(*language)
    assert (done.returncode, done.stderr.strip()) == (0, f"curves: {tmp_path / 'comparison.png'}")
    assert done.stdout.startswith("lora against full: final perplexity 6.33 against 7.00 (0.90x), ")
    mixed = compare(language[0], runs[0], f"--output={tmp_path / 'mixed'}")
    assert (mixed.returncode, mixed.stdout, len(mixed.stderr.splitlines())) == (2, "", 1)
    assert "lora is measured by its perplexity and snake by its accuracy" in mixed.stderr
    assert not (tmp_path / "mixed").exists()


def test_json_alone_on_stdout(runs, tmp_path):
    done = compare(*runs, "--format=json", f"--output={tmp_path / 'out'}")
    assert [run["name"] for run in json.loads(done.stdout)["runs"]] == ["snake", "fedavg"]
    assert (tmp_path / "out" / "comparison.png").exists()


def test_help_teaches():
    done = compare("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "snake-jax compare DIR DIR" in done.stdout
    assert "--format: <text|markdown|json>" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no runs to compare"),
        (("/absent/run",), "/absent/run: no such folder"),
        (("--fromat=json",), "Unknown command line flag 'fromat'"),
        (("--format=html",), "should be one of <text|markdown|json>"),
        (("--flagfile=/absent/x.flags",), "Unable to open flagfile"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments, message):
    done = compare(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


LAUNCH = """
from snake_jax.cli import launch
from snake_jax.errors import UserError
def main(arguments):
    {body}
launch.run(main)
"""


@pytest.mark.parametrize(
    ("body", "argument", "code", "stderr"),
    [
        ("pass", "", 0, ""),
        (
            "pass",
            "nodes=3",
            2,
            "error: nodes=3: flags begin with -- and take their value after =; --help lists them\n",
        ),
        ("raise UserError('alpha:\\n too small')", "", 2, "error: alpha: too small\n"),
        ("raise KeyboardInterrupt", "", 130, "interrupted\n"),
    ],
)
def test_launch_ends(body, argument, code, stderr):
    command = [sys.executable, "-c", LAUNCH.format(body=body), *argument.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, stderr)


def test_launch_hides_no_bug():
    command = [sys.executable, "-c", LAUNCH.format(body="raise ValueError('a bug')")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
