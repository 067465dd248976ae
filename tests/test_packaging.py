"""What a wheel holds: every package on disk with the report's page, kernels/ under its installed
name.
"""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory) -> set[str]:
    """Names in a wheel built from a copy, so that nothing is left beside the sources."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    for name in ("pyproject.toml", "README.md", "LICENSE", "snake_jax", "kernels"):
        (source / name).symlink_to(ROOT / name)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, out], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def modules_on_disk() -> set[str]:
    library = {path.relative_to(ROOT).as_posix() for path in (ROOT / "snake_jax").rglob("*.py")}
    kernels = {
        f"snake_jax/{path.relative_to(ROOT).as_posix()}"
        for path in (ROOT / "kernels").rglob("*.py")
    }
    return library | kernels


def page_on_disk() -> set[str]:
    return {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "snake_jax" / "report").glob("page*")
    }


def test_wheel_holds_every_module(wheel_names):
    assert "snake_jax/kernels/conv/__init__.py" in wheel_names
    missing = modules_on_disk() - wheel_names
    assert missing == set(), "list these packages under [tool.setuptools] in pyproject.toml"


def test_wheel_holds_the_report_page(wheel_names):
    assert {
        "snake_jax/report/page.html",
        "snake_jax/report/page.css",
        "snake_jax/report/page.js",
    } <= page_on_disk()
    assert page_on_disk() <= wheel_names


def test_wheel_holds_nothing_else(wheel_names):
    extra = {
        name
        for name in wheel_names - modules_on_disk() - page_on_disk()
        if ".dist-info/" not in name
    }
    assert extra == set()
