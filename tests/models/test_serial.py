"""Serial adapters, soft prefixes and span heads on both families of language models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snake_jax.errors import UserError
from snake_jax.models import prefix as prefixes
from snake_jax.models import serial, span
from snake_jax.models.generation import generate
from snake_jax.models.hub import load_pretrained
from snake_jax.models.language import Tokens
from snake_jax.models.prefix import Prefix
from snake_jax.models.span import Spans
from tests.helpers import same_bits
from tests.models.make_golden import FOLDER

VARIANTS = ("llama_gqa_tied", "opt_pre_norm", "opt_post_norm_projected")
IDS = np.array([[3, 1, 4, 1, 5, 9], [2, 7, 1, 8, 2, 8]], np.int32)


@functools.cache
def loaded(variant):
    model, params = load_pretrained(FOLDER / variant)
    return model, jax.tree.map(jnp.asarray, params)


def adapters_of(model, width=4):
    blocks = model.layer_names[1:-1]
    return serial.init(jax.random.key(0), blocks, model.architecture.hidden_size, width)


def stirred(tree):
    """The same with all values away from zero."""
    leaves, shape = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    moved = [x + 0.3 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(shape, moved)


@pytest.mark.parametrize("variant", VARIANTS)
def test_fresh_adapters_change_no_bit(variant):
    model, params = loaded(variant)
    plugged = model.apply(params, IDS, adapters=adapters_of(model))
    assert same_bits(plugged, model.apply(params, IDS))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_bottleneck_stands_after_attention_and_after_the_mlp(variant):
    model, params = loaded(variant)
    base = model.apply(params, IDS)
    adapters = stirred(adapters_of(model))
    both = model.apply(params, IDS, adapters=adapters)
    for branch in serial.BRANCHES:
        alone = {
            name: {"serial": {branch: tree["serial"][branch]}} for name, tree in adapters.items()
        }
        one = model.apply(params, IDS, adapters=alone)
        assert not np.allclose(one, base, atol=1e-3)
        assert not np.allclose(one, both, atol=1e-3)


def test_a_block_with_adapters_is_houlsbys_formula():
    model, params = loaded("llama_gqa_tied")
    name = model.layer_names[1]
    tree = stirred(adapters_of(model))[name]
    hidden = model.apply(params, IDS, stop=1)
    plain = model.block(params[name], {}, hidden)
    # Without an MLP's output the block is x + attention; its adapter sees the attention's output.
    muted = jax.tree.map(jnp.copy, params[name])
    muted["mlp"]["down_proj"]["kernel"] = jnp.zeros_like(muted["mlp"]["down_proj"]["kernel"])
    attended = model.block(muted, {}, hidden).values - hidden.values
    only = {"serial": {"attention": tree["serial"]["attention"]}}
    found = model.block(muted, only, hidden).values
    weights = tree["serial"]["attention"]
    narrow = jax.nn.gelu(attended @ weights["down"]["kernel"] + weights["down"]["bias"])
    bottleneck = narrow @ weights["up"]["kernel"] + weights["up"]["bias"]
    assert np.allclose(found, hidden.values + attended + bottleneck, atol=1e-5)
    assert not np.allclose(found, plain.values, atol=1e-3)


def test_adapters_stand_beside_lora():
    model, params = loaded("opt_pre_norm")
    name = model.layer_names[1]
    hidden = model.apply(params, IDS, stop=1)
    width = model.architecture.hidden_size
    pair = {"a": jnp.full((width, 1), 0.1), "b": jnp.full((1, width), 0.1)}
    lora = {"self_attn": {"q_proj": pair, "v_proj": pair}}
    tree = stirred(adapters_of(model))[name]
    together = model.block(params[name], {**lora, **tree}, hidden).values
    for alone in (lora, tree):
        assert not np.allclose(together, model.block(params[name], alone, hidden).values, atol=1e-3)


def test_adapters_need_a_width():
    model, _ = loaded("opt_pre_norm")
    with pytest.raises(UserError, match="width of at least 1"):
        adapters_of(model, width=0)


# Prefixes


@pytest.mark.parametrize("variant", VARIANTS)
def test_generation_after_embedded_tokens_is_generation_after_the_tokens(variant):
    model, params = loaded(variant)
    prompts = [[3, 1, 4, 1, 5], [7, 2, 9]]
    heads, tails = [[3, 1, 4], [7]], [[1, 5], [2, 9]]
    ids = np.zeros((2, 4), np.int32)
    for row, head in zip(ids, heads, strict=True):
        row[: len(head)] = head
    values = model.embed(params["embed"], model.tokens(ids), jnp.dtype("float32")).values
    # Padding may hold anything.
    is_padding = np.arange(4) >= np.array([[3], [1]])
    values = jnp.where(is_padding[..., None], 1e3, values)
    given = Prefix(values, jnp.array([3, 1], jnp.int32))
    new = generate(model, params, tails, max_new_tokens=6, prefix=given)
    assert new == generate(model, params, prompts, max_new_tokens=6)
    assert new != generate(model, params, tails, max_new_tokens=6)


def test_texts_follow_their_prefix_without_a_gap():
    model, params = loaded("llama_gqa_tied")
    lengths = jnp.array([2, 3], jnp.int32)
    positions = jnp.arange(2) + lengths[:, None]
    embedded = model.embed(params["embed"], Tokens(IDS[:, :2], positions), jnp.dtype("float32"))
    values = jnp.arange(2 * 4 * embedded.values.shape[-1], dtype=jnp.float32).reshape(2, 4, -1)
    joined = prefixes.before(Prefix(values, lengths), embedded)
    for row, length in enumerate((2, 3)):
        assert same_bits(joined.values[row, :length], values[row, :length])
        assert same_bits(joined.values[row, length : length + 2], embedded.values[row])


def test_a_prefix_counts_among_the_positions():
    model, params = loaded("opt_pre_norm")
    width = model.architecture.hidden_size
    given = Prefix(jnp.zeros((1, model.max_positions, width)), jnp.array([1], jnp.int32))
    with pytest.raises(UserError, match="positions"):
        generate(model, params, [[3]], max_new_tokens=1, prefix=given)


def test_a_fresh_projection_gives_vectors_as_large_as_tokens():
    model, params = loaded("llama_gqa_tied")
    size = prefixes.token_size(model, params)
    projection = prefixes.init_projection(jax.random.key(0), 24, model, size)
    given = jax.random.normal(jax.random.key(1), (8, 16, 24))
    found = prefixes.project(projection, given)
    assert found.shape == (8, 16, model.architecture.hidden_size)
    assert float(jnp.sqrt(jnp.square(found).mean())) == pytest.approx(size, rel=0.2)


# Spans


def test_the_likeliest_span_is_one_that_ends_after_it_begins_and_is_not_too_long():
    start = jnp.array([[0.0, 9.0, 1.0, 5.0], [-9.0, 0.0, 4.0, 0.0]])
    stop = jnp.array([[8.0, 0.0, 1.0, 7.0], [9.0, 1.0, 2.0, 2.5]])
    first, last = span.best((start, stop), 2)
    # Row 0: 9 + 7 is three tokens long, 9 + 8 ends before it begins; 5 + 7 is best.
    assert first.tolist() == [3, 2]
    assert last.tolist() == [3, 3]


def test_only_the_context_holds_answers_and_what_stands_nowhere_costs_nothing():
    values = jax.random.normal(jax.random.key(0), (2, 5, 3))
    allowed = jnp.array([[False, False, True, True, True]] * 2)
    logits = span.scores(span.init(jax.random.key(1), 3), values, allowed)
    first, _ = span.best(logits, 5)
    assert min(first.tolist()) >= 2
    spans = Spans(jnp.array([2, 0]), jnp.array([3, 0]), jnp.array([1.0, 0.0]))
    lost = span.losses(logits, spans)
    log_p = [jax.nn.log_softmax(one[0, 2:]) for one in logits]
    assert float(lost[0]) == pytest.approx(-float(log_p[0][0] + log_p[1][1]) / 2, rel=1e-5)
    assert float(lost[1]) == 0.0
