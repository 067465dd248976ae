"""`--model=MODULE:FUNCTION`: a network of the user's own, in runs and profiles."""

import json
import sys

import jax
import pytest

from snake_jax.errors import UserError
from snake_jax.models import registry
from tests.launches import Launcher, strict_json, write_images

MODULE = """
import flax.linen as nn
import jax.numpy as jnp
from flax import nnx
from snake_jax import from_linen


class Flat(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.features)(x.reshape((x.shape[0], -1)))


class NnxFlat(nnx.Module):
    def __init__(self, inputs, features, rngs):
        self.dense = nnx.Linear(inputs, features, rngs=rngs)

    def __call__(self, x):
        return self.dense(x.reshape((x.shape[0], -1)))


def layered(num_classes, input_shape, width=1.0):
    stages = [("first", Flat(int(8 * width))), ("second", Flat(8)), ("head", Flat(num_classes))]
    return from_linen("own", stages, input_shape)


def linen(num_classes, input_shape, **options):
    return [("first", Flat(8)), ("second", Flat(8)), ("head", Flat(num_classes))]


def stacked(num_classes, input_shape):
    inputs = input_shape[0] * input_shape[1] * input_shape[2]
    return (
        ("first", lambda rngs: NnxFlat(inputs, 8, rngs)),
        ("head", lambda rngs: NnxFlat(8, num_classes, rngs)),
    )


def wrong_shape(num_classes, input_shape):
    return from_linen("own", [("head", Flat(num_classes))], (2, 2, 1))


def a_number(num_classes, input_shape):
    return 7


def a_word(num_classes, input_shape):
    return "vgg11"


def mixed(num_classes, input_shape):
    return [("first", Flat(8)), ("head", lambda rngs: NnxFlat(8, num_classes, rngs))]


def needs_more(num_classes, input_shape, depth):
    return linen(num_classes, input_shape)


CONSTANT = 7
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with modules of the user's; Python forgets them afterwards."""
    (tmp_path / "own_models").mkdir()
    (tmp_path / "own_models" / "nets.py").write_text(MODULE)
    (tmp_path / "broken_model.py").write_text("import a_library_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != ""])
    yield tmp_path
    for name in ("own_models", "own_models.nets", "broken_model"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("function", "names"),
    [
        ("layered", ("first", "second", "head")),
        ("linen", ("first", "second", "head")),
        ("stacked", ("first", "head")),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_function_gives_a_model_or_the_stages_of_one(function, names):
    options = {"width": 1.0, "norm": "none", "dropout": 0.0, "conv": "auto", "init": "he"}
    model = registry.build(f"own_models.nets:{function}", 4, (4, 4, 3), **options)
    assert model.layer_names == names
    assert model.input_shape == (4, 4, 3)


@pytest.mark.usefixtures("folder")
def test_a_function_is_told_what_it_takes():
    model = registry.build("own_models.nets:layered", 4, (4, 4, 3), width=2.0, dropout=0.0)
    shapes = registry.build("own_models.nets:layered", 4, (4, 4, 3))
    key = jax.random.key(0)
    assert model.init(key)["first"]["Dense_0"]["kernel"].shape == (48, 16)
    assert shapes.init(key)["first"]["Dense_0"]["kernel"].shape == (48, 8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent_models:small", "there is no module absent_models, neither installed nor in "),
        ("own_models.absent:small", "there is no module own_models.absent"),
        ("broken_model:small", "broken_model needs a_library_that_is_not_there"),
        ("own_models.nets:smal", "own_models.nets has no function smal; it has layered, linen"),
        ("own_models.nets:CONSTANT", "own_models.nets has no function CONSTANT"),
        ("own_models.nets:", "want MODULE:FUNCTION, as package.module:function"),
        (":small", "want MODULE:FUNCTION"),
        ("own_models.nets:a_number", "it gives a int; want a LayeredModel, or a list of"),
        ("own_models.nets:a_word", "it gives a str; want a LayeredModel, or a list of"),
        ("own_models.nets:mixed", "it gives a list; want a LayeredModel, or a list of"),
        ("own_models.nets:wrong_shape", "it is for examples of (2, 2, 1), the data's are (4, 4"),
        ("own_models.nets:needs_more", "missing a required argument: 'depth'"),
        (
            "resnet",
            "mlp, 2nn, fedavg_cnn; a network of yours is MODULE:FUNCTION",
        ),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_is_no_network_is_one_line(name, message):
    with pytest.raises(UserError) as error:
        registry.build(name, 4, (4, 4, 3))
    assert str(error.value).startswith(f"--model={name}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("folder")
def test_an_option_that_a_function_does_not_take_is_refused():
    with pytest.raises(UserError, match=r"--dropout=0\.5: own_models\.nets:layered takes no drop"):
        registry.build("own_models.nets:layered", 4, (4, 4, 3), dropout=0.5)


def test_a_launch_trains_it_and_a_profile_counts_it(folder, monkeypatch, capfd):
    run, profile = Launcher(monkeypatch, capfd), Launcher(monkeypatch, capfd, "profile")
    images = write_images(folder / "images.npz")
    own = ("--model=own_models.nets:linen", "--nodes=3", "--batch_size=8", "--learning_rate=0.1")
    ended = run(*own, f"--dataset=npz:{images}", f"--workdir={folder / 'run'}")
    assert (ended.code, ended.stderr) == (0, "")
    summary = strict_json((folder / "run" / "summary.json").read_text())
    params = 48 * 8 + 8 + 8 * 8 + 8 + 8 * 4 + 4
    assert summary["num_params"] == params
    assert summary["final_accuracy"] > 0.6, "it learns"
    ended = profile("--model=own_models.nets:linen", "--format=json")
    assert ended.code in (0, None)
    found = json.loads(ended.stdout)
    assert [row["layer"] for row in found["rows"][0]["layers"]] == ["first", "second", "head"]
    assert found["command"] == "snake-jax profile --model=own_models.nets:linen --format=json"


def test_a_wrong_one_is_one_line_and_exit_code_2(folder, monkeypatch, capfd):
    for name in ("classify", "profile"):
        launch = Launcher(monkeypatch, capfd, name)
        workdir = [f"--workdir={folder / 'run'}"] if name == "classify" else []
        ended = launch("--model=absent_models:small", *workdir)
        (line,) = ended.stderr.splitlines()
        assert ended.code == 2
        assert line.startswith("error: --model=absent_models:small: there is no module")
