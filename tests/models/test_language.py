"""Language models as layers: slices, dropout, adapters, tables as stored, published sizes."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from snake_jax.errors import UserError
from snake_jax.kernels.dequantize import dense, take_rows
from snake_jax.models.families import family_of
from snake_jax.models.language import Hidden, Tokens, build, layer_names
from snake_jax.models.presets import PRESETS, from_preset
from snake_jax.params import num_params
from tests.helpers import same_bits

TINY = ("tiny-llama", "tiny-opt")
# Of the published checkpoints; the 350m table is 512 wide.
PUBLISHED = {
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "llama-3-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "qwen3-0.6b": 596_049_920,
    "qwen3-4b": 4_022_468_096,
    "gemma-3-1b": 999_885_952,
    "mistral-7b": 7_241_732_096,
    "phi-3-mini": 3_821_079_552,
    "gpt2": 124_439_808,
    "smollm2-135m": 134_515_008,
}
# Of the same shape as a smaller one.
LARGER_ALIKE = ("opt-2.7b", "opt-6.7b", "llama-3.2-3b")


@functools.cache
def tiny(name, **overrides):
    model = from_preset(name, num_hidden_layers=2, **overrides)
    return model, jax.jit(model.init)(jax.random.key(0))


IDS = jnp.asarray(np.random.default_rng(0).integers(264, size=(2, 12)), jnp.int32)


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_number_of_parameters(name):
    assert num_params(jax.eval_shape(from_preset(name).init, jax.random.key(0))) == PUBLISHED[name]


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name not in LARGER_ALIKE])
def test_presets_have_as_many_parameters_as_in_transformers(name):
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    architecture = PRESETS[name]
    family = family_of(architecture)
    config = AutoConfig.for_model(family.model_type, **family.write(architecture))
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in theirs.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("name", TINY)
def test_layers_are_named_and_laid_out_as_said(name):
    model, params = tiny(name)
    assert model.layer_names == ("embed", "block_00", "block_01", "head")
    assert set(params) == set(model.layer_names)
    assert model.num_blocks == 2
    assert model.vocab_size == 264
    assert params["embed"]["tokens"]["embedding"].shape == (264, 64)
    assert params["block_01"]["self_attn"]["k_proj"]["kernel"].shape == (
        64,
        32 if name == "tiny-llama" else 64,
    )
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    assert layer_names(101)[1] == "block_000"


def test_initial_weights_spread_as_the_configuration_says():
    _, params = tiny("tiny-opt", init_std=0.5)
    assert np.isclose(params["block_00"]["fc1"]["kernel"].std(), 0.5, rtol=0.05)
    assert np.isclose(params["embed"]["tokens"]["embedding"].std(), 0.5, rtol=0.05)
    assert not params["block_00"]["fc1"]["bias"].any()


@pytest.mark.parametrize("name", TINY)
def test_every_cut_composes_to_the_whole(name):
    model, params = tiny(name, dropout=0.5)
    key = jax.random.key(3)
    whole = model.apply(params, IDS, key=key)
    for cut in (1, 2, 3):
        below = model.apply(params, IDS, 0, cut, key=key)
        assert isinstance(below, Hidden)
        assert same_bits(model.apply(params, below, cut, key=key), whole)
    below = model.apply(params, IDS, 0, 2, key=key)
    block = model.block(params["block_01"], {}, below, jax.random.fold_in(key, 2))
    assert same_bits(model.apply(params, below, 2, 3, key=key).values, block.values)


@pytest.mark.parametrize("name", TINY)
def test_dropout_acts_with_a_key_only_and_follows_it(name):
    model, params = tiny(name, dropout=0.5)
    calm = model.apply(params, IDS)
    one, other = (model.apply(params, IDS, key=jax.random.key(k)) for k in (0, 1))
    assert model.stochastic
    assert same_bits(calm, tiny(name)[0].apply(params, IDS, key=jax.random.key(0)))
    assert not np.allclose(one, calm, atol=1e-3)
    assert not np.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("name", TINY)
def test_adapters_applied_equal_adapters_merged(name):
    model, params = tiny(name)
    key = jax.random.key(4)
    weights = params["block_01"]
    linear = [
        path for path, _ in jax.tree_util.tree_leaves_with_path(weights) if path[-1].key == "kernel"
    ]
    adapters, merged = {}, jax.tree.map(lambda leaf: leaf, weights)
    for index, path in enumerate(linear):
        at, into = adapters, merged
        for part in path[:-1]:
            at, into = at.setdefault(part.key, {}), into[part.key]
        ka, kb = jax.random.split(jax.random.fold_in(key, index))
        at["a"] = 0.3 * jax.random.normal(ka, (into["kernel"].shape[0], 3))
        at["b"] = 0.3 * jax.random.normal(kb, (3, into["kernel"].shape[1]))
        into["kernel"] = into["kernel"] + at["a"] @ at["b"]
    assert len(linear) == (7 if name == "tiny-llama" else 6)
    applied = model.apply(params, IDS, adapters={"block_01": adapters})
    np.testing.assert_allclose(
        applied, model.apply({**params, "block_01": merged}, IDS), rtol=1e-4, atol=1e-5
    )
    assert not np.allclose(applied, model.apply(params, IDS), atol=1e-2)


def quantized(table, kind):
    if kind == "int8":
        return qwix.quantize(table, jnp.int8, channelwise_axes=[0])
    return qwix.quantize(table, "nf4", channelwise_axes=[0], tiled_axes={1: 64})


def stored_leaf(kind, path, leaf):
    if leaf.ndim < 2:
        return leaf
    return (
        quantized(leaf, kind)
        if path[-1].key == "embedding"
        else quantized(leaf.T, kind).swapaxes(0, 1)
    )


def thaw(tree):
    return jax.tree.map(
        lambda leaf: dense(leaf, jnp.float32),
        tree,
        is_leaf=lambda leaf: isinstance(leaf, qwix.QArray),
    )


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_rows_of_a_quantized_table_are_those_of_the_table(kind):
    table = quantized(jax.random.normal(jax.random.key(0), (264, 128)), kind)
    rows = take_rows(table, IDS, jnp.float32)
    assert rows.shape == (2, 12, 128)
    assert same_bits(rows, dense(table, jnp.float32)[IDS])


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_only_the_rows_that_are_read_are_dequantized(kind):
    table = jax.eval_shape(lambda: quantized(jnp.zeros((5000, 128)), kind))
    program = str(jax.make_jaxpr(take_rows, static_argnums=2)(table, IDS, jnp.float32))
    assert "f32[2,12,128]" in program
    assert "f32[5000,128]" not in program


@pytest.mark.parametrize(("name", "kind"), [("tiny-llama", "nf4"), ("tiny-opt", "int8")])
def test_quantized_layers_run_with_what_they_stand_for(name, kind):
    model, params = tiny(name)
    stored = jax.tree_util.tree_map_with_path(functools.partial(stored_leaf, kind), params)
    forward = jax.jit(model.apply, static_argnames="prepare")
    expected = forward(thaw(stored), IDS)
    np.testing.assert_allclose(forward(stored, IDS, prepare=thaw), expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(expected, forward(params, IDS), atol=1e-3)


def test_equal_arguments_build_equal_models_and_compile_once():
    one, again = (from_preset("tiny-opt", dropout=0.1) for _ in range(2))
    assert one == again
    assert hash(one) == hash(again)
    assert from_preset("tiny-opt") != one
    traced = []
    positions = jax.jit(lambda model: traced.append(model) or model.max_positions, static_argnums=0)
    assert positions(one) == positions(again)
    assert len(traced) == 1


def test_a_block_takes_its_segments_from_what_it_is_given():
    model, params = tiny("tiny-llama")
    positions = jnp.broadcast_to(jnp.arange(12, dtype=jnp.int32), IDS.shape)
    one = model.embed(params["embed"], Tokens(IDS, positions, jnp.ones_like(IDS)), jnp.float32)
    two = one._replace(segments=jnp.asarray([[1] * 6 + [2] * 6] * 2))
    whole, parted = (
        model.block(params["block_00"], {}, hidden, None).values for hidden in (one, two)
    )
    assert same_bits(whole[:, :6], parted[:, :6])
    assert not np.allclose(whole[:, 6:], parted[:, 6:], atol=1e-3)


def test_rows_longer_than_the_model_has_positions_are_refused():
    model = from_preset("tiny-opt", max_position_embeddings=8)
    with pytest.raises(UserError, match="12 tokens in a row, tiny-opt has 8 positions"):
        model.apply({"embed": {}}, IDS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_preset("opt-1b"), "opt-1b: not one of opt-125m"),
        (
            lambda: from_preset("tiny-opt", width=3),
            "tiny-opt has no setting width; it has vocab_size",
        ),
        (lambda: from_preset("tiny-opt", dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (
            lambda: build(PRESETS["tiny-llama"], dropout=-0.1),
            r"dropout must be in \[0, 1\), got -0.1",
        ),
    ],
)
def test_wrong_presets_are_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.parametrize("name", TINY)
def test_a_model_survives_pickling_and_stays_equal(name):
    model, params = tiny(name, dropout=0.3)
    travelled = pickle.loads(pickle.dumps(model))
    assert travelled == model
    assert hash(travelled) == hash(model)
    assert same_bits(travelled.init(jax.random.key(0)), model.init(jax.random.key(0)))
    for key in (None, jax.random.key(1)):
        assert same_bits(travelled.apply(params, IDS, key=key), model.apply(params, IDS, key=key))
