"""Where a run stands: a bar with the time left on a terminal, a line a visit elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from snake_jax.report.runs import Record, merit_of_lines
from snake_jax.report.units import clock

Update = Callable[[Record], None]


@contextmanager
def progress(
    total_visits: int, done: int = 0, unit: str = "visit", enabled: bool = True
) -> Iterator[Update]:
    """Gives `update(record)`, to be called after each visit.

    Args:
      total_visits: of the whole run.
      done: visits finished before, where a run goes on from a checkpoint.
      unit: what a record is called: visit or round.
      enabled: False prints nothing.
    """
    if not enabled:
        yield lambda record: None
    elif sys.stdout.isatty():
        with _bar(total_visits, done, unit) as update:
            yield update
    else:
        yield _lines(total_visits, done, unit)


def describe(record: Record) -> str:
    """`loss 1.234  accuracy 56.7 %  node 3  conv1,conv4,fc11`, with what was not measured left out.

    Of a language model `loss 1.234  perplexity 12.3  node 3  block_05.lora  1,234 tokens/s`. Where
    several seeds are trained, a record says which `seed` it is of.
    """
    merit = merit_of_lines([record])
    loss, reached, rate = record.get("loss"), record.get(merit.field), record.get("tokens_per_s")
    parts = [
        f"seed {record['seed']}" if "seed" in record else "",
        f"loss {loss:.3f}" if loss is not None else "",
        f"{merit.field} {merit.show(reached)}" if reached is not None else "",
        _nodes(record.get("node")),
        _layers(record.get("layers") or []),
        f"{rate:,.0f} tokens/s" if rate is not None else "",
        "distilled" if record.get("distilled") else "",
        record.get("event") or "",
    ]
    return "  ".join(part for part in parts if part)


def _nodes(node: int | list[int] | None) -> str:
    if node is None:
        return ""
    return f"node {node}" if isinstance(node, int) else f"{len(node)} node{'s' * (len(node) != 1)}"


def _layers(layers: list[str], limit: int = 4) -> str:
    return ",".join(layers) if len(layers) <= limit else f"{len(layers)} layers"


def _lines(total: int, done: int, unit: str) -> Update:
    start, first = time.monotonic(), done

    def update(record: Record) -> None:
        nonlocal done
        done += 1
        left = (time.monotonic() - start) / (done - first) * (total - done)
        print(
            f"{unit} {done:>{len(str(total))}}/{total}  {describe(record)}  left {clock(left)}",
            flush=True,
        )

    return update


@contextmanager
def _bar(total: int, done: int, unit: str) -> Iterator[Update]:
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
        yield lambda record: bar.update(task, advance=1, description=describe(record))
