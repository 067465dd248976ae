"""A cut language model: the gradients of the whole at every cut, whatever trains."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snake_jax.models import lora
from snake_jax.models.presets import from_preset
from snake_jax.training import stack
from snake_jax.training.optimizers import init_states, update_rule
from snake_jax.training.split import cut_gradients
from snake_jax.training.text_cut import text_cuttable
from snake_jax.training.text_step import (
    FrozenModel,
    LanguageStep,
    TextBatch,
    block_roles,
    own_items,
    text_gradients,
    text_objective,
    train_step,
)
from tests.sweeps import sweep

pytestmark = pytest.mark.usefixtures("quick_compilation")

WIDTHS = {"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {"intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8, **WIDTHS}
MODELS = {
    "llama": from_preset("tiny-llama", tie_word_embeddings=False, **LLAMA),
    "tied": from_preset("tiny-llama", **LLAMA),
    "opt": from_preset("tiny-opt", ffn_dim=24, **WIDTHS),
}
CUTS = ((1,), (2,), (3,), (1, 2, 3))  # each of the four layers' borders, and all
KEY = jax.random.key(3)


@functools.cache
def weights(name):
    """Larger than fresh ones, so that no part of the model is nearly linear."""

    def larger(leaf):
        return leaf * 6.0 if leaf.ndim > 1 else leaf

    return jax.tree.map(larger, MODELS[name].init(jax.random.key(1)))


def adapters_of(block, index):
    """Adapters of rank 2 at a block's matrices; none of their numbers is 0."""
    fresh = lora.init(jax.random.key(index), block, lora.Lora(2))
    leaves, structure = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(100 + index), len(leaves))
    noise = [0.3 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, noise)


def parted(name, adapted):
    """What trains, by role, and what does not: all layers, or the adapters of all blocks."""
    params = weights(name)
    blocks = [params[item] for item in own_items(MODELS[name], False)]
    roles = block_roles(len(blocks))
    ends = {"embed": params["embed"], "head": params["head"]}
    own, base, frozen_ends = blocks, {}, {}
    if adapted:
        own = [adapters_of(block, index) for index, block in enumerate(blocks)]
        base, frozen_ends = stack.stack_trees(blocks), ends
    trainable = dict(zip(roles, own, strict=True))
    if not adapted:
        trainable |= ends
    none = jax.tree.map(lambda leaf: leaf[None][:0], own[0])
    return trainable, FrozenModel(stack.FrozenBlocks(base, none, jnp.int32(0)), frozen_ends)


def rows(leading=()):
    """Two rows of 6 tokens of two texts each, the last token padding."""
    shape = (*leading, 2, 6)
    keys = jax.random.split(jax.random.key(0), 2)
    ids, targets = (jax.random.randint(key, shape, 0, 24) for key in keys)
    positions = jnp.broadcast_to(jnp.array([0, 1, 2, 0, 1, 0]), shape)
    segments = jnp.broadcast_to(jnp.array([1, 1, 1, 2, 2, 0]), shape)
    return TextBatch(ids, targets, (segments > 0).astype(jnp.float32), positions, segments)


def make(name, adapted, **changes):
    rule = update_rule("sgd", momentum=0.0, weight_decay=0.0)
    return LanguageStep(MODELS[name], rule, 0.0, adapted=adapted, **changes)


def found_by(gradients, step, trainable, frozen):
    function = gradients(step)
    return jax.jit(lambda own: function(own, frozen, {}, rows(), KEY))(trainable)


def same_to_1e_6(found, wanted):
    """Every gradient, to 1e-6 of the largest of its layer."""
    (gradients, loss), (whole, whole_loss) = found, wanted
    assert gradients.keys() == whole.keys()
    assert float(loss) == pytest.approx(float(whole_loss), rel=1e-6)
    for name, tree in whole.items():
        for one, other in zip(jax.tree.leaves(gradients[name]), jax.tree.leaves(tree), strict=True):
            largest = float(jnp.abs(other).max())
            assert largest > 0
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * max(1.0, largest))


@pytest.mark.parametrize(
    ("name", "adapted"),
    sweep(
        [("llama", False), ("tied", False), ("opt", False), ("llama", True)],
        quick=[("tied", False), ("llama", True)],
    ),
)
def test_at_every_cut_the_gradients_are_those_of_the_whole(name, adapted):
    step = make(name, adapted)
    trainable, frozen = parted(name, adapted)
    wanted = found_by(text_gradients, step, trainable, frozen)
    for cuts in CUTS:
        found = found_by(cut_gradients(cuts, text_cuttable), step, trainable, frozen)
        same_to_1e_6(found, wanted)


def test_dropout_draws_at_a_cut_what_it_draws_in_the_whole():
    model = MODELS["llama"]._replace(dropout=0.3)
    step = make("llama", False, recompute="none")._replace(model=model)
    trainable, frozen = parted("llama", False)
    wanted = found_by(text_gradients, step, trainable, frozen)
    undropped, _ = text_objective(make("llama", False))(trainable, frozen, {}, rows(), KEY)
    assert not np.allclose(undropped * rows().weight.sum(), wanted[1], rtol=1e-3)
    same_to_1e_6(found_by(cut_gradients((2,), text_cuttable), step, trainable, frozen), wanted)


def test_a_cut_step_trains_what_is_given_and_no_more():
    """The adapters change, each party clips the gradients that it knows, the base is as it was."""
    trainable, frozen = parted("llama", True)
    before = jax.tree.map(np.array, frozen)
    parties = (("block_0",), ("block_1",))
    how = {"gradients": cut_gradients((2,), text_cuttable), "clip_norm": 0.05}
    rule = update_rule("sgd", momentum=0.0, weight_decay=0.0)
    step = LanguageStep(MODELS["llama"], rule, adapted=True, parties=parties, **how)
    roles = tuple(trainable)
    states = init_states(step.rule, trainable, roles)
    run = jax.jit(train_step(step, roles))
    new, _, stats = run(trainable, states, frozen, {}, rows((1,)), KEY, jnp.float32(1.0))

    assert bool(stats.finite)
    for party in parties:
        moved = 0.0
        for role in party:
            for one, other in zip(
                jax.tree.leaves(new[role]), jax.tree.leaves(trainable[role]), strict=True
            ):
                moved += float(((one - other) ** 2).sum())
        assert moved**0.5 == pytest.approx(0.05, rel=1e-4)
    for one, other in zip(jax.tree.leaves(frozen), jax.tree.leaves(before), strict=True):
        assert np.asarray(one).tobytes() == other.tobytes()


def test_below_the_lowest_adapters_no_gradient_is_computed():
    """The node that has nothing but the frozen embedding is sent none."""
    step = make("llama", True)
    trainable, frozen = parted("llama", True)

    def backward(cuts):
        function = cut_gradients(cuts, text_cuttable)(step)
        text = str(jax.make_jaxpr(lambda own: function(own, frozen, {}, rows(), KEY))(trainable))
        return text.count("dot_general")

    # Both segments of the second cut have a block; of the first, one has both and the other none.
    whole = str(
        jax.make_jaxpr(lambda own: text_gradients(step)(own, frozen, {}, rows(), KEY))(trainable)
    )
    assert backward((1,)) <= whole.count("dot_general") < backward((2,))
