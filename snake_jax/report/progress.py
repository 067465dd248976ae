"""Where a run stands: a bar with the time left on a terminal, a line a visit elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from snake_jax.engines import contract
from snake_jax.report.merits import Record, merit_of_lines
from snake_jax.report.units import clock, human

Update = Callable[[Record], None]
Beats = Sequence[contract.Progress]
FEW_LAYERS = 4  # up to which a line names them all
_BEATS_S = 60.0
"""How often lines say how far a visit has come, where nothing else is to be said."""


class Teller(NamedTuple):
    """What a run tells of where it stands.

    Attributes:
      update: is called with each round's record.
      beat: is called between them with what nodes that are processes say of their visits.
    """

    update: Update
    beat: Callable[[Beats], None]


@contextmanager
def progress(
    total_visits: int, done: int = 0, unit: str = "visit", enabled: bool = True
) -> Iterator[Teller]:
    """Gives `update(record)`, to be called after each visit, and `beat(beats)` for between them.

    Args:
      total_visits: of the whole run.
      done: visits finished before, where a run goes on from a checkpoint.
      unit: what a record is called: visit or round.
      enabled: False prints nothing.
    """
    if not enabled:
        yield Teller(_say_nothing, _say_nothing)
    elif sys.stdout.isatty():
        with _bar(total_visits, done, unit) as teller:
            yield teller
    else:
        yield _lines(total_visits, done, unit)


def _say_nothing(told: Record | Beats) -> None:
    del told


def progress_text(record: Record) -> str:
    """A line of metrics in a few words; what was not measured is left out.

    `loss 1.234  accuracy 56.7 %  node 3  conv1,conv4,fc11`, or of a language model `loss 1.234
    perplexity 12.3  node 3  block_05.lora  1,234 tokens/s`. Where several seeds are trained, a
    record says which `seed` it is of.
    """
    merit = merit_of_lines([record])
    parts = []
    if "seed" in record:
        parts.append(f"seed {record['seed']}")
    if record.get("loss") is not None:
        parts.append(f"loss {record['loss']:.3f}")
    if record.get(merit.field) is not None:
        parts.append(f"{merit.name} {merit.show(record[merit.field])}")
    # Who trained what; a full model's layers would fill the line.
    parts.append(_nodes(record.get("node")))
    layers = record.get("layers") or []
    parts.append(",".join(layers) if len(layers) <= FEW_LAYERS else f"{len(layers)} layers")
    if record.get("tokens_per_s") is not None:
        parts.append(f"{record['tokens_per_s']:,.0f} tokens/s")
    if record.get("epsilon") is not None:
        parts.append(f"epsilon {record['epsilon']:.4g}")
    if record.get("distilled"):
        parts.append("distilled")
    parts.append(record.get("event") or "")
    return "  ".join(part for part in parts if part)


def beats_text(beats: Beats) -> str:
    """Heart-beats in a few words: `node 2: step 37 in 12 s, load 0.8, 512 MB`."""
    parts = []
    for beat in beats:
        done = "compiling" if beat.compiling else f"step {beat.steps:,}"
        held = human(beat.memory_bytes, "B")
        about = f"{done} in {beat.seconds:.0f} s, load {beat.load:.1f}, {held}"
        parts.append(f"node {beat.visit.node}: {about}")
    return "; ".join(parts)


def _nodes(node: int | list[int] | None) -> str:
    if node is None:
        return ""
    if isinstance(node, int):
        return f"node {node}"
    return "1 node" if len(node) == 1 else f"{len(node)} nodes"


def _lines(total: int, done: int, unit: str) -> Teller:
    start = said_s = time.monotonic()
    first = done
    width = len(str(total))

    def update(record: Record) -> None:
        nonlocal done, said_s
        done += 1
        said_s = time.monotonic()
        # As fast as on average since this process began.
        seconds_each = (time.monotonic() - start) / (done - first)
        left = seconds_each * (total - done)
        count = f"{done:>{width}}/{total}"
        print(f"{unit} {count}  {progress_text(record)}  left {clock(left)}", flush=True)

    def beat(beats: Beats) -> None:
        nonlocal said_s
        if beats and time.monotonic() - said_s > _BEATS_S:
            said_s = time.monotonic()
            print(f"{unit} {done + 1:>{width}}/{total}  {beats_text(beats)}", flush=True)

    return Teller(update, beat)


@contextmanager
def _bar(total: int, done: int, unit: str) -> Iterator[Teller]:
    columns = (
        TextColumn(unit),
        MofNCompleteColumn(),
        BarColumn(bar_width=12),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        # Takes what width is left, and alone is cut short on a narrow terminal.
        TextColumn(
            "{task.description}",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
        ),
    )
    with Progress(*columns, console=Console(file=sys.stdout), expand=True) as bar:
        task = bar.add_task("", total=total, completed=done)
        last = ""

        def update(record: Record) -> None:
            nonlocal last
            last = progress_text(record)
            bar.update(task, advance=1, description=last)

        def beat(beats: Beats) -> None:
            parts = filter(None, (beats_text(beats), last))
            bar.update(task, description=" | ".join(parts))

        yield Teller(update, beat)
