"""Sizes, density and names of one part of the house.

Each number is counted as it was when the house was planned, so that the field's numbers of that day
stand beside it.
"""

import ast
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

PARTS = {"library": ("snake_jax", "kernels"), "experiments": ("experiments",)}
"""Product code alone: the top folders of each part."""
LONG_FUNCTION = 60
MANY_PARAMETERS = 8
LONG_LINE = 100


class Spread(NamedTuple):
    """Of several counts: the middle one, the one that nine in ten do not exceed, the greatest."""

    median: float
    p90: float
    greatest: int


class House(NamedTuple):
    """What one part of the house is made of.

    Attributes:
      lines: of all files, blank ones too.
      files: Python files that are not empty.
      file_lines: of a file.
      function_lines: of a function or method, its docstring too.
      long_functions_percent: functions of more than `LONG_FUNCTION` lines.
      parameters_mean: of a function, `self` and `cls` not counted.
      parameters: likewise, spread.
      many_parameters: functions with more than `MANY_PARAMETERS`.
      nodes_a_line: nodes of the syntax tree over lines.
      comprehensions: in a thousand lines.
      nested_comprehensions: of these, those that hold another or have several `for`.
      lambdas: in a thousand lines that are not blank.
      long_lines_percent: lines of more than `LONG_LINE` characters.
      comment_lines_percent: of the lines that are not blank those that hold nothing but a comment.
      documented_percent: functions and methods without a leading underscore that have a docstring.
      typed_percent: those whose parameters and result all have a type.
      repeated_classes_percent: names of public classes that more than one module defines.
      repeated_functions_percent: likewise of functions.
      loose_modules: that lie directly in the first top folder, its `__init__` too.
      packages: folders with modules directly below it.
    """

    lines: int
    files: int
    file_lines: Spread
    function_lines: Spread
    long_functions_percent: float
    parameters_mean: float
    parameters: Spread
    many_parameters: int
    nodes_a_line: float
    comprehensions: float
    nested_comprehensions: float
    lambdas: float
    long_lines_percent: float
    comment_lines_percent: float
    documented_percent: float
    typed_percent: float
    repeated_classes_percent: float
    repeated_functions_percent: float
    loose_modules: int
    packages: int


class Source(NamedTuple):
    """One Python file."""

    path: Path
    lines: list[str]
    tree: ast.Module


Kind = Literal["class", "function"]
Function = ast.FunctionDef | ast.AsyncFunctionDef
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


def measure(root: Path, tops: Sequence[str]) -> House:
    """Counts the files below `root/top` for each top folder."""
    sources = list(sources_of(root, tops))
    functions: list[Function] = []
    lines: list[str] = []
    for source in sources:
        functions += _functions(source)
        lines += source.lines
    filled = [line for line in lines if line.strip()]

    # Sizes, of functions with their docstrings.
    file_lines = [len(source.lines) for source in sources]
    function_lines = [node.end_lineno - node.lineno + 1 for node in functions if node.end_lineno]
    long_functions = sum(count > LONG_FUNCTION for count in function_lines)
    parameters = [len(_all_arguments(node)) for node in functions]

    # Density: what a reader meets on a line.
    nodes = 0
    comprehensions = 0
    nested = 0
    lambdas = 0
    for source in sources:
        for node in ast.walk(source.tree):
            nodes += 1
            if isinstance(node, ast.Lambda):
                lambdas += 1
            if isinstance(node, Comprehension):
                comprehensions += 1
                if _is_nested(node):
                    nested += 1
    long_lines = sum(len(line) > LONG_LINE for line in lines)
    comments = sum(line.lstrip().startswith("#") for line in filled)

    # What is promised: functions and methods that others may call.
    public = [node for node in functions if not node.name.startswith("_")]
    documented = sum(ast.get_docstring(node) is not None for node in public)
    typed = sum(_is_typed(node) for node in public)
    loose, packages = _top(root / tops[0])
    return House(
        lines=len(lines),
        files=len(sources),
        file_lines=spread(file_lines),
        function_lines=spread(function_lines),
        long_functions_percent=_percent(long_functions, len(functions)),
        parameters_mean=statistics.fmean(parameters),
        parameters=spread(parameters),
        many_parameters=sum(count > MANY_PARAMETERS for count in parameters),
        nodes_a_line=nodes / len(lines),
        comprehensions=1000 * comprehensions / len(lines),
        nested_comprehensions=1000 * nested / len(lines),
        lambdas=1000 * lambdas / len(filled),
        long_lines_percent=_percent(long_lines, len(lines)),
        comment_lines_percent=_percent(comments, len(filled)),
        documented_percent=_percent(documented, len(public)),
        typed_percent=_percent(typed, len(public)),
        repeated_classes_percent=_repeated(sources, "class"),
        repeated_functions_percent=_repeated(sources, "function"),
        loose_modules=loose,
        packages=packages,
    )


def spread(counts: Sequence[int]) -> Spread:
    """Of at least one count; the 90th percentile is the least count that nine in ten reach."""
    ordered = sorted(counts)
    nine_in_ten = math.ceil(9 * len(ordered) / 10)
    return Spread(statistics.median(ordered), ordered[nine_in_ten - 1], ordered[-1])


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0


def sources_of(root: Path, tops: Sequence[str]) -> Iterator[Source]:
    """Every Python file below the top folders that is not empty."""
    for top in tops:
        for path in sorted((root / top).rglob("*.py")):
            text = path.read_text()
            if text.strip():
                yield Source(path, text.splitlines(), ast.parse(text))


def _functions(source: Source) -> Iterator[Function]:
    """All functions of a file: methods and those inside others too, lambdas not."""
    for node in ast.walk(source.tree):
        if isinstance(node, Function):
            yield node


def _all_arguments(node: Function) -> list[ast.arg]:
    """Its parameters without `self` and `cls`."""
    given = node.args
    found = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    for starred in (given.vararg, given.kwarg):
        if starred is not None:
            found.append(starred)
    return [argument for argument in found if argument.arg not in ("self", "cls")]


def _is_typed(node: Function) -> bool:
    annotations = [argument.annotation for argument in _all_arguments(node)]
    return None not in (*annotations, node.returns)


def _is_nested(node: Comprehension) -> bool:
    """Whether it has several `for`, or another comprehension inside."""
    inside = (other for other in ast.walk(node) if other is not node)
    return len(node.generators) > 1 or any(isinstance(other, Comprehension) for other in inside)


def _public(source: Source, kind: Kind) -> set[str]:
    """Names of definitions of a kind at the top of a file that do not begin with an underscore."""
    names = set()
    for node in source.tree.body:
        if isinstance(node, ast.ClassDef) and kind == "class" and not node.name.startswith("_"):
            names.add(node.name)
        if isinstance(node, Function) and kind == "function" and not node.name.startswith("_"):
            names.add(node.name)
    return names


def _repeated(sources: Sequence[Source], kind: Kind) -> float:
    """Of the names of public definitions the share that more than one file defines, in percent."""
    count: Counter[str] = Counter()
    for source in sources:
        count.update(_public(source, kind))
    repeated = [name for name, times in count.items() if times > 1]
    return _percent(len(repeated), len(count))


def _top(folder: Path) -> tuple[int, int]:
    """Modules directly in a folder, and folders with modules directly below it."""
    loose = len(list(folder.glob("*.py")))
    packages = {path.parent for path in folder.glob("*/*.py")}
    return loose, len(packages)
