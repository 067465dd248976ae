"""Steps of the families beyond Llama and OPT: those of the whole model's gradient."""

import jax
import numpy as np
import pytest

from snake_jax.models import families
from snake_jax.models.attention import Scores
from snake_jax.models.language import build
from snake_jax.training import sharding
from snake_jax.training.image_step import Distillation
from tests.models.make_golden import VARIANTS
from tests.sweeps import sweep
from tests.training import test_text_step as steps

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Rows are 7 tokens long: longer than the windows.
CONFIGS = {
    "qwen3": VARIANTS["qwen3"],
    "phi3": VARIANTS["phi3"] | {"sliding_window": 3},
    "gpt2": VARIANTS["gpt2"] | {"n_layer": 3},
    "qwen2": VARIANTS["qwen2"] | {"sliding_window": 3},
    "gemma2": VARIANTS["gemma2"] | {"sliding_window": 3},
    "gemma3": VARIANTS["gemma3"] | {"sliding_window": 3, "final_logit_softcapping": None},
    "mistral": VARIANTS["mistral"] | {"sliding_window": 3},
    "olmo2": VARIANTS["olmo2"],
}
for variant, settings in CONFIGS.items():
    steps.MODELS[variant] = build(families.read(settings))


@pytest.mark.parametrize(
    ("name", "ends", "packed"),
    sweep(
        [
            ("qwen3", (), True),
            ("phi3", ("head",), False),
            ("gpt2", ("embed", "head"), True),
            ("qwen2", (), False),
            ("gemma2", ("embed", "head"), True),
            ("gemma3", ("embed", "head"), True),
            ("mistral", ("head",), True),
            ("olmo2", (), False),
        ],
        quick=[("phi3", ("head",), False), ("gemma2", ("embed", "head"), True)],
    ),
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


def test_a_model_with_capped_logits_is_taught_and_evaluated_with_them_capped():
    trainable, frozen = steps.parted("gemma2", 1)
    batch, params = steps.rows(), steps.weights("gemma2")
    received = jax.tree.map(lambda w: 1.2 * w, trainable)
    teacher = params | {"block_01": received["block_0"]}

    def loss(own):
        student = params | {"block_01": own}
        return steps.whole_loss("gemma2", student, None, batch, teacher, (2.0, 0.5))

    step = steps.make("gemma2", distillation=Distillation(2.0, 0.5))
    new, *_ = steps.run(step, trainable, frozen, batch, received)
    gradient = steps.grad(loss)(params["block_01"])
    expected = jax.tree.map(lambda w, g: w - steps.RATE * g, params["block_01"], gradient)
    steps.close(new["block_0"], expected)

    blocks = steps.stack.stack_trees([params[f"block_{i:02}"] for i in range(3)])
    ends = {name: params[name] for name in steps.ENDS}
    parts = jax.tree.map(lambda x: x[0], batch)
    score = jax.jit(steps.evaluate(steps.make("gemma2")))({}, blocks, ends, parts)
    whole = steps.whole_loss("gemma2", params, None, batch)
    np.testing.assert_allclose(score.nll / score.tokens, whole, rtol=1e-5)


@pytest.mark.parametrize("name", sweep(["phi3", "gpt2", "gemma3"], quick=["phi3"]))
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


@pytest.mark.parametrize("window", [None, 3])
def test_attention_on_a_mesh_has_the_window_and_the_cap(window):
    mesh = sharding.make_mesh("fsdp:1")
    keys = jax.random.split(jax.random.key(0), 3)
    query, key, value = (jax.random.normal(one, (2, 7, 4, 8)) for one in keys)
    segments = steps.rows(packed=True).segments[0]
    scores = Scores(window, 0.5)
    whole, _ = sharding.attend(None, segments)(query, key, value, scores)
    on_mesh, _ = jax.jit(lambda *given: sharding.attend(mesh, segments)(*given, scores))(
        query, key, value
    )
    np.testing.assert_allclose(on_mesh, whole, rtol=1e-5, atol=1e-6)
    plain, _ = sharding.attend(None, segments)(query, key, value)
    assert not np.allclose(on_mesh, plain, atol=1e-2)
