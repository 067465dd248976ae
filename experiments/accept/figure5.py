"""Stage `figure5`: CIFAR-10 by FL, Accelerated FL and Snake, for as many minutes as there are."""

import json
import subprocess
import sys

from experiments.accept.outcome import Outcome, last_line
from experiments.accept.stages import Given
from experiments.bench.rows import Row

TABLE = "Figure 5, as far as it got"
_STARTS_S = 45.0  # what starting, compiling the last round and drawing take


def run(given: Given) -> Outcome:
    """The runs go on with the same command: it is told."""
    words = command(given)
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    again = f"it goes on with: {' '.join(['python', *words[1:]])}"
    if done.returncode:
        line = last_line(done.stderr)
        return Outcome((), (f"exit code {done.returncode}: {line}",), (again,))
    drawn = given.folder / "results" / given.sizes.figure / "figure5.json"
    if not drawn.exists():
        return Outcome((), ("no run had anything to draw when time was up",), (again,))
    rows = []
    for numbers in json.loads(drawn.read_text())["rows"]:
        about = f"{numbers['method']}, {numbers['partition']}, E = {numbers['epochs']}"
        subject = f"{about}, seed {numbers['seed']}"
        rows.append(Row(TABLE, subject, "accuracy", numbers["final_accuracy"]))
        rows.append(Row(TABLE, subject, "cycles", numbers["cycles"]))
        rows.append(Row(TABLE, subject, "finished", float(numbers["finished"])))
    return Outcome(rows, (), (again,))


def command(given: Given) -> list[str]:
    """The launch, which ends by itself before the stage has to."""
    minutes = max(0.1, (given.limit_s - _STARTS_S) / 60)
    scale = given.sizes.figure
    words = [sys.executable, "-m", "experiments.reproduce", "--figure=5", f"--scale={scale}"]
    words += [f"--minutes={minutes:.2f}", f"--workdir={given.folder / 'runs'}"]
    words.append(f"--results={given.folder / 'results'}")
    if given.data and scale != "smoke":
        words.append(f"--data={given.data}")
    return words
