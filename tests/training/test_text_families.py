"""Steps of the families beyond Llama and OPT: those of the whole model's gradient."""

import jax
import pytest

from snake_jax.models import families
from snake_jax.models.language import build
from tests.models.make_golden import VARIANTS
from tests.training import test_text_step as steps

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Rows are 7 tokens long: longer than the windows.
CONFIGS = {
    "qwen3": VARIANTS["qwen3"],
    "phi3": VARIANTS["phi3"] | {"sliding_window": 3},
    "gpt2": VARIANTS["gpt2"] | {"n_layer": 3},
}
for variant, settings in CONFIGS.items():
    steps.MODELS[variant] = build(families.read(settings))


@pytest.mark.parametrize(
    ("name", "ends", "packed"),
    [("qwen3", (), True), ("phi3", ("head",), False), ("gpt2", ("embed", "head"), True)],
)
def test_a_step_is_that_of_the_whole_models_gradient(name, ends, packed):
    trainable, frozen = steps.parted(name, 1, ends=ends)
    batch = steps.rows(packed=packed)
    params = steps.weights(name)
    gradients = steps.grad(lambda params: steps.whole_loss(name, params, None, batch))(params)
    wanted = {"block_0": gradients["block_01"], **{end: gradients[end] for end in ends}}
    new, *_ = steps.run(steps.make(name), trainable, frozen, batch)
    expected = jax.tree.map(lambda w, g: w - steps.RATE * g, trainable, wanted)
    steps.close(new, expected)


@pytest.mark.parametrize("name", ["phi3", "gpt2"])
def test_adapters_of_matrices_that_are_several_in_one_train(name):
    trainable, frozen = steps.parted(name, 1, adapted=True)
    batch, every = steps.rows(), steps.adapters(name)

    def loss(own):
        chosen = [own if i == 1 else other for i, other in enumerate(every)]
        return steps.whole_loss(name, steps.weights(name), chosen, batch)

    new, *_ = steps.run(steps.make(name, adapted=True), trainable, frozen, batch)
    gradient = steps.grad(loss)(every[1])
    expected = jax.tree.map(lambda w, g: w - steps.RATE * g, every[1], gradient)
    steps.close(new["block_0"], expected)
