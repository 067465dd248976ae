"""What a wheel holds, and that it is all that the program needs: outside a checkout, in an empty
folder.
"""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy, so that nothing is left beside the sources."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    for name in ("pyproject.toml", "README.md", "LICENSE", "snake_jax", "kernels"):
        (source / name).symlink_to(ROOT / name)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, out], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (file,) = out.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def wheel_names(wheel) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """`installed(*words)`: the program as the wheel installs it, in an empty folder.

    The environment has the wheel of its own and sees this one's packages, but not the checkout:
    files that say where it is are read in a site folder alone.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    install = ["install", "-qq", "--no-deps", "--no-index", "--no-compile", str(wheel)]
    command = [sys.executable, "-m", "pip", "--python", str(python), *install]
    subprocess.run(command, check=True, capture_output=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (folder / "work").mkdir()
    # It is about whether programs are found and run, not about how fast they are.
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment.pop("PYTHONPATH", None)

    def run(*words):
        return subprocess.run(
            [folder / "venv" / "bin" / "snake-jax", *words],
            cwd=folder / "work",
            env=environment,
            capture_output=True,
            text=True,
        )

    run.folder = folder
    return run


def modules_on_disk() -> set[str]:
    library = {path.relative_to(ROOT).as_posix() for path in (ROOT / "snake_jax").rglob("*.py")}
    kernels = {
        f"snake_jax/{path.relative_to(ROOT).as_posix()}"
        for path in (ROOT / "kernels").rglob("*.py")
    }
    return library | kernels


def page_on_disk() -> set[str]:
    """What `snake-jax report` and `snake-jax serve` make their pages of."""
    found = set()
    for folder in ("report", "services"):
        for path in (ROOT / "snake_jax" / folder).glob("page*"):
            found.add(path.relative_to(ROOT).as_posix())
    return found


def presets_on_disk() -> set[str]:
    folder = ROOT / "snake_jax" / "cli" / "presets"
    return {path.relative_to(ROOT).as_posix() for path in folder.glob("*.flags")}


def test_wheel_holds_every_module(wheel_names):
    assert "snake_jax/kernels/conv/__init__.py" in wheel_names
    missing = modules_on_disk() - wheel_names
    assert missing == set(), "list these packages under [tool.setuptools] in pyproject.toml"


def test_wheel_holds_the_pages(wheel_names):
    assert {
        "snake_jax/report/page.html",
        "snake_jax/report/page.css",
        "snake_jax/report/page.js",
        "snake_jax/services/page.html",
        "snake_jax/services/page.css",
        "snake_jax/services/page.js",
    } <= page_on_disk()
    assert page_on_disk() <= wheel_names


def test_wheel_holds_the_presets(wheel_names):
    assert "snake_jax/cli/presets/demo_snake.flags" in presets_on_disk()
    assert presets_on_disk() <= wheel_names


def test_wheel_holds_nothing_else(wheel_names):
    known = modules_on_disk() | page_on_disk() | presets_on_disk()
    extra = {name for name in wheel_names - known if ".dist-info/" not in name}
    assert extra == set()


def said(ended) -> str:
    """What a command printed that ended well."""
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_program_is_the_wheel_s(installed):
    code = "import snake_jax; print(snake_jax.__file__)"
    command = [installed.folder / "venv" / "bin" / "python", "-c", code]
    work = installed.folder / "work"
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(installed.folder / "venv"))


def test_it_explains_itself_and_its_presets(installed):
    assert "snake-jax classify --preset=demo_snake" in said(installed("--help"))
    assert "demo_snake: " in said(installed("presets"))
    assert "--algorithm=snake\n" in said(installed("presets", "demo_snake"))
    assert installed("clasify").stderr.startswith("error: clasify: no such command; did you mean")


OWN_MODEL = """
import flax.linen as nn

class Flat(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Dense(self.features)(x.reshape((x.shape[0], -1))))

def tiny(num_classes, input_shape):
    return [("one", Flat(8)), ("two", Flat(8)), ("three", Flat(num_classes))]
"""


def test_it_trains_compares_reports_and_profiles(installed):
    (installed.folder / "work" / "own.py").write_text(OWN_MODEL)
    small = ("--nodes=2", "--train_examples=64", "--batch_size=32", "--cycles=1")
    preset = ("--preset=demo_fedavg", "--model=own:tiny", "--width=1", "--workdir=runs/images")
    said(installed("classify", *small, *preset))
    text = ("--preset=demo_llm_fedavg", "--limit=8", "--cycles=1", "--workdir=runs/text")
    said(installed("finetune", "--nodes=2", "--max_length=512", *text))
    for name in ("images", "text"):
        folder = installed.folder / "work" / "runs" / name
        assert json.loads((folder / "summary.json").read_text())["nodes"] == 2
        assert (folder / "curves.png").exists()
    assert "final" in said(installed("compare", "runs/images"))
    assert "report.html: 2 runs" in said(installed("report", "runs"))
    profiled = said(installed("profile", "--model=own:tiny", "--format=json"))
    (case,) = json.loads(profiled)["rows"]
    assert [row["layer"] for row in case["layers"]] == ["one", "two", "three"]
