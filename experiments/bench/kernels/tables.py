"""What the kernels' benchmark tables share: machine, peaks, what was timed and compiled."""

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
    lines.append("")
    lines += timed(result["timed"])
    lines.append("")
    if result["compiled"]:
        lines += compiled(result["compiled"])
    else:
        lines.append(f"not compiled for TPUs: {result['not_compiled']}")
    return "\n".join(lines)
