"""Defaults that apply are printed before a run trains: what is not typed is easily overlooked."""

import pytest

from snake_jax.cli import defaults, main
from snake_jax.cli.commands import COMMANDS, config_flags
from snake_jax.config import ImageConfig, TextConfig
from snake_jax.errors import UserError
from snake_jax.runs import loop
from tests.launches import write_images, write_model, write_pairs


def said(name, *words):
    """The line on defaults of a command with these flags."""
    values = main.define(COMMANDS[name])
    main.parse(COMMANDS[name], values, ["snake-jax", *words])
    kind = ImageConfig if name == "classify" else TextConfig
    return defaults.said_of_defaults(loop.prepare(config_flags.from_flags(values, kind)), values)


@pytest.fixture
def images(tmp_path):
    return f"--dataset=npz:{write_images(tmp_path / 'images.npz')}", "--model=mlp", "--nodes=3"


@pytest.fixture
def text(tmp_path):
    model, pairs = write_model(tmp_path / "model"), write_pairs(tmp_path / "pairs.jsonl")
    return f"--model={model}", f"--data={pairs}", "--nodes=2", "--max_length=64"


def test_what_is_typed_is_no_default(images):
    line = said("classify", *images, "--learning_rate=0.02", "--compute_dtype=float32")
    assert line.startswith("by default: --optimizer=sgd, ")
    assert "--local_epochs=1" in line
    assert "learning_rate" not in line
    assert "compute_dtype" not in line


def test_where_all_is_typed_nothing_is_said(images):
    own = ("--learning_rate=0.1", "--optimizer=sgd", "--local_epochs=1", "--batch_size=8")
    stored = ("--frozen_dtype=float32", "--compute_dtype=float32")
    assert said("classify", *images, *own, *stored) == ""


def test_the_storage_of_frozen_layers_is_told_where_there_are_any(images):
    stored = "--frozen_dtype=float32 (how layers that do not train are stored at a node)"
    assert stored in said("classify", *images)
    assert "frozen_dtype" not in said("classify", *images, "--algorithm=fedavg")


@pytest.mark.parametrize("algorithm", ["snake", "fedavg", "centralised", "sequential"])
def test_the_storage_of_the_base_of_adapters_is_told_in_every_method(algorithm, text):
    line = said("finetune", *text, f"--algorithm={algorithm}", "--lora_rank=4")
    assert "--frozen_dtype=int8 (how the base under the adapters is stored at a node)" in line
    assert "--learning_rate=0.0001" in line
    assert "lora_rank" not in line


def test_where_all_trains_nothing_is_stored(text):
    assert "frozen_dtype" not in said("finetune", *text, "--algorithm=fedavg", "--lora_rank=0")


def test_the_rank_by_default_fits_the_model_and_one_that_does_not_says_what_to_type():
    assert "--lora_rank=16" in said("finetune")
    wanted = "above the width of self_attn.k_proj .* at most 32, or --lora_rank=0 to train whole"
    with pytest.raises(UserError, match=f"--lora_rank=128 is {wanted}"):
        said("finetune", "--lora_rank=128")
