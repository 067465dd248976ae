"""Numbers as people read them. Decimal prefixes: 1 GB is 1e9 bytes."""

from typing import NamedTuple

PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
PREFIX_WORDS = {"k": "thousands", "M": "millions", "G": "billions"}
UNKNOWN = "-"  # in the place of a number in tables of text


class Scale(NamedTuple):
    """`value / factor` is in `unit`."""

    factor: float
    unit: str


def scale_for(largest: float, unit: str) -> Scale:
    """The prefix under which `largest` lies between 1 and 1000; seconds become minutes or hours."""
    if unit == "s":
        if largest >= 7200:
            return Scale(3600, "h")
        if largest >= 300:
            return Scale(60, "min")
        return Scale(1, "s")
    for factor, prefix in PREFIXES:
        if abs(largest) >= factor:
            return Scale(factor, prefix + unit)
    return Scale(1.0, unit)


def axis_label(label: str, scale: Scale) -> str:
    """The label of an axis with what its numbers are in: `bytes sent (MB)`, `tokens (millions)`."""
    words = PREFIX_WORDS.get(scale.unit, scale.unit)
    return f"{label} ({words})" if words else label


def human(value: float, unit: str = "") -> str:
    """Three significant digits with a prefix: `human(123456789, "B")` is `123 MB`.

    Counts (no unit) are printed in full.
    """
    if not unit:
        decimals = 0 if float(value).is_integer() else 2
        return f"{value:,.{decimals}f}"
    # Rounded first, so that 999,999 is 1 MB and not 1000 kB.
    rounded = float(f"{value:.3g}")
    scale = scale_for(rounded, unit)
    scaled = rounded / scale.factor
    size = abs(scaled)
    if size >= 100 or scaled == 0:
        decimals = 0
    elif size >= 10:
        decimals = 1
    else:
        decimals = 2
    return f"{scaled:.{decimals}f} {scale.unit}"


def percent(share: float) -> str:
    """`0.934` as `93.4 %`."""
    return f"{100 * share:.1f} %"


def significant(value: float) -> str:
    """Three digits and no prefix: `12.3`, `0.0120`, `1,235`."""
    rounded = float(f"{value:.3g}")
    return f"{value:,.0f}" if abs(rounded) >= 100 else f"{rounded:#.3g}"


def clock(seconds: float) -> str:
    """`95` as `1:35`, `4000` as `1:06:40`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}"


def short(name: str) -> str:
    """The end of a path or of a name on a hub: `opt-1.3b` of `facebook/opt-1.3b`.

    Where several stand with `,` between them, the end of each.
    """
    ends = [part.rstrip("/").rsplit("/", 1)[-1] for part in name.split(",")]
    return ",".join(ends)
