"""Gradients example by example: clipped, with noise, of what trains alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from snake_jax.costs.memory import state_bytes
from snake_jax.models.presets import from_preset
from snake_jax.params import num_bytes, select, without
from snake_jax.training import stack
from snake_jax.training.image_step import Distillation, Examples, local_epoch
from snake_jax.training.optimizers import init_states, update_rule
from snake_jax.training.privacy import Privacy, clipped, noised
from snake_jax.training.text_step import (
    FrozenModel,
    LanguageStep,
    TextBatch,
    block_roles,
    own_items,
    train_step,
)
from tests.helpers import (
    batches,
    close,
    random_examples,
    same_bits,
    small_model,
    small_step,
    states_for,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")
KEY, RATE = jax.random.key(5), jnp.float32(0.1)
TRAINED = ("fc2", "fc4")
FREE = Privacy(clip=1e6, noise=0.0)  # clips nothing, adds nothing
PLAIN = {"rule": optax.identity()}


@functools.cache
def compiled(privacy, trained=TRAINED, name="mlp", **changes):
    """A step on a small network, its epoch compiled, and its parameters."""
    model, params = small_model(name)
    step = small_step(model, privacy=privacy, **changes)
    return step, jax.jit(local_epoch(step, trained)), params


def epoch(privacy, rows, examples, trained=TRAINED, key=KEY, **changes):
    """What an epoch gives: the new trained layers, their states, its sums."""
    step, run, params = compiled(privacy, trained, **changes)
    trainable = select(params, trained)
    received = jax.tree.map(lambda w: 0.5 * w, trainable) if step.needs_received else {}
    states = states_for(step, trainable)
    return run(trainable, states, without(params, trained), received, examples, rows, key, RATE)


def moved(privacy, rows, examples, **changes):
    """`-rate * gradient` of one plain step, by layer."""
    _, _, params = compiled(privacy, **changes, **PLAIN)
    new, *_ = epoch(privacy, rows, examples, **changes, **PLAIN)
    return jax.tree.map(jnp.subtract, new, select(params, list(new)))


def norm(tree):
    return float(optax.tree.norm(tree))


@pytest.mark.parametrize(
    "changes",
    [{"name": "cnn", "trained": ("conv2", "fc5")}, {"distillation": Distillation(2.0, 0.5)}],
    ids=["convolutions", "distillation"],
)
def test_with_a_clip_that_clips_nothing_and_no_noise_it_is_the_ordinary_step(changes):
    examples = random_examples(12)
    rows = batches([[0, 1, 2, 3], [4, 5, 6, 0]], [[1, 1, 1, 1], [1, 1, 1, 0]])
    ours = epoch(FREE, rows, examples, **changes)
    plain = epoch(None, rows, examples, **changes)
    assert close(ours, plain, rtol=1e-6, atol=1e-6)
    assert float(plain[2].examples) == 7


def test_parts_of_a_batch_are_clipped_by_example_and_noised_once():
    examples, some = random_examples(12), Privacy(clip=0.02, noise=1.5)
    whole = epoch(some, batches([[0, 1, 2, 3]]), examples)
    parts = epoch(some, batches([[[0, 1], [2, 3]]]), examples)
    assert close(whole[0], parts[0], atol=1e-6)


@pytest.mark.parametrize("clip", [0.01, 0.3])
def test_an_example_moves_the_update_by_no_more_than_the_clip_over_the_batch(clip):
    examples = random_examples(12)
    some, rows = Privacy(clip, noise=0.0), batches([[0, 1, 2, 3]])
    # The example is there with the weight of padding: its place is kept, it has no gradient.
    without_it = batches([[0, 1, 2, 3]], [[1, 1, 1, 0]])
    counts = 4 / 3  # the mean of three, as one of four
    influence = jax.tree.map(
        lambda a, b: a - b / counts, moved(some, rows, examples), moved(some, without_it, examples)
    )
    bound = 0.1 * clip / 4
    assert 0.99 * bound < norm(influence) <= 1.001 * bound
    # An image as bright as none is bounded alike.
    glaring = Examples(examples.images.at[3].set(255), examples.labels)
    assert norm(moved(some, rows, glaring)) <= 1.001 * 4 * bound
    free = moved(FREE, batches([[0, 1, 2, 3]]), examples)
    assert norm(free) > 4 * bound


def test_noise_has_the_deviation_that_is_said_and_follows_the_key():
    privacy, size = Privacy(clip=0.5, noise=2.0), 8
    sums = {"fc1": {"w": jnp.zeros((300, 300)), "b": jnp.full(300, 3.0)}}
    found = noised(privacy, sums, jnp.ones(size), KEY)
    deviation = privacy.noise * privacy.clip / size
    draws = np.asarray(found["fc1"]["w"])
    np.testing.assert_allclose(draws.std(), deviation, rtol=0.01)
    assert abs(draws.mean()) < 4 * deviation / 300
    np.testing.assert_allclose(np.mean(found["fc1"]["b"]), 3 / size, atol=4 * deviation / 300**0.5)
    assert same_bits(found, noised(privacy, sums, jnp.ones(size), KEY))
    assert not close(found, noised(privacy, sums, jnp.ones(size), jax.random.key(6)))
    # Arrays draw apart.
    square = {"a": jnp.zeros((9, 9)), "b": jnp.zeros((9, 9))}
    two = noised(privacy, square, jnp.ones(size), KEY)
    assert not close(two["a"], two["b"])


def test_it_is_optax_s_aggregate_where_a_batch_has_no_padding():
    step, _, params = compiled(Privacy(0.05, 1.3), **PLAIN)
    examples = random_examples(12)
    found = moved(Privacy(0.05, 1.3), batches([[0, 1, 2, 3]]), examples)
    trainable, frozen = select(params, TRAINED), without(params, TRAINED)

    def loss(trainable, index):
        x = step.normalise(examples.images[index][None])
        logits = step.model.apply({**frozen, **trainable}, x)
        return -jax.nn.log_softmax(logits)[0, examples.labels[index]]

    gradients = jax.vmap(jax.grad(loss), (None, 0))(trainable, jnp.arange(4))
    # The key of the first step of an epoch, and of its noise.
    own = jax.random.fold_in(jax.random.fold_in(KEY, 0), 2**32 - 1)
    theirs = contrib.differentially_private_aggregate(0.05, 1.3, key=own)
    wanted, _ = theirs.update(gradients, theirs.init(trainable))
    assert close(found, jax.tree.map(lambda g: -RATE * g, wanted), atol=1e-6)


def test_frozen_layers_have_no_gradient_of_any_example_and_no_noise():
    examples, rows = random_examples(12), batches([[0, 1, 2, 3]])
    new, states, _ = epoch(Privacy(0.1, 1.0), rows, examples)
    assert set(new) == set(states) == set(TRAINED)

    # Gradients of single examples are `[B, in, out]` in the program: those of what trains alone.
    model, params = small_model("mlp", width=4.0)
    step, size = small_step(model, privacy=Privacy(0.1, 1.0)), 61
    for trained in (("fc1",), ("fc4",)):
        trainable = select(params, trained)
        read = without(params, trained), {}, examples, batches([[0] * size]), KEY, RATE
        run = jax.jit(local_epoch(step, trained))
        program = run.lower(trainable, states_for(step, trainable), *read).as_text()
        found = []
        for name in model.layer_names:
            inner, outer = params[name]["Dense_0"]["kernel"].shape
            if f"<{size}x{inner}x{outer}xf32>" in program:
                found.append(name)
        assert tuple(found) == trained


# Language models

LLAMA = from_preset(
    "tiny-llama",
    num_hidden_layers=3,
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)


def text_rows(tokens=(7, 7, 7, 7)):
    """`[1, 4, 7]` random tokens, of each row so many with a loss."""
    keys = jax.random.split(jax.random.key(2), 2)
    ids, targets = (jax.random.randint(key, (1, 4, 7), 0, 40) for key in keys)
    weight = (jnp.arange(7) < jnp.array(tokens)[:, None]).astype(jnp.float32)[None]
    positions = jnp.broadcast_to(jnp.arange(7), (1, 4, 7))
    return TextBatch(ids, targets, weight, positions)


@functools.cache
def text_step_of(privacy, ends):
    """A plain step of block 1 and these ends, compiled, with its first four arguments."""
    rule = update_rule("sgd", momentum=0.0, weight_decay=0.0)
    step = LanguageStep(LLAMA, rule, 0.0, privacy=privacy)
    params = jax.tree.map(lambda w: w * (8.0 if w.ndim > 1 else 1.0), LLAMA.init(jax.random.key(1)))
    blocks = [params[name] for name in own_items(LLAMA, False)]
    trainable = {"block_0": blocks[1]} | {name: params[name] for name in ends}
    others = {name: params[name] for name in ("embed", "head") if name not in ends}
    frozen = FrozenModel(
        stack.FrozenBlocks({}, stack.stack_trees([blocks[0], blocks[2]]), jnp.int32(1)), others
    )
    roles = block_roles(1) + tuple(ends)
    states = init_states(rule, trainable, roles)
    return jax.jit(train_step(step, roles)), (trainable, states, frozen, {})


def text_moved(privacy, rows, ends=()):
    """What a step moves, by role, and its sums."""
    run, start = text_step_of(privacy, ends)
    new, _, stats = run(*start, rows, KEY, RATE)
    return jax.tree.map(jnp.subtract, new, start[0]), stats


@pytest.mark.parametrize("ends", [(), ("embed",)])
def test_rows_of_as_many_tokens_make_the_ordinary_step(ends):
    ours, stats = text_moved(FREE, text_rows(), ends)
    plain, plain_stats = text_moved(None, text_rows(), ends)
    assert close(ours, plain, rtol=1e-5, atol=1e-6)
    assert close(stats, plain_stats)
    assert norm(plain) > 1e-3


def test_a_row_counts_once_however_many_tokens_it_has():
    rows = text_rows((7, 2, 5, 0))
    alone = []
    for row in range(3):
        one = rows._replace(weight=rows.weight * (jnp.arange(4) == row)[:, None])
        alone.append(text_moved(None, one)[0])
    mean = jax.tree.map(lambda *parts: sum(parts) / 3, *alone)
    assert close(text_moved(FREE, rows)[0], mean, rtol=1e-4, atol=1e-6)


def test_a_row_moves_the_update_by_no_more_than_the_clip_over_the_rows():
    privacy = Privacy(clip=0.01, noise=0.0)
    whole, _ = text_moved(privacy, text_rows((7, 7, 7, 7)))
    fewer, _ = text_moved(privacy, text_rows((7, 7, 7, 0)))
    influence = jax.tree.map(lambda a, b: a - 3 / 4 * b, whole, fewer)
    bound = 0.1 * 0.01 / 4
    assert 0.99 * bound < norm(influence) <= 1.001 * bound


def test_rows_are_clipped_by_blocks_and_ends_together():
    privacy = Privacy(clip=0.01, noise=0.0)
    alone, _ = text_moved(privacy, text_rows((7, 0, 0, 0)), ("embed",))
    np.testing.assert_allclose(norm(alone), 0.1 * 0.01, rtol=1e-3)


def test_a_node_s_memory_counts_a_gradient_for_every_example():
    model, params = small_model("mlp")
    size = num_bytes(select(params, ("fc4",)))
    plain, private = small_step(model), small_step(model, privacy=FREE)
    assert state_bytes(plain, ("fc4",), examples=8).gradients == size
    assert state_bytes(private, ("fc4",), examples=8).gradients == 9 * size


def test_without_privacy_gradients_pass_as_they_are():
    gradients = {"fc1": jnp.ones(3)}
    assert noised(None, gradients, jnp.ones(4), KEY) is gradients
    assert clipped(None, norm) is norm
