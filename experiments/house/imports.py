"""Who imports whom in the library, read from the sources."""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.house.counts import PARTS, Source, sources_of


class Imports(NamedTuple):
    """Who imports whom in the library.

    Attributes:
      rooms: folders that hold modules, and modules that lie loose at the top.
      arrows: pairs of rooms of which the first imports from the second.
      cycles: groups of rooms that import each other in a circle.
      upward: imports by a folder of one that stands right of it in the order of folders.
    """

    rooms: int
    arrows: int
    cycles: int
    upward: int


def imports_of(root: Path) -> Imports:
    """Counts the library's imports, those inside functions too.

    The order is that of tests/test_imports.py.
    """
    order = _order_of_folders(root)
    rooms: set[str] = set()
    arrows: set[tuple[str, str]] = set()
    upward = 0
    for source in sources_of(root, PARTS["library"]):
        here = _room(root, source.path)
        here_stands = order.index(_folder(here, order))
        rooms.add(here)
        for target in set(_targets(root, source)):
            there = _room(root, target)
            there_stands = order.index(_folder(there, order))
            if there != here:
                arrows.add((here, there))
            if there_stands > here_stands:
                upward += 1
    return Imports(len(rooms), len(arrows), _cycles(arrows), upward)


def _order_of_folders(root: Path) -> tuple[str, ...]:
    """`ORDER` of tests/test_imports.py, where the rule is told."""
    text = (root / "tests/test_imports.py").read_text()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ORDER":
            return ast.literal_eval(node.value)
    raise ValueError("tests/test_imports.py has no ORDER")


def _targets(root: Path, source: Source) -> Iterator[Path]:
    """The files of the library that a file imports."""
    for node in ast.walk(source.tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            stem = _stem(root, source.path, node)
            names = [f"{stem}.{alias.name}" for alias in node.names]
        for name in names:
            found = _file_of(root, name)
            if found is not None:
                yield found


def _stem(root: Path, path: Path, node: ast.ImportFrom) -> str:
    """The module that `from ... import` names, dots before it resolved."""
    if not node.level:
        return node.module or ""
    package = path.parent
    for _ in range(node.level - 1):
        package = package.parent
    stem = ".".join(package.relative_to(root).parts)
    return f"{stem}.{node.module}" if node.module else stem


def _file_of(root: Path, name: str) -> Path | None:
    """The file of a dotted name, or of the longest part of it that is one; None: not ours."""
    parts = name.split(".")
    if parts[:2] == ["snake_jax", "kernels"]:
        parts = parts[1:]  # it installs under that name
    if parts[0] not in PARTS["library"]:
        return None
    for length in range(len(parts), 0, -1):
        path = root.joinpath(*parts[:length])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.exists():
                return file
    return None


def _room(root: Path, path: Path) -> str:
    """`snake_jax/data/text`, or `snake_jax/config.py` of a module that lies loose at the top."""
    relative = path.relative_to(root)
    if relative == Path("snake_jax/__main__.py"):  # the door of the commands
        return "snake_jax/cli"
    if relative.parent == Path("snake_jax"):
        return relative.as_posix()
    return relative.parent.as_posix()


def _folder(room: str, order: Sequence[str]) -> str:
    """The name of a room's folder in the order."""
    if room == "snake_jax/__init__.py":
        return "door"
    parts = room.split("/")
    names = [name for name in parts if name in order]
    return names[0] if names else "ground"


def _cycles(arrows: set[tuple[str, str]]) -> int:
    """Groups of several rooms each of which reaches all others of its group."""
    # Where each room leads, step by step.
    reached: dict[str, set[str]] = {}
    for start in {here for here, _ in arrows}:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            here = waiting.pop()
            for first, second in arrows:
                if first == here and second not in seen:
                    seen.add(second)
                    waiting.append(second)
        reached[start] = seen

    # A room that leads to itself is in a circle with all that lead back to it.
    groups = set()
    for start, seen in reached.items():
        if start in seen:
            back = [other for other in seen if start in reached.get(other, set())]
            groups.add(frozenset(back))
    return len(groups)
