"""What a compiled program sends between devices, read from its text."""

import math
import re
from typing import NamedTuple

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.-]+) \(.*\) -> (.*) \{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(_KINDS)})(-start)?\(.*channel_id=(\d+)")
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\]")


class Collective(NamedTuple):
    """Messages of one kind, a loop's body counted once, as compilers do.

    Attributes:
      messages: how many.
      num_bytes: of their results on a device.
    """

    messages: int
    num_bytes: int


def sent(program: str) -> dict[str, Collective]:
    """What a program sends, by kind and type of its arrays: `{"all-gather s8": Collective(...)}`.

    Args:
      program: `compiled.as_text()`. A message that is written down in several places, as the TPU's
        compiler does where it overlaps one with other work, counts once.
    """
    # Bytes by kind and type, then by channel: a message has one, wherever it is written down.
    found: dict[str, dict[str, int]] = {}
    computation, returned = "", ""
    for line in program.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            computation, returned = header.groups()
            continue
        match = _COLLECTIVE.search(line)
        if not match:
            continue
        result, kind, start, channel = match.groups()

        # The TPU's compiler writes it as a sum in a computation that keeps its part of it.
        if computation.startswith("all-reduce-scatter"):
            result, kind = returned, "reduce-scatter"
        begun = bool(start) and kind != "all-reduce"
        for dtype, num_bytes in _arrays(result, begun).items():
            by_channel = found.setdefault(f"{kind} {dtype}", {})
            by_channel[channel] = max(by_channel.get(channel, 0), num_bytes)

    told = {}
    for name in sorted(found):
        by_channel = found[name]
        told[name] = Collective(len(by_channel), sum(by_channel.values()))
    return told


def _arrays(result: str, begun: bool) -> dict[str, int]:
    """Bytes of the arrays of a result, by type.

    Args:
      result: as the program writes it.
      begun: whether it is that of a message's start, which holds operands, results and states in
        one tuple; states are scalars.
    """
    arrays = _ARRAY.findall(result)
    if begun:
        # Operands first, then as many results.
        arrays = [(dtype, shape) for dtype, shape in arrays if shape]
        operands = len(arrays) // 2
        arrays = arrays[operands:]
    totals: dict[str, int] = {}
    for dtype, shape in arrays:
        totals[dtype] = totals.get(dtype, 0) + _num_bytes(dtype, shape)
    return totals


def _num_bytes(dtype: str, shape: str) -> int:
    """Of an array of a type such as `bf16` and a shape such as `8,128`."""
    # Names of types end in their bits, but for that of truth values, which take a byte.
    bits = 8 if dtype == "pred" else int(dtype.lstrip("bsuf"))
    sizes = shape.split(",") if shape else []
    count = math.prod(map(int, sizes))
    # Types of 4 bits are packed; a byte that is not full counts.
    return -(-count * bits // 8)
