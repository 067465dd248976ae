"""What the kernels' benchmark tables have in common: machine, peaks, what was timed and what was
compiled.
"""

from collections.abc import Callable, Sequence
from typing import Any

Table = Callable[[Sequence[dict[str, Any]]], list[str]]


def report(result: dict[str, Any], timed: Table, compiled: Table) -> str:
    """A result as text.

    Args:
      result: with `machine`, `peaks`, the rows `timed` and `compiled`, and `not_compiled`, the
        reason if none were.
      timed: its rows as lines.
      compiled: likewise.
    """
    lines = [f"{name}: {value}" for name, value in result["machine"].items()]
    peaks = result["peaks"]
    lines.append(
        f"measured here: {peaks['flops_s'] / 1e9:.0f} GFLOP/s, {peaks['bytes_s'] / 1e9:.1f} GB/s"
    )
    rows = result["compiled"]
    below = compiled(rows) if rows else [f"not compiled for TPUs: {result['not_compiled']}"]
    return "\n".join([*lines, "", *timed(result["timed"]), "", *below])
