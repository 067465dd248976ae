"""TensorBoard events: one scalar a measured number, on the iterations done so far."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from snake_jax.report.runs import Record


@contextmanager
def tensorboard(folder: str | Path, iterations: int = 0) -> Iterator[Callable[[Record], None]]:
    """Gives a function that writes one record; the file is flushed and closed at the end.

    Args:
      folder: where the event file goes.
      iterations: done before, where a run goes on from a checkpoint.
    """
    from tensorboardX import (
        SummaryWriter,  # it loads PyTorch where there is one: no --help should wait
    )

    done = iterations
    with SummaryWriter(str(folder)) as writer:

        def write(record: Record) -> None:
            nonlocal done
            done += record.get("iterations") or 0
            for name, value in _scalars(record).items():
                writer.add_scalar(name, value, done)

        yield write


def _scalars(record: Record) -> dict[str, float]:
    """The numbers of a record but its step; null, names and lists have no place on a chart."""
    numbers = {
        name: value
        for name, value in record.items()
        if isinstance(value, int | float) and name != "iterations"
    }
    return {name: float(value) for name, value in numbers.items()}
