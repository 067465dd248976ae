"""TensorBoard events: one scalar a measured number, on the iterations done so far."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from snake_jax.report.merits import Record


@contextmanager
def tensorboard(folder: str | Path, iterations: int = 0) -> Iterator[Callable[[Record], None]]:
    """Gives a function that writes one record; the file is flushed and closed at the end.

    Args:
      folder: where the event file goes.
      iterations: done before, where a run goes on from a checkpoint.
    """
    # It loads PyTorch where there is one, and no --help should wait for that.
    from tensorboardX import SummaryWriter

    done = iterations
    with SummaryWriter(str(folder)) as writer:

        def write(record: Record) -> None:
            nonlocal done
            done += record.get("iterations") or 0
            for name, value in record.items():
                # Null, names and lists have no place on a chart.
                if isinstance(value, int | float) and name != "iterations":
                    writer.add_scalar(name, float(value), done)

        yield write
