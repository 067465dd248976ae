"""Every number of a document is in a committed file, as rounded, or is said to be a setting."""

import functools
from pathlib import Path

import pytest

from tests.document_numbers import (
    ROOT,
    Block,
    blocks,
    is_rounded,
    opened,
    printed,
    undeclared,
    wrong,
)

# Of these pages every decimal number and every one with a unit is declared.
COVERED = (
    "README.md",
    "docs/accounting.md",
    "docs/finetuning.md",
    "docs/node_management.md",
    "docs/performance.md",
    "docs/reproduction.md",
    "docs/scct.md",
)
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))


@functools.cache
def read(file: str):
    return opened(ROOT / file)


@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_numbers_are_those_of_the_files_that_are_named(page):
    found = []
    for block in blocks((ROOT / page).read_text()):
        for line in wrong(block, read):
            found.append(f"{block.text[:60]!r}: {line}")
    assert found == []


@pytest.mark.parametrize("page", COVERED)
def test_every_number_is_from_somewhere(page):
    found = []
    for block in blocks((ROOT / page).read_text()):
        for number in undeclared(block):
            found.append(f"{block.text[:60]!r}: {number}")
    assert found == []


PAGE = """# Title of 9.9

A run took `--rate=0.5` to 28.7 % in 12 s, with 0.9 set, on 3 nodes ([file](a/1.5.json)).
<!-- numbers: results.json
28.7: 100 * row(name="snake")["share"]
12: [at("rows/1/seconds"), 5]
set: 0.9
-->

| a | b |
| --- | --: |
| x | 4.50 |

<!-- numbers: results.json
4.50: every("share", "seconds")
-->

Nobody knows why 7.25.
"""
CONTENT = {"rows": [{"name": "snake", "share": 0.2871}, {"name": "fl", "seconds": 12.4}]}


def test_a_page_is_blocks_with_their_sources():
    first, second, third = blocks(PAGE)
    assert printed(first) == ["28.7", "12", "0.9"]
    assert wrong(first, lambda file: CONTENT) == []
    assert undeclared(first) == []
    assert printed(second) == ["4.50"]
    assert wrong(second, lambda file: CONTENT) == ["4.50: results.json has [0.2871, 12.4]"]
    assert undeclared(third) == ["7.25"]


def test_a_number_that_is_not_in_the_text_or_is_another_is_told():
    block = Block("It is 28.7 %.", (("f", '28.7: d["share"]\n3.1: 3.1\nset: 0.9\n'),))
    assert wrong(block, lambda file: {"share": 28.8}) == [
        "0.9: not in the text",
        "28.7: f has [28.8]",
        "3.1: not in the text, in this order",
    ]


def test_as_many_values_as_numbers_are_one_each_in_their_order():
    text = "First 1.5, then 2.5."
    assert wrong(Block(text, (("f", "1.5, 2.5: d\n"),)), lambda file: [1.5, 2.5]) == []
    assert wrong(Block(text, (("f", "1.5, 2.5: d\n"),)), lambda file: [2.5, 1.5]) != []
    assert wrong(Block(text, (("f", "1.5, 2.5: d\n"),)), lambda file: [2.5, 1.5, 9]) == []
    assert wrong(Block(text, (("f", "2.5, 1.5: d\n"),)), lambda file: [2.5, 1.5]) != []


def test_all_are_the_numbers_that_are_not_set():
    block = Block("From 0.9 to 1.5 and 2.5, 7 in all.", (("f", "all: d\nset: 0.9\n"),))
    assert wrong(block, lambda file: [1.5, 2.5]) == []
    assert undeclared(block) == []
    assert wrong(block, lambda file: [2.5, 1.5]) != []


def test_a_number_is_declared_as_often_as_it_is_printed():
    block = Block("Both 1.5 and 1.5.", (("f", "1.5: 1.5\n"),))
    assert undeclared(block) == ["1.5"]


@pytest.mark.parametrize(
    ("number", "value", "expected"),
    [
        ("28.7", 28.7499, True),
        ("28.7", 28.751, False),
        ("1,234", 1234.4, True),
        ("9.2e-07", 9.24e-7, True),
        ("9.2e-07", 9.3e-7, False),
        ("5", 5.5, True),
        ("5.0", 5.06, False),
    ],
)
def test_rounding_is_to_the_digits_that_are_printed(number, value, expected):
    assert is_rounded(number, value) is expected


def test_what_a_program_writes_is_held_by_other_tests():
    text = "Before 1.5.\n\n<!-- bench step: begin -->\n9.9 s\n<!-- bench step: end -->\n\nAfter."
    assert [block.text for block in blocks(text)] == ["Before 1.5.", "After."]


def test_every_named_file_is_committed():
    for page in ("README.md", *PAGES):
        for block in blocks((ROOT / page).read_text()):
            for file, lines in block.sources:
                measured = [
                    line for line in lines.splitlines() if line and not line.startswith("set:")
                ]
                if measured:
                    assert (ROOT / file).is_file(), f"{page}: {file}"
                    assert Path(file).parts[:2] == ("experiments", "results")
