"""Numbers of documents and the committed files that they are from.

A paragraph or table of a document is followed by where its numbers are from:

    <!-- numbers: experiments/results/demo/runs.jsonl.gz
    28.7: 100 * (1 - total("snake", "train_flops") / total("fedavg", "train_flops"))
    1.5, 2, 2.5: series("value", method="snake")
    set: 0.9, 2.0
    -->

Each line is numbers as they are printed, in their order, and what they are rounded from: an
expression, which gives as many numbers, one each, or others, of which each printed one must be one.
Of `all:` they are all the numbers of the block that are not set. `set:` names those that are no
measurement but a setting, a definition or the words of a paper. Expressions know `d`, what the file
holds, and the functions of `Known`.
"""

import json
import re
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from experiments.reproduction import kept, verdict

ROOT = Path(__file__).parents[1]
COMMENT = re.compile(r"<!-- numbers:[ ]*(\S*)\n(.*?)-->", re.DOTALL)
# What other tests hold to files: pages that a program writes between marks.
WRITTEN = re.compile(r"<!-- (.+?): begin -->.*?<!-- \1: end -->", re.DOTALL)
CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\([^)]*\)|https?://\S+|arXiv \d+\.\d+")
NUMBER = re.compile(r"(?<![\w.,])-?\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?(?![\w]|\.\d|,\d)")
# After a whole number these say that something was measured.
UNIT = re.compile(
    r"\s?(?:%|(?:m|µ)?s\b|seconds|minutes|hours|[kMGT]i?B\b|[GT]?FLOPs?\b|[GT]FLOP/s|points|images/s"
    r"|tokens/s|times\b)"
)

ASKED = (
    "at",
    "rows",
    "row",
    "series",
    "mean",
    "geometric",
    "chance",
    "value",
    "total",
    "last",
    "share",
    "gib",
    "every",
)


class Block(NamedTuple):
    """A paragraph, list or table with the comments below it.

    Attributes:
      text: without code and links.
      sources: (file, lines) of each comment.
    """

    text: str
    sources: tuple[tuple[str, str], ...]


class Measured(NamedTuple):
    """A line of a comment: numbers as printed, and the file and expression they are of."""

    numbers: tuple[str, ...]
    file: str
    expression: str


class Known(NamedTuple):
    """A file that numbers are from, and what expressions may ask of it."""

    content: Any

    def at(self, path: str) -> Any:
        """What lies at `rows/3/value`."""
        found = self.content
        for part in path.split("/"):
            found = found[int(part)] if isinstance(found, list) else found[part]
        return found

    def rows(self, **wanted: Any) -> list[Any]:
        """Those of `rows` of which all that is asked for is so."""
        found = []
        for row in self.content["rows"]:
            if all(row.get(name) == value for name, value in wanted.items()):
                found.append(row)
        assert found, f"no row with {wanted}"
        return found

    def row(self, **wanted: Any) -> Any:
        """The only one of these."""
        (found,) = self.rows(**wanted)
        return found

    def series(self, key: str, **wanted: Any) -> list[Any]:
        """One number of all of them, in order."""
        return [row[key] for row in self.rows(**wanted)]

    def mean(self, key: str, **wanted: Any) -> float:
        """Of that number, over seeds."""
        return statistics.mean(self.series(key, **wanted))

    def geometric(self, key: str, **wanted: Any) -> float:
        """Its geometric mean over seeds, as perplexities have one."""
        return statistics.geometric_mean(self.series(key, **wanted))

    def chance(self, key: str, by: str, one: str, other: str, **wanted: Any) -> float | None:
        """The paired test's p of that number, between two values of another, over seeds."""
        runs, rivals = self.rows(**{by: one}, **wanted), self.rows(**{by: other}, **wanted)
        return verdict.paired(verdict.differences(runs, rivals, key)).p

    def value(self, subject: str, name: str) -> float:
        """A benchmark's number."""
        return self.row(subject=subject, name=name)["value"]

    def total(self, run: str, key: str) -> float:
        """The sum over the lines of metrics of a kept run."""
        return sum(line.get(key) or 0 for line in self.content[run].metrics)

    def last(self, run: str, key: str) -> Any:
        """Of the last line that has it."""
        return [line[key] for line in self.content[run].metrics if line.get(key) is not None][-1]

    def share(self, cached: bool, cycle: int, mode: str = "client_server", nodes: int = 9) -> float:
        """Of the bytes of a round of FedAvg those of Snake's cycle, in accounting.json."""
        snake = {"algorithm": "snake", "cached": cached, "mode": mode, "nodes": nodes}
        fedavg = {"algorithm": "fedavg", "cached": True, "mode": "client_server", "nodes": 9}
        both = []
        for wanted in (snake, fedavg):
            wanted["frozen_dtype"] = "float32"
            (way,) = [way for way in self.content["traffic"] if wanted.items() <= way.items()]
            both.append(sum(up + down for _, up, down in way["cycles"][cycle]))
        return both[0] / both[1]

    def gib(self, **wanted: Any) -> list[float]:
        """Memory of a profile's row: what it holds, by kind and in all, temporaries, peak."""
        held = ("frozen", "trained", "gradients", "optimizer", "state")
        reserved = ("compiled_temporaries", "compiled_peak")
        row = self.row(**wanted)
        found = []
        for name in (*held, *reserved):
            if f"{name}_bytes" in row:
                found.append(row[f"{name}_bytes"] / 2**30)
        return found

    def every(self, *names: str) -> list[float]:
        """All numbers of these names, however deep they lie."""
        return list(_leaves(self.content, set(names)))


def _leaves(content: Any, names: set[str]) -> Any:
    if isinstance(content, dict):
        for name, value in content.items():
            if name in names and isinstance(value, int | float):
                yield value
            else:
                yield from _leaves(value, names)
    elif isinstance(content, list):
        for value in content:
            yield from _leaves(value, names)


def opened(file: Path) -> Any:
    """What a file holds: JSON, a list of lines, or runs by name."""
    if file.name == kept.FILE:
        return kept.read_runs(file)
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text().splitlines()]
    return json.loads(file.read_text())


def blocks(page: str) -> list[Block]:
    """Those of a page, in order; headings and what a program wrote are none."""
    text = WRITTEN.sub("", page)
    found: list[Block] = []
    for part in re.split(r"\n\s*\n(?![^<]*-->)", _joined(text)):
        sources = tuple((match[1], match[2]) for match in COMMENT.finditer(part))
        body = COMMENT.sub("", part)
        plain = LINK.sub("]", CODE.sub(" ", body)).strip()
        if plain.startswith("#"):
            plain = ""
        if not plain and sources and found:
            found[-1] = found[-1]._replace(sources=found[-1].sources + sources)
        elif plain:
            found.append(Block(plain, sources))
    return found


def _joined(text: str) -> str:
    """With code out of the way, whose blank lines end no block."""
    return CODE.sub(lambda match: " " if match[0].startswith("```") else match[0], text)


def printed(block: Block) -> list[str]:
    """The numbers of a block that a reader takes for measured: decimals, and those with units."""
    found = []
    for match in NUMBER.finditer(block.text):
        decimal = "." in match[0] or "e" in match[0]
        if decimal or UNIT.match(block.text, match.end()):
            found.append(match[0])
    return found


def declared(block: Block) -> tuple[list[Measured], set[str]]:
    """The lines of what is measured, and the numbers that are set."""
    measured = []
    given: set[str] = set()
    for file, lines in block.sources:
        for line in filter(None, map(str.strip, lines.splitlines())):
            words, _, expression = line.partition(":")
            if words == "set":
                given.update(expression.replace(", ", " ").split())
            else:
                numbers = words.replace(", ", " ").split()
                measured.append(Measured(tuple(numbers), file, expression.strip()))

    # All that are printed and not set, known after the last line.
    every = tuple(number for number in printed(block) if number not in given)
    for place, line in enumerate(measured):
        if line.numbers == ("all",):
            measured[place] = line._replace(numbers=every)
    return measured, given


def wrong(block: Block, read: Callable[[str], Any]) -> list[str]:
    """What is not as it should be of a block's declared numbers."""
    measured, given = declared(block)
    there = NUMBER.findall(block.text)
    lines = [f"{number}: not in the text" for number in sorted(given - set(there))]
    for line in measured:
        if not _in_order(line.numbers, there):
            lines.append(f"{', '.join(line.numbers)}: not in the text, in this order")
        known = Known(read(line.file))
        names = {name: getattr(known, name) for name in ASKED} | {"d": known.content}
        values = eval(line.expression, names)
        if not isinstance(values, Sequence):
            values = [values]
        # As many values as numbers: one each, in their order. Else any of them.
        each = len(values) == len(line.numbers)
        for place, number in enumerate(line.numbers):
            allowed = values[place : place + 1] if each else values
            if not any(is_rounded(number, value) for value in allowed):
                lines.append(f"{number}: {line.file} has {allowed}")
    return lines


def _in_order(numbers: Sequence[str], there: Sequence[str]) -> bool:
    """Whether a text has these numbers, with others between them."""
    left = iter(there)
    return all(number in left for number in numbers)


def undeclared(block: Block) -> list[str]:
    """The numbers of a block that are from nowhere: each is declared as often as it is printed."""
    measured, given = declared(block)
    left = Counter(number for line in measured for number in line.numbers)
    found = []
    for number in printed(block):
        if number in given:
            continue
        if not left[number]:
            found.append(number)
        left[number] -= 1
    return found


def is_rounded(number: str, value: float) -> bool:
    """Whether a printed number is a value with as many digits."""
    exact = Decimal(number.replace(",", ""))
    _, _, exponent = exact.as_tuple()
    assert isinstance(exponent, int)
    half = Decimal(10) ** exponent / 2
    return abs(Decimal(repr(float(value))) - exact) <= half * (1 + Decimal("1e-9"))
