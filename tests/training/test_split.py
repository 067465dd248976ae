"""Gradients over a cut model: those of the whole at every cut, nothing computed twice; local losses
stay apart.
"""

import functools
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from snake_jax.costs.compiled import compiled_cost
from snake_jax.costs.shapes import BatchShape, step_program
from snake_jax.models import registry
from snake_jax.params import select
from snake_jax.training.image_step import ImageBatch, local_epoch, local_gradients
from snake_jax.training.split import AUXILIARY, local_loss_gradients, split_gradients
from tests.helpers import (
    batches,
    close,
    random_examples,
    same_bits,
    small_model,
    small_step,
    states_for,
)

LAYERS = {"mlp": 4, "cnn": 5}
DROPOUT = {"plain": 0.0, "dropout": 0.4}
KEY = jax.random.key(5)


def found_by(gradients, step, params, batch):
    """Mean loss and gradients of a batch."""
    found, loss_sum = gradients(step)(params, {}, {}, batch, KEY)
    return loss_sum / batch.weight.sum(), found


@pytest.fixture(autouse=True, scope="module")
def _quick_compilation():
    """The compiler's late optimisations take half of its time; its counts are made before them."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def all_cuts(count):
    """Every cut of `count` layers, every two cuts, and a segment for each layer."""
    several = {number: list(combinations(range(1, count), number)) for number in (1, 2, count - 1)}
    return [cuts for number in several for cuts in several[number]]


def some_batch(dtype=jnp.float32):
    """Six noise images, the last two of them padding."""
    images, labels = random_examples(6)
    x = (images.astype(dtype) / 255 - 0.5) * 4
    return ImageBatch(x, labels, jnp.array([1.0, 1, 1, 1, 0, 0]))


def by_hand(model, params, batch):
    """Loss and gradients of the uncut model, written without the library's steps."""

    def loss(params):
        logits = model.apply(params, batch.x, train=True, key=KEY if model.stochastic else None)
        picked = jax.nn.log_softmax(logits)[jnp.arange(6), batch.labels]
        return -(picked * batch.weight).sum() / batch.weight.sum()

    return jax.jit(jax.value_and_grad(loss))(params)


@functools.cache
def reference(name, dropout):
    """A model, its parameters, a batch, and the whole model's loss and gradients on it."""
    model, params = small_model(name, dropout=DROPOUT[dropout], conv="matmul")
    return model, params, some_batch(), *by_hand(model, params, some_batch())


@pytest.mark.parametrize("dropout", DROPOUT)
@pytest.mark.parametrize(
    ("name", "cuts"), [(name, cuts) for name, n in LAYERS.items() for cuts in all_cuts(n)]
)
def test_a_cut_model_has_the_gradients_of_the_whole(name, cuts, dropout):
    model, params, batch, loss, gradients = reference(name, dropout)
    step = small_step(model)
    found = jax.jit(lambda params: found_by(split_gradients(cuts), step, params, batch))(params)
    assert found[1].keys() == params.keys()
    assert close(found, (loss, {n: gradients[n] for n in found[1]}))


def test_dropout_makes_a_difference_that_the_cuts_keep():
    (*_, plain, _), (*_, dropped, _) = reference("cnn", "plain"), reference("cnn", "dropout")
    assert not np.allclose(plain, dropped, rtol=1e-3)


@pytest.mark.parametrize("cuts", [(2,), (1, 2, 3, 4)])
def test_padding_has_no_part_in_the_gradients(cuts):
    model, params, batch, *_ = reference("cnn", "plain")
    step = small_step(model)
    gradients = jax.jit(lambda batch: found_by(split_gradients(cuts), step, params, batch))
    other = batch._replace(x=batch.x.at[4:].set(9.0), labels=batch.labels.at[4:].set(0))
    assert close(gradients(batch), gradients(other))


def test_in_bfloat16_a_cut_step_computes_what_a_whole_one_does():
    model, params, *_ = reference("mlp", "plain")
    step, batch = small_step(model, compute_dtype=jnp.bfloat16), some_batch(jnp.bfloat16)
    cut, whole = (
        jax.jit(lambda p, g=g: found_by(g, step, p, batch))(params)
        for g in (split_gradients((1, 3)), local_gradients)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(cut[1])} == {jnp.dtype(jnp.float32)}
    assert close(cut, (whole[0], {n: whole[1][n] for n in cut[1]}))


def lowered_flops(step, model):
    """FLOPs of an epoch's program as written down, before the compiler merges what is computed
    twice.
    """
    program = step_program(step, model.layer_names, BatchShape(32), "float32")
    return jax.jit(program.function).lower(*program.arguments).cost_analysis()["flops"]


@functools.cache
def wide_cnn():
    return registry.build("cnn", 4, (8, 8, 3), conv="matmul")


@pytest.mark.parametrize("cuts", [(1,), (2,), (4,), (2, 4), (1, 2, 3, 4)])
def test_a_cut_step_writes_nothing_down_twice(cuts):
    model = wide_cnn()
    whole, cut = (
        lowered_flops(s, model)
        for s in (small_step(model), small_step(model, gradients=split_gradients(cuts)))
    )
    assert cut == pytest.approx(whole, rel=0.01)


@pytest.mark.parametrize("cuts", [(2,), (1, 2, 3, 4)])
def test_the_compiler_counts_a_cut_step_as_it_counts_a_whole_one(cuts):
    model = wide_cnn()
    count = lambda step: compiled_cost(step, model.layer_names, 32).flops  # noqa: E731
    whole, cut = count(small_step(model)), count(small_step(model, gradients=split_gradients(cuts)))
    assert cut == pytest.approx(whole, rel=0.01)


# Accelerated FL: a loss on each side


def with_head(name, cut):
    """A model's reference and a head on the output of its layer `cut - 1`."""
    model, params, batch, *_ = reference(name, "plain")
    head = registry.linear_head(AUXILIARY, 4)
    at_cut = jax.eval_shape(lambda p, x: model.apply(p, x, 0, cut), params, batch.x)
    return (
        model,
        {**params, AUXILIARY: jax.jit(head.init, static_argnums=1)(jax.random.key(9), at_cut)},
        batch,
        head,
    )


def local_losses(model, batch, cut, head):
    step = small_step(model, auxiliary=(head,))
    gradients = local_loss_gradients(cut, head)
    return jax.jit(lambda params: found_by(gradients, step, params, batch))


CUTS = [(name, cut) for name, n in LAYERS.items() for cut in range(1, n)]


@pytest.mark.parametrize(("name", "cut"), CUTS)
def test_two_local_losses_are_two_losses_written_apart(name, cut):
    model, params, batch, head = with_head(name, cut)
    lower_names, upper_names = model.layer_names[:cut], model.layer_names[cut:]

    def cross_entropy(logits):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return (losses * batch.weight).sum() / batch.weight.sum()

    def lower(part):
        return cross_entropy(
            head.apply(part[AUXILIARY], model.apply(part, batch.x, 0, cut, train=True), True, None)
        )

    def upper(part, sent):
        return cross_entropy(model.apply(part, sent, cut, train=True))

    sent = jax.jit(lambda params: model.apply(params, batch.x, 0, cut, train=True))(params)
    at_node = jax.jit(jax.grad(lower))(select(params, (*lower_names, AUXILIARY)))
    loss, at_server = jax.jit(jax.value_and_grad(upper))(select(params, upper_names), sent)
    found = local_losses(model, batch, cut, head)(params)
    assert close(found, (loss, at_node | at_server))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "cut"), [("mlp", 2), ("cnn", 1), ("cnn", 3)])
def test_neither_side_of_local_losses_knows_the_others_layers(name, cut, seed):
    model, params, batch, head = with_head(name, cut)
    gradients = local_losses(model, batch, cut, head)

    def perturbed(names):
        noise = lambda w: w + jax.random.normal(jax.random.key(seed), w.shape)  # noqa: E731
        return gradients({**params, **{n: jax.tree.map(noise, params[n]) for n in names}})[1]

    lower, upper = model.layer_names[:cut], model.layer_names[cut:]
    before = gradients(params)[1]
    other_server, other_head = perturbed(upper), perturbed([AUXILIARY])
    assert same_bits(select(other_server, (*lower, AUXILIARY)), select(before, (*lower, AUXILIARY)))
    assert not same_bits(select(other_server, upper), select(before, upper))
    assert same_bits(select(other_head, upper), select(before, upper))
    assert not same_bits(select(other_head, lower), select(before, lower))


# Clipping by party


def one_step(step, params, norm):
    """What a step of plain descent at rate 1 subtracts from each layer."""
    step = step._replace(rule=optax.identity(), clip_norm=norm)
    epoch = jax.jit(local_epoch(step, tuple(params)))
    states = (
        states_for(step, params) if not step.auxiliary else {n: optax.EmptyState() for n in params}
    )
    rows = batches([[0, 1, 2, 3, 4, 5]])
    after, *_ = epoch(params, states, {}, {}, random_examples(6), rows, jax.random.key(0), 1.0)
    return jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), params, after)


def norm_of(trees):
    return np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(trees)))


@pytest.mark.parametrize(
    "parties", [(("fc1", "fc2"), ("fc3", "fc4")), (("fc1", "fc4"), ("fc2", "fc3"))]
)
def test_each_party_clips_its_own_gradients_by_their_own_norm(parties):
    model, params, *_ = reference("mlp", "plain")
    step = small_step(model, gradients=split_gradients((2,)), parties=parties)
    free = one_step(step, params, 0.0)
    norms = sorted(norm_of(select(free, party)) for party in parties)
    bound = float(np.mean(norms))  # one party is above it, one below
    clipped = one_step(step, params, bound)
    for party in parties:
        norm = norm_of(select(free, party))
        expected = jax.tree.map(
            lambda g, norm=norm: g * min(1.0, bound / norm), select(free, party)
        )
        assert close(select(clipped, party), expected)
    together = one_step(step._replace(parties=()), params, bound)
    assert norm_of(together) == pytest.approx(bound, rel=1e-5)
    assert not close(together, clipped)


def test_a_cut_step_without_its_own_parties_is_clipped_as_a_whole_one():
    model, params, *_ = reference("mlp", "plain")
    whole, cut = small_step(model), small_step(model, gradients=split_gradients((1, 3)))
    assert close(one_step(whole, params, 0.1), one_step(cut, params, 0.1))


def test_each_layer_runs_forward_once():
    calls = []
    model, params, batch, *_ = reference("mlp", "plain")
    counted = tuple(
        layer._replace(apply=lambda *a, layer=layer: (calls.append(layer.name), layer.apply(*a))[1])
        for layer in model.layers
    )
    step = small_step(model._replace(layers=counted))
    jax.eval_shape(lambda p: found_by(split_gradients((1, 2, 3)), step, p, batch), params)
    assert calls == list(model.layer_names)
