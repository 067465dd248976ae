"""The documentation's code runs, and its links lead somewhere."""

import re
from pathlib import Path

import jax
import pytest

from snake_jax.cli import main
from snake_jax.cli.commands import COMMANDS

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")


def blocks(page: str, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall((ROOT / page).read_text()) if kind == language]


@pytest.fixture
def _quick_compilation():
    """The compiler without its optimisations: this is about whether code runs."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.usefixtures("_quick_compilation")
def test_the_custom_models_page_runs_and_prints_what_it_says(capsys):
    namespace = {"__name__": "custom_models"}
    python = blocks("docs/custom_models.md", "python")
    assert len(python) >= 5
    for block in python:
        exec(compile(block, "docs/custom_models.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert 0 <= namespace["accuracy"] <= 1
    assert "node 0 trained stem, block1_1, head" in printed
    assert "node 1 trained stem, block2_1, head" in printed
    for text in blocks("docs/custom_models.md", "text"):
        assert text in printed
    assert len(namespace["resnet18"].layer_names) == 10


@pytest.mark.parametrize(
    "page",
    sorted(
        path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("docs/*.md"), *ROOT.glob("*.md"))
    ),
)
def test_links_lead_to_files(page):
    folder = (ROOT / page).parent
    assert [
        link for link in LINK.findall((ROOT / page).read_text()) if not (folder / link).exists()
    ] == []


@pytest.mark.parametrize(
    "page",
    [
        "BUILD.md",
        "CONTRIBUTING.md",
        "README.md",
        "docs/custom_models.md",
        "docs/design.md",
        "docs/glossary.md",
        "docs/index.md",
        "docs/node_management.md",
        "docs/ray.md",
        "docs/reproduction.md",
        "docs/scct.md",
        "docs/accounting.md",
        "docs/finetuning.md",
        "docs/models.md",
        "docs/performance.md",
        "docs/services.md",
    ],
)
def test_files_and_flags_that_are_named_exist(page):
    text = (ROOT / page).read_text()
    paths = re.findall(r"`((?:snake_jax|kernels|experiments|tests|docs)/[\w./]+\.\w+)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    flags = {name.removeprefix("no") for name in re.findall(r"`--(\w+)", text)}
    launches = "".join(path.read_text() for path in (ROOT / "experiments").rglob("*.py"))
    own = re.findall(r"""DEFINE_\w+\(\s*"(\w+)""", launches)
    known = set(own)
    for command in COMMANDS.values():
        known |= set(main.define(command))
    assert flags <= {*known, *(name.removeprefix("no") for name in known)}
