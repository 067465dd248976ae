"""Imports run one way: a module may import its own level or a lower one. Read from the source, nothing is imported."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEVELS = (
    {"errors", "config"},
    {"layers", "kernels", "targets", "processes", "collectives"},
    {"data", "lora", "models", "per_device", "quantization", "sharding", "stack", "text"},
    {"language_step", "steps", "split", "optimizers", "schedule", "nodes"},
    {"executor", "network", "accounting", "language_costs", "chain", "assignment", "clock"},
    {"algorithms"},
    {
        "setup",
        "classification",
        "tuning",
        "tuned",
        "costs",
        "runner",
        "records",
        "checkpoint",
        "report",
        "storage",
        "workdir",
        "language_profile",
        "profiling",
    },
    {"snake_jax"},  # the package's own __init__, which may re-export anything
    {"experiments"},
)
LEVEL_OF = {unit: level for level, units in enumerate(LEVELS) for unit in units}
FILE_MODULES = {"io", "json", "os", "orbax", "pathlib", "pickle", "shutil", "tempfile"}


def module_name(path: str) -> str:
    """`kernels/conv/bench.py` -> `snake_jax.kernels.conv.bench`."""
    name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return f"snake_jax.{name}" if name.split(".")[0] == "kernels" else name


def unit_of(module: str) -> str:
    """The name that has a level: the part below snake_jax, or experiments (which kernel benchmarks are too)."""
    parts = module.split(".")
    if parts[0] == "snake_jax" and len(parts) > 1:
        return "experiments" if parts[1] == "kernels" and parts[-1] == "bench" else parts[1]
    return parts[0]


def imported(path: str, source: str) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import in the file, also inside functions and TYPE_CHECKING."""
    package = module_name(path).split(".") if path.endswith("__init__.py") else module_name(path).split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *(node.module.split(".") if node.module else [])])
            # `from snake_jax import steps` names a module in its alias; `from snake_jax.steps import train` does not.
            bare = stem in ("snake_jax", "experiments")
            yield from ((node.lineno, f"{stem}.{alias.name}" if bare else stem) for alias in node.names)


def complaint(path: str, target: str) -> str:
    """Why the file at `path` may not import `target`; empty where it may."""
    unit, other = unit_of(module_name(path)), unit_of(target)
    if target.split(".")[0] == "kernels":
        return "import it as snake_jax.kernels"
    if unit == "algorithms" and other in FILE_MODULES:
        return "algorithms know no files"
    if target.split(".")[0] not in ("snake_jax", "experiments"):
        return ""
    # `from snake_jax import Something` takes the name from the package's __init__.
    level = LEVEL_OF.get(other, LEVEL_OF["snake_jax"])
    return f"{unit} is below {other}" if level > LEVEL_OF[unit] else ""


def violations(files: dict[str, str]) -> list[str]:
    """One line a forbidden import or unplaced module, for a map from path to source text."""
    unplaced = sorted({unit_of(module_name(path)) for path in files} - set(LEVEL_OF))
    found = [f"{unit}: place this new module in LEVELS of tests/test_imports.py" for unit in unplaced]
    for path, source in sorted(files.items()):
        if unit_of(module_name(path)) in LEVEL_OF:
            pairs = dict.fromkeys(imported(path, source))
            found += [f"{path}:{line} imports {name}: {why}" for line, name in pairs if (why := complaint(path, name))]
    return found


def our_files() -> dict[str, str]:
    paths = [path for folder in ("snake_jax", "kernels", "experiments") for path in (ROOT / folder).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


def test_imports_run_one_way():
    files = our_files()
    assert {"snake_jax/errors.py", "kernels/__init__.py", "experiments/compare.py"} <= set(files)
    assert violations(files) == []


@pytest.mark.parametrize(
    ("path", "source", "reason"),
    [
        ("snake_jax/models/vgg.py", "from snake_jax.steps import local_step", "models is below steps"),
        ("snake_jax/models/vgg.py", "def f():\n    from snake_jax import steps", "models is below steps"),
        ("snake_jax/models/vgg.py", "from ..algorithms import snake", "models is below algorithms"),
        ("snake_jax/models/__init__.py", "from .. import runner", "models is below runner"),
        ("snake_jax/data/source.py", "from snake_jax import VERSION", "data is below VERSION"),
        ("snake_jax/runner.py", "import experiments.classify", "runner is below experiments"),
        ("snake_jax/algorithms/snake.py", "from snake_jax.runner import run", "algorithms is below runner"),
        ("snake_jax/algorithms/snake.py", "import orbax.checkpoint as ocp", "algorithms know no files"),
        ("snake_jax/algorithms/snake.py", "from os import path", "algorithms know no files"),
        ("kernels/conv/reference.py", "from snake_jax import models", "kernels is below models"),
        ("snake_jax/models/vgg.py", "from kernels.conv import conv", "import it as snake_jax.kernels"),
        ("snake_jax/novelty.py", "", "place this new module"),
    ],
)
def test_a_planted_violation_is_caught(path, source, reason):
    (found,) = violations({path: source})
    assert reason in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("snake_jax/models/vgg.py", "from snake_jax.kernels.conv import conv\nfrom snake_jax import errors"),
        ("snake_jax/algorithms/snake.py", "from . import base\nfrom ..network import send\nimport jax"),
        ("kernels/conv/bench.py", "from snake_jax import models, steps"),
        ("experiments/classify.py", "import json\nfrom snake_jax import runner, VERSION"),
    ],
)
def test_an_allowed_import_passes(path, source):
    assert violations({path: source}) == []
