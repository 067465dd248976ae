"""What a compiled program sends between devices, read from its text."""

import re
from typing import NamedTuple

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.-]+) \(.*\) -> (.*) \{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(_KINDS)})(-start)?\(.*channel_id=(\d+)")
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\]")


class Sent(NamedTuple):
    """Messages of one kind, and the bytes of their results on a device. A loop's body counts once,
    as compilers do.
    """

    messages: int
    num_bytes: int


def sent(program: str) -> dict[str, Sent]:
    """What a program sends, by kind and type of its arrays: `{"all-gather s8": Sent(...)}`.

    Args:
      program: `compiled.as_text()`. A message that is written down in several places, as the TPU's
        compiler does where it overlaps one with other work, counts once.
    """
    found: dict[str, dict[str, int]] = {}
    computation, returned = "", ""
    for line in program.splitlines():
        if header := _COMPUTATION.match(line):
            computation, returned = header.groups()
        elif match := _COLLECTIVE.search(line):
            result, kind, start, channel = match.groups()
            if computation.startswith(
                "all-reduce-scatter"
            ):  # the TPU's: a sum of which it keeps its part
                result, kind = returned, "reduce-scatter"
            for dtype, count in _arrays(result, bool(start) and kind != "all-reduce"):
                by_channel = found.setdefault(f"{kind} {dtype}", {})
                by_channel.setdefault(channel, 0)
                by_channel[channel] = max(by_channel[channel], count)
    return {
        name: Sent(len(channels), sum(channels.values()))
        for name, channels in sorted(found.items())
    }


def _arrays(result: str, both: bool) -> list[tuple[str, int]]:
    """`(type, bytes)` of the arrays of a result; `both`: what began with operands, results and
    states in one tuple.
    """
    arrays = [(dtype, shape) for dtype, shape in _ARRAY.findall(result) if shape or not both]
    totals: dict[str, int] = {}
    for dtype, shape in arrays[len(arrays) // 2 if both else 0 :]:
        totals[dtype] = totals.get(dtype, 0) + _num_bytes(dtype, shape)
    return list(totals.items())


def _num_bytes(dtype: str, shape: str) -> int:
    bits = 8 if dtype == "pred" else int(dtype.lstrip("bsuf"))
    count = 1
    for size in shape.split(",") if shape else []:
        count *= int(size)
    return (count * bits + 7) // 8
