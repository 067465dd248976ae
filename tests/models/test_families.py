"""Families of decoders beyond Llama and OPT: what config.json refuses, windows, generation,
quantized weights and adapters, each by the golden models of `make_golden`.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from snake_jax.errors import UserError
from snake_jax.models import families, hub, lora
from snake_jax.models.generation import generate
from snake_jax.models.hub import load_pretrained
from snake_jax.models.language import Tokens, build, stop_ids
from snake_jax.models.presets import PRESETS, from_preset
from snake_jax.training.quantization import freeze, thaw
from tests.helpers import same_bits
from tests.models.make_golden import FOLDER, NEWER, VARIANTS, torch_logits
from tests.sweeps import sweep

pytestmark = pytest.mark.usefixtures("quick_compilation")

# peft asks transformers 5 by its old name.
peft_warns = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated and will be removed in v6. "
    "Use `is_activation_checkpointing` instead.:FutureWarning"
)


@functools.cache
def loaded(variant):
    """The model, its parameters on the device, the golden ids and logits, and a compiled pass."""
    model, params = load_pretrained(FOLDER / variant)
    stored = load_file(FOLDER / variant / "golden.safetensors")
    on_device = jax.tree.map(jnp.asarray, params)
    forward = jax.jit(model.apply)
    return model, on_device, stored["ids"], stored["logits"], forward


@pytest.mark.parametrize("variant", sweep(NEWER, quick=("gemma3", "gpt2")))
def test_greedy_generation_is_the_argmax_of_full_passes_beyond_the_window(variant):
    model, params, ids, _, forward = loaded(variant)
    prompts = [ids[0, :14].tolist(), ids[1, :5].tolist()]
    new = generate(model, params, prompts, max_new_tokens=10)
    for prompt, row in zip(prompts, new, strict=True):
        # Causal: every prefix's likeliest token from one pass over the whole row.
        whole = np.zeros((2, 24), np.int32)
        whole[0, : len(prompt) + 10] = prompt + row
        likeliest = np.asarray(forward(params, whole)).argmax(-1)[0]
        assert likeliest[len(prompt) - 1 : len(prompt) + 9].tolist() == row


@pytest.mark.parametrize("variant", ["qwen2", "gemma2"])
def test_packed_texts_have_the_logits_they_have_apart(variant):
    _, params, ids, logits, forward = loaded(variant)
    row = np.concatenate([ids[0, :13], ids[1, :11]])
    positions = np.concatenate([np.arange(13), np.arange(11)])
    segments = np.repeat([1, 2], [13, 11])
    tokens = Tokens(*(jnp.asarray([x, x], jnp.int32) for x in (row, positions, segments)))
    packed = np.asarray(forward(params, tokens))[0]
    np.testing.assert_allclose(packed[:13], logits[0, :13], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(packed[13:], logits[1, :11], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["qwen2", "gemma2", "gemma3"])
def test_one_program_serves_blocks_that_alternate(variant):
    model, params, ids, _, _ = loaded(variant)
    traced = []

    def block(weights, hidden, place):
        traced.append(place)
        return model.block(weights, {}, hidden, None, place)

    compiled = jax.jit(block)
    hidden = model.embed(params["embed"], model.tokens(ids), jnp.float32)
    for place, name in enumerate(model.layer_names[1:-1]):
        ours = compiled(params[name], hidden, jnp.int32(place))
        hidden = model.block(params[name], {}, hidden, None, place)
        np.testing.assert_allclose(ours.values, hidden.values, rtol=1e-5, atol=1e-5)
    assert len(traced) == 1
    # The window is not the same for all: a block at another's place computes something else.
    other = compiled(params[name], hidden, jnp.int32(1 if variant != "qwen2" else 0))
    here = compiled(params[name], hidden, jnp.int32(2))
    assert not np.allclose(other.values, here.values, atol=1e-3)


def test_attention_in_parts_has_the_windows_and_caps_of_the_whole(monkeypatch):
    model, params, ids, logits, _ = loaded("gemma2")
    monkeypatch.setattr("snake_jax.models.attention.SCORE_BYTES", 4 * 2 * 24 * 24)
    in_parts = jax.jit(lambda params: model.apply(params, jnp.asarray(ids)))
    text = in_parts.lower(params).as_text()
    assert "while" in text
    np.testing.assert_allclose(in_parts(params), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "kind"),
    sweep(
        [("qwen3", "int8"), ("gemma3", "nf4"), ("gpt2", "int8"), ("phi3", "nf4")],
        quick=[("gemma3", "nf4"), ("gpt2", "int8")],
    ),
)
def test_quantized_weights_compute_what_they_stand_for(variant, kind):
    model, params, ids, logits, forward = loaded(variant)
    stored = freeze(params, kind)
    dense = functools.partial(thaw, dtype=jnp.float32)
    ours = jax.jit(functools.partial(model.apply, prepare=dense))(stored, ids)
    np.testing.assert_allclose(ours, forward(dense(stored), ids), rtol=1e-4, atol=1e-5)
    assert not np.allclose(ours, logits, atol=1e-3)


def drawn(key, block, settings):
    """Adapters whose b is not zero."""
    adapters = lora.init(key, block, settings)
    leaves, structure = jax.tree.flatten(adapters)
    rng = np.random.default_rng(0)
    random = [np.float32(0.3 * rng.normal(size=leaf.shape)) for leaf in leaves]
    return jax.tree.unflatten(structure, random)


@peft_warns
@pytest.mark.parametrize("variant", sweep(NEWER, quick=("phi3", "gpt2")))
def test_peft_computes_the_same_with_the_saved_adapter(variant, tmp_path):
    pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    model, params, ids, before, _ = loaded(variant)
    settings = lora.Lora(3, 0.7)
    adapters = {}
    for place, name in enumerate(model.layer_names[1:-1]):
        adapters[place] = drawn(jax.random.key(place), params[name], settings)
    lora.save_peft(tmp_path, model.architecture, adapters, settings, "some/model")
    base = AutoModelForCausalLM.from_pretrained(FOLDER / variant, attn_implementation="eager")
    theirs = torch_logits(peft.PeftModel.from_pretrained(base.eval(), tmp_path).eval(), ids)

    again, read = lora.load_peft(tmp_path)
    assert same_bits(jax.tree.map(np.ascontiguousarray, again), adapters)
    named = {f"block_{place:02}": lora.scaled(tree, 0.7) for place, tree in again.items()}
    ours = jax.jit(functools.partial(model.apply, adapters=named))(params, ids)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=3e-6 * np.abs(theirs).max())
    assert np.abs(theirs - before).max() > 0.01
    assert read.rank == 3


def test_two_layers_of_one_name_are_told_apart_for_peft(tmp_path):
    model, params, *_ = loaded("gpt2")
    settings = lora.Lora(2, pattern="attn.c_proj")
    adapters = {
        place: drawn(jax.random.key(place), params[name], settings)
        for place, name in enumerate(model.layer_names[1:-1])
    }
    lora.save_peft(tmp_path, model.architecture, adapters, settings, "some/model")
    config = json.loads((tmp_path / lora.CONFIG).read_text())
    assert config["target_modules"] == ["attn.c_proj"]
    assert config["fan_in_fan_out"] is True


def golden_config(variant):
    return json.loads((FOLDER / variant / "config.json").read_text())


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ("gemma3", {"layer_types": ["full_attention"]}, "layer_types has 1 entries for 3 layers"),
        ("qwen3", {"layer_types": ["chunked_attention"] * 3}, "layer_types=chunked_attention"),
        ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types=.* is not supported"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True"),
        ("qwen2", {"use_mrope": True}, "use_mrope=True"),
        ("phi3", {"rope_parameters": {"rope_type": "longrope"}}, "rope_scaling type=longrope"),
        ("olmo2", {"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ("gpt2", {"n_embd": 18}, "n_embd=18 is no multiple of n_head=4"),
        ("gpt2", {"n_layer": None}, "config.json of a gpt2 model lacks n_layer"),
    ],
)
def test_what_makes_another_function_is_refused_by_name(variant, changes, message):
    with pytest.raises(UserError, match=message):
        families.read(golden_config(variant) | changes)


def test_older_forms_of_config_mean_the_same():
    gemma = golden_config("gemma3")
    del gemma["rope_parameters"], gemma["layer_types"]
    gemma |= {
        "sliding_window_pattern": 2,
        "rope_theta": 1000.0,
        "rope_local_base_freq": 50.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    }
    assert families.read(gemma) == families.read(golden_config("gemma3"))
    phi = golden_config("phi3")
    del phi["rope_parameters"]
    phi |= {"rope_theta": 100.0, "partial_rotary_factor": 0.5, "rope_scaling": None}
    assert families.read(phi) == families.read(golden_config("phi3"))


def test_windows_are_those_that_transformers_reads():
    transformers = pytest.importorskip("transformers")
    for variant in ("qwen2", "qwen3", "gemma2", "gemma3"):
        config = dict(VARIANTS[variant])
        config.pop("layer_types", None)
        theirs = transformers.AutoConfig.for_model(**config)
        ours = families.read(config)
        windowed = [kind == "sliding_attention" for kind in theirs.layer_types]
        assert list(ours.windowed or [False] * 3) == windowed


def test_a_layer_with_a_window_keeps_its_local_frequencies_where_no_layer_is_without():
    # The first two of Gemma's layers, which both have a window.
    alone = from_preset("gemma-3-1b", num_hidden_layers=2).architecture
    assert alone.windowed == (True, True)
    assert not alone.alternates
    assert alone.sliding_window == 512


def test_generation_stops_at_every_end_of_the_model_s_own_vocabulary():
    gemma = build(PRESETS["gemma-3-1b"])
    assert stop_ids(gemma, 106) == (1, 106)
    # Of a tokenizer that is not the model's, its own end alone.
    assert stop_ids(gemma, 7) == (7,)
    assert stop_ids(build(families.read(golden_config("qwen3") | {"eos_token_id": None})), 7) == (
        7,
    )


def test_generation_stops_at_the_ends_that_only_its_own_settings_name(tmp_path):
    qwen = build(families.read(golden_config("qwen3") | {"eos_token_id": 45}))
    assert hub.read_generation_ends(tmp_path) == ()
    file = tmp_path / "generation_config.json"
    for said, ends in (("[45, 43]", (45, 43)), ("43", (45, 43)), ("null", (45,))):
        file.write_text(f'{{"eos_token_id": {said}}}')
        assert stop_ids(qwen, 45, hub.read_generation_ends(tmp_path)) == ends
    # A tokenizer that ends where only the settings say so is the model's too.
    file.write_text('{"eos_token_id": [43, 45]}')
    assert stop_ids(qwen, 43, hub.read_generation_ends(tmp_path)) == (45, 43)
    assert stop_ids(qwen, 7, hub.read_generation_ends(tmp_path)) == (7,)
    for broken in ("[", "[1]", '{"eos_token_id": "</s>"}'):
        file.write_text(broken)
        with pytest.raises(UserError, match=r"generation_config\.json"):
            hub.read_generation_ends(tmp_path)


def test_a_checkpoint_of_the_bare_gpt2_with_its_masks_is_read(tmp_path):
    from safetensors.numpy import save_file

    model, params, *_ = loaded("gpt2")
    tensors = load_file(FOLDER / "gpt2" / "model.safetensors")
    bare = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    bare["h.0.attn.bias"] = np.ones((1, 1, 48, 48), np.float32)
    save_file(bare, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((FOLDER / "gpt2" / "config.json").read_text())
    again, read = load_pretrained(tmp_path)
    assert again.architecture == model.architecture
    assert same_bits(read, params)
