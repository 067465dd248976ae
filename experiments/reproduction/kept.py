"""Runs as they are kept: one file for a scale or a study, `runs.jsonl.gz`, a line a run.

A line is a JSON object of four:

  run      its name, which its folder had
  config   what config.json holds
  summary  what summary.json holds
  metrics  the lines of metrics.jsonl, in order

Ledgers and checkpoints are not kept. To have folders again, as `experiments.compare` and
`experiments.report` read them:

  python -m experiments.reproduction.kept experiments/results/cifar10/runs.jsonl.gz runs/cifar10
"""

import gzip
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from snake_jax.errors import UserError
from snake_jax.report.runs import Run, read_run

FILE = "runs.jsonl.gz"


def line_of(run: Run) -> str:
    """A run as its line."""
    content = {
        "run": run.name,
        "config": run.config,
        "summary": run.summary,
        "metrics": run.metrics,
    }
    return json.dumps(content)


def write_lines(file: Path, lines: Iterable[str]) -> None:
    """Writes lines of `line_of` in the order of their runs' names; the same lines are the same
    bytes.
    """
    named = {json.loads(line)["run"]: line for line in lines}
    text = "".join(f"{named[name]}\n" for name in sorted(named))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(text.encode(), mtime=0))


def read_lines(file: Path) -> list[str]:
    """The lines of a file; none where there is no file."""
    if not file.exists():
        return []
    try:
        return gzip.decompress(file.read_bytes()).decode().splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: damaged ({error}); take it from git again") from error


def read_runs(file: Path) -> dict[str, Run]:
    """The runs of a file by name.

    Raises:
      UserError: there is no such file, or it is damaged.
    """
    if not file.exists():
        raise UserError(f"{file}: no such file of kept runs")
    runs = {}
    for number, line in enumerate(read_lines(file), 1):
        try:
            found = json.loads(line)
            run = Run(
                path=file.parent / found["run"],
                config=found["config"],
                metrics=found["metrics"],
                summary=found["summary"],
                name=found["run"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file}, line {number}: no run ({error}); take it from git again"
            ) from error
        runs[run.name] = run
    return runs


def unpack(file: Path, folder: Path) -> list[Path]:
    """Writes every run of a file as a run folder below `folder`, and returns these."""
    written = []
    for name, run in read_runs(file).items():
        target = folder / name
        if target.exists():
            raise UserError(f"{target} is there already; give another folder")
        write_folder(run, target)
        written.append(target)
    return written


def write_folder(run: Run, target: Path) -> None:
    """Writes a run as a new folder: configuration, metrics, and the summary of one that ended."""
    target.mkdir(parents=True)
    (target / "config.json").write_text(json.dumps(run.config, indent=2) + "\n")
    lines = [json.dumps(record) + "\n" for record in run.metrics]
    (target / "metrics.jsonl").write_text("".join(lines))
    if run.summary is not None:
        (target / "summary.json").write_text(json.dumps(run.summary, indent=2) + "\n")


def pack(folders: Sequence[Path], file: Path) -> None:
    """Keeps run folders in one file, each under its folder's name."""
    write_lines(file, [line_of(read_run(folder)) for folder in folders])


def main(arguments: Sequence[str]) -> int:
    """From the command line; the exit code."""
    if len(arguments) != 2:
        print("usage: python -m experiments.reproduction.kept RUNS.jsonl.gz FOLDER")
        return 2
    try:
        folders = unpack(Path(arguments[0]), Path(arguments[1]))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(map(str, folders)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
