"""The partial step: what it computes, and that frozen layers cost nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from snake_jax.data.images import augmentation
from snake_jax.params import num_bytes, select, without
from snake_jax.training import image_scores
from snake_jax.training.image_scores import evaluate
from snake_jax.training.image_step import Distillation, local_epoch
from snake_jax.training.optimizers import apply_updates, init_states, update_rule
from snake_jax.training.quantization import freeze
from tests.helpers import (
    batches,
    close,
    random_examples,
    same_bits,
    small_model,
    small_step,
    states_for,
)

KEY, RATE = jax.random.key(5), jnp.float32(0.1)
BATCH = 64  # of the compiled-cost tests: the products outweigh the updates


def _train(step, params, trained, examples, rows, teacher=None, frozen_dtype="float32"):
    trainable = select(params, trained)
    frozen = {
        name: freeze(subtree, frozen_dtype) for name, subtree in without(params, trained).items()
    }
    epoch = jax.jit(local_epoch(step, trained))
    return epoch(
        trainable, states_for(step, trainable), frozen, teacher or {}, examples, rows, KEY, RATE
    )


def _mean_loss(step, params, examples, index):
    x = step.normalise(examples.images[jnp.asarray(index)])
    logits = step.model.apply(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(
        logits, examples.labels[jnp.asarray(index)]
    ).mean()


@pytest.mark.parametrize(
    "trained", [("conv1",), ("conv2",), ("fc5",), ("conv1", "conv3", "fc5"), ("conv2", "fc4")]
)
def test_partial_gradients_are_the_full_gradients_of_those_layers(trained):
    model, params = small_model()
    step, examples, index = small_step(model), random_examples(12), [3, 1, 4, 1, 5]
    new, _, stats = _train(step, params, trained, examples, batches([index]))
    gradients = jax.grad(lambda p: _mean_loss(step, p, examples, index))(params)
    expected = jax.tree.map(
        lambda w, g: w - RATE * g, select(params, trained), select(gradients, trained)
    )
    assert close(new, expected)
    assert set(new) == set(trained)
    np.testing.assert_allclose(
        stats.loss_sum, 5 * _mean_loss(step, params, examples, index), rtol=1e-5
    )


def test_an_epoch_is_its_steps_one_after_the_other():
    model, params = small_model("mlp")
    step, examples = small_step(model), random_examples(12)
    trained, rows = ("fc1", "fc4"), [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    new, states, _ = _train(step, params, trained, examples, batches(rows))
    trainable, optimizer = select(params, trained), optax.sgd(0.1, momentum=0.9)
    state = optimizer.init(trainable)
    for row in rows:
        loss = lambda t, row=row: _mean_loss(step, {**params, **t}, examples, row)  # noqa: E731
        updates, state = optimizer.update(jax.grad(loss)(trainable), state)
        trainable = optax.apply_updates(trainable, updates)
    assert close(new, trainable)
    assert set(states) == set(trained)


def test_padding_in_a_batch_and_rows_past_the_steps_change_nothing():
    model, params = small_model("mlp")
    step, examples, trained = small_step(model), random_examples(12), ("fc2", "fc4")
    exact = _train(step, params, trained, examples, batches([[0, 1]]))
    padded_rows = batches([[0, 1, 7, 9], [2, 2, 2, 2]], [[1, 1, 0, 0], [1, 1, 1, 1]], steps=1)
    padded = _train(step, params, trained, examples, padded_rows)
    assert close(padded[0], exact[0], rtol=1e-4)
    np.testing.assert_allclose(padded[2].loss_sum, exact[2].loss_sum, rtol=1e-5)
    assert float(padded[2].examples) == 2.0


def test_distillation_adds_the_cross_entropy_to_the_received_model():
    model, params = small_model("mlp")
    examples, trained, index = random_examples(12), ("fc2", "fc4"), [0, 1, 2, 3]
    received = jax.tree.map(lambda w: w * 0.5, select(params, trained))
    step = small_step(model, distillation=Distillation(temperature=3.0, weight=0.7))
    new, _, stats = _train(step, params, trained, examples, batches([index]), teacher=received)

    def loss(trainable):
        x = step.normalise(examples.images[jnp.asarray(index)])
        targets = jax.nn.softmax(model.apply({**params, **received}, x) / 3.0)
        student = jax.nn.log_softmax(model.apply({**params, **trainable}, x) / 3.0)
        distance = -(targets * student).sum(-1).mean()
        return _mean_loss(step, {**params, **trainable}, examples, index) + 0.7 * 9.0 * distance

    trainable = select(params, trained)
    expected = jax.tree.map(lambda w, g: w - RATE * g, trainable, jax.grad(loss)(trainable))
    assert close(new, expected, rtol=1e-4)
    np.testing.assert_allclose(
        stats.loss_sum / 4, _mean_loss(step, params, examples, index), rtol=1e-5
    )


def test_a_teacher_equal_to_the_student_pulls_nowhere_at_temperature_one():
    model, params = small_model("mlp")
    examples, trained, rows = random_examples(12), ("fc1", "fc4"), batches([[0, 1, 2, 3]])
    strong = small_step(model, distillation=Distillation(1.0, 100.0))
    with_teacher = _train(strong, params, trained, examples, rows, teacher=select(params, trained))
    assert close(
        with_teacher[0],
        _train(small_step(model), params, trained, examples, rows)[0],
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_teacher_of_a_network_with_dropout_does_not_drop():
    model, params = small_model("mlp", dropout=0.5)
    examples, trained, rows = random_examples(12), ("fc1", "fc4"), batches([[0, 1, 2, 3]])
    weights = (0.0, 1.0)
    results = [
        _train(
            small_step(model, distillation=Distillation(1.0, weight)),
            params,
            trained,
            examples,
            rows,
            teacher=select(params, trained),
        )
        for weight in weights
    ]
    assert not close(
        results[0][0], results[1][0], rtol=1e-4
    )  # a student that drops differs from its calm teacher


def test_clipping_takes_the_norm_of_the_trained_layers_only():
    model, params = small_model("mlp")
    examples, trained, index = random_examples(12), ("fc4",), [0, 1, 2, 3]
    step = small_step(model, clip_norm=1e-3)
    new, _, _ = _train(step, params, trained, examples, batches([index]))
    moved = jax.tree.map(lambda a, b: (a - b) / RATE, select(params, trained), new)
    np.testing.assert_allclose(optax.tree.norm(moved), 1e-3, rtol=1e-2)


def test_augmentation_is_new_at_every_step():
    model, params = small_model("mlp")
    seen = []

    def spy(key, images):
        jax.debug.callback(
            lambda k: seen.append(tuple(np.asarray(k).tolist())), jax.random.key_data(key)
        )
        return augmentation.augment("crop_flip", key, images)

    step = small_step(model, augment=spy)
    _train(step, params, ("fc4",), random_examples(12), batches([[0, 1], [0, 1], [0, 1]]))
    jax.effects_barrier()
    assert len(set(seen)) == 3


@pytest.mark.parametrize(("dtype", "rtol"), [("bfloat16", 0.05), ("int8", 0.05)])
def test_frozen_precision_changes_the_step_a_little_and_only_that(dtype, rtol):
    model, params = small_model("mlp")
    step, examples, trained = small_step(model), random_examples(12), ("fc1", "fc4")
    exact = _train(step, params, trained, examples, batches([[0, 1, 2, 3]]))
    rough = _train(step, params, trained, examples, batches([[0, 1, 2, 3]]), frozen_dtype=dtype)
    difference = np.abs(float(rough[2].loss_sum - exact[2].loss_sum)) / float(exact[2].loss_sum)
    assert 0 < difference < rtol


def test_bfloat16_compute_keeps_float32_parameters():
    model, params = small_model("mlp")
    step, trained = small_step(model, compute_dtype=jnp.bfloat16), ("fc1", "fc4")
    new, _, stats = _train(step, params, trained, random_examples(12), batches([[0, 1, 2, 3]]))
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype("float32")}
    assert not same_bits(new, select(params, trained))
    assert bool(stats.finite)


def test_not_finite_is_reported():
    model, params = small_model("mlp")
    broken = {**params, "fc4": jax.tree.map(lambda w: w * jnp.nan, params["fc4"])}
    _, _, stats = _train(small_step(model), broken, ("fc4",), random_examples(4), batches([[0, 1]]))
    assert not bool(stats.finite)


def _compiled(model, params, trained):
    step, examples = small_step(model), random_examples(8)
    trainable = select(params, trained)
    args = (
        trainable,
        states_for(step, trainable),
        without(params, trained),
        {},
        examples,
        batches([[0] * BATCH]),
        KEY,
        RATE,
    )
    return jax.jit(local_epoch(step, trained), donate_argnums=(0, 1)).lower(*args).compile()


def test_frozen_layers_cost_no_weight_gradient_as_the_compiler_counts():
    model, params = small_model("mlp", width=4.0)
    flops = {
        t: _compiled(model, params, t).cost_analysis()["flops"]
        for t in [model.layer_names, ("fc4",), ("fc2",)]
    }
    sizes = {name: params[name]["Dense_0"]["kernel"].size for name in model.layer_names}
    forward = 2 * BATCH * sum(sizes.values())  # 2 for a multiply-add
    full = flops[model.layer_names]
    last = flops[("fc4",)]
    assert (
        forward + 2 * BATCH * sizes["fc4"] <= last < 1.1 * (forward + 2 * BATCH * sizes["fc4"])
    )  # no input gradient at all
    second = (
        forward + 2 * BATCH * (sizes["fc3"] + sizes["fc4"]) + 2 * BATCH * sizes["fc2"]
    )  # ends at the trained layer
    assert second <= flops[("fc2",)] < 1.1 * second
    assert full > last + 2 * BATCH * (sizes["fc1"] + sizes["fc2"])


def test_frozen_layers_have_no_output_and_no_optimizer_buffer():
    model, params = small_model("mlp", width=4.0)
    trained = ("fc4",)
    memory = _compiled(model, params, trained).memory_analysis()
    trainable = num_bytes(select(params, trained))
    # New weights and momentum of fc4, the statistics, and the pointer table; far less than any
    # frozen layer.
    assert memory.output_size_in_bytes <= 2 * trainable + 256
    assert memory.alias_size_in_bytes >= 2 * trainable  # donated: updated in place
    assert num_bytes(states_for(small_step(model), select(params, trained))) == trainable


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("sgd", optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.9))),
        ("adam", optax.chain(optax.add_decayed_weights(0.01), optax.adam(0.1))),
        ("adamw", optax.adamw(0.1, weight_decay=0.01)),
        ("rmsprop", optax.chain(optax.add_decayed_weights(0.01), optax.rmsprop(0.1, momentum=0.0))),
    ],
)
def test_update_rules_are_those_of_optax(name, reference):
    rule = update_rule(name, momentum=0.9 if name == "sgd" else 0.0, weight_decay=0.01)
    rng = np.random.default_rng(0)
    params = {
        "a": {"w": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)},
        "b": {"w": jnp.ones((2, 2))},
    }
    states, state = init_states(rule, params, ("a", "b", "c")), reference.init(params)
    ours = theirs = params
    for _ in range(3):
        gradients = jax.tree.map(
            lambda w: jnp.asarray(rng.normal(size=w.shape), jnp.float32), params
        )
        ours, states = apply_updates(rule, 0.0, RATE, gradients, states, ours, ("a", "b", "c"))
        updates, state = reference.update(gradients, state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    assert close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_decay_spares_biases():
    rule = update_rule("sgd", momentum=0.0, weight_decay=0.5)
    params = {"a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    zero = jax.tree.map(jnp.zeros_like, params)
    new, _ = apply_updates(rule, 0.0, RATE, zero, init_states(rule, params, ("a",)), params, ("a",))
    np.testing.assert_allclose(new["a"]["kernel"], 0.95)
    np.testing.assert_allclose(new["a"]["bias"], 1.0)


def test_a_layers_optimizer_state_has_one_structure_whatever_trains_beside_it():
    model, params = small_model()
    step = small_step(model, optimizer="adam")
    alone = states_for(step, select(params, ("conv2",)))["conv2"]
    among = states_for(step, params)["conv2"]
    assert jax.tree.structure(alone) == jax.tree.structure(among)


def test_evaluation_counts_every_example_once():
    model, params = small_model("mlp")
    step, examples = small_step(model), random_examples(300)
    accuracy, loss = jax.jit(evaluate(step))(params, examples)
    logits = model.apply(params, step.normalise(examples.images))
    np.testing.assert_allclose(accuracy, (logits.argmax(-1) == examples.labels).mean(), rtol=1e-6)
    np.testing.assert_allclose(loss, _mean_loss(step, params, examples, np.arange(300)), rtol=1e-5)


def test_scored_images_go_in_batches_that_are_as_equal_as_they_can_be(monkeypatch):
    sizes = [image_scores.evaluation_batch(count) for count in (1, 64, 65, 360, 10_000)]
    assert sizes == [1, 64, 33, 60, 64]
    for count in range(1, 2000):
        size = image_scores.evaluation_batch(count)
        batches = -(-count // size)
        assert batches * size - count < batches, "less than an image a batch is padding"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert image_scores.evaluation_batch(360) == 360, "an accelerator is filled"
