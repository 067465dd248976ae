"""Imports run one way, by folder: a folder imports only what stands left of it. Read from the
sources.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The rule of docs/design.md. `ground` are the modules directly in snake_jax/, `door` is its
# __init__.
ORDER = (
    "ground",
    "kernels",
    "data",
    "models",
    "training",
    "nodes",
    "algorithms",
    "costs",
    "engines",
    "runs",
    "report",
    "profiling",
    "scct",
    "services",
    "door",
    "cli",
    "experiments",
)
# Folders that do not see each other, though they stand in one.
APART = ({"data.images", "data.text"},)
FILE_MODULES = {"io", "json", "os", "orbax", "pathlib", "pickle", "shutil", "tempfile"}
NOT_MIRRORED = {"golden"}  # files that tests read


def module_name(path: str) -> str:
    """`kernels/conv/matmul.py` -> `snake_jax.kernels.conv.matmul`."""
    name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return f"snake_jax.{name}" if name.split(".")[0] == "kernels" else name


def folder_of(module: str) -> str:
    """The name in ORDER of the folder that a module, or a name imported from one, lies in."""
    parts = module.split(".")
    if parts[0] != "snake_jax":
        return parts[0]
    if len(parts) == 1:
        return "door"
    if parts[1] == "__main__":
        return "cli"  # `python -m snake_jax` is the program
    if (ROOT / "snake_jax" / f"{parts[1]}.py").exists():
        return "ground"
    return parts[1] if parts[1] in ORDER else "door" if parts[1][:1].isupper() else parts[1]


def imported(path: str, source: str) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import in the file, also inside functions and
    TYPE_CHECKING.
    """
    here = module_name(path).split(".")
    package = here if path.endswith("__init__.py") else here[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{stem}.{alias.name}"


def complaint(path: str, target: str) -> str:
    """Why the file at `path` may not import `target`; empty where it may."""
    module = module_name(path)
    folder, other = folder_of(module), folder_of(target)
    if target.split(".")[0] == "kernels":
        return "import it as snake_jax.kernels"
    if folder == "algorithms" and other in FILE_MODULES:
        return "algorithms know no files"
    if target.split(".")[0] not in ("snake_jax", "experiments"):
        return ""
    if other not in ORDER:
        return f"there is no folder {other}"
    for apart in APART:
        sides = {side for side in apart for name in (module, target) if f".{side}." in f"{name}."}
        if len(sides) > 1:
            return f"{' and '.join(sorted(sides))} do not see each other"
    return f"{folder} stands left of {other}" if ORDER.index(other) > ORDER.index(folder) else ""


def violations(files: dict[str, str]) -> list[str]:
    """One line a forbidden import or unplaced folder, for a map from path to source text."""
    found = []
    for path, source in sorted(files.items()):
        if folder_of(module_name(path)) not in ORDER:
            found.append(f"{path}: give its folder a place in ORDER of tests/test_imports.py")
            continue
        for line, name in dict.fromkeys(imported(path, source)):
            if why := complaint(path, name):
                found.append(f"{path}:{line} imports {name}: {why}")
    return found


def our_files() -> dict[str, str]:
    """`{path: source}` of all that is not a test."""
    paths = [
        p for top in ("snake_jax", "kernels", "experiments") for p in (ROOT / top).rglob("*.py")
    ]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


def test_imports_run_one_way():
    files = our_files()
    wanted = {"snake_jax/errors.py", "kernels/__init__.py", "experiments/compare.py"}
    assert wanted <= set(files)
    assert violations(files) == []


def test_tests_lie_in_folders_of_the_same_names():
    folders = {
        path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")
    }
    missing = []
    for folder in folders:
        places = (ROOT / "snake_jax" / folder, ROOT / folder)
        if not any(place.is_dir() for place in places):
            missing.append(folder.as_posix())
    assert len(folders) > 5
    assert missing == []


@pytest.mark.parametrize(
    ("path", "source", "reason"),
    [
        (
            "snake_jax/models/vgg.py",
            "from snake_jax.training.stack import run",
            "models stands left of training",
        ),
        (
            "snake_jax/models/vgg.py",
            "def f():\n    from snake_jax import training",
            "models stands left of training",
        ),
        ("snake_jax/models/vgg.py", "from ..algorithms import snake", "left of algorithms"),
        ("snake_jax/models/__init__.py", "from .. import runs", "models stands left of runs"),
        ("snake_jax/data/source.py", "from snake_jax import Job", "data stands left of door"),
        (
            "snake_jax/runs/loop.py",
            "import experiments.classify",
            "runs stands left of experiments",
        ),
        ("snake_jax/algorithms/snake.py", "from snake_jax.runs import loop", "left of runs"),
        ("snake_jax/algorithms/snake.py", "import orbax.checkpoint as ocp", "know no files"),
        ("snake_jax/algorithms/snake.py", "from os import path", "algorithms know no files"),
        ("kernels/conv/reference.py", "from snake_jax import models", "left of models"),
        (
            "snake_jax/models/vgg.py",
            "from kernels.conv import conv",
            "import it as snake_jax.kernels",
        ),
        ("snake_jax/novelty/thing.py", "", "give its folder a place"),
        (
            "snake_jax/data/text/a.py",
            "from snake_jax.data.images import npz",
            "do not see each other",
        ),
        (
            "snake_jax/errors.py",
            "from snake_jax.models import vision",
            "ground stands left of models",
        ),
    ],
)
def test_a_planted_violation_is_caught(path, source, reason):
    (found,) = violations({path: source})
    assert reason in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "snake_jax/models/vgg.py",
            "from snake_jax.kernels.conv import conv\nfrom snake_jax import errors",
        ),
        (
            "snake_jax/algorithms/snake.py",
            "from . import base\nfrom ..nodes.ledger import send\nimport jax",
        ),
        ("snake_jax/cli/classify.py", "import json\nfrom snake_jax.runs import loop, VERSION"),
        ("snake_jax/data/text/a.py", "from snake_jax.data.partition import iid"),
    ],
)
def test_an_allowed_import_passes(path, source):
    assert violations({path: source}) == []
