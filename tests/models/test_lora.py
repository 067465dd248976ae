"""Adapters: what they are put on, that they compute what they should, unlike ranks, and the
exchange with PEFT.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from snake_jax.errors import UserError
from snake_jax.models import lora
from snake_jax.models.hub import load_pretrained
from snake_jax.models.lora import Lora
from snake_jax.models.presets import from_preset
from snake_jax.training.quantization import freeze, thaw
from tests.helpers import same_bits
from tests.models.make_golden import FOLDER, random_ids, torch_logits, torch_model

pytestmark = pytest.mark.usefixtures("quick_compilation")

LLAMA_LINEARS = [("self_attn", f"{name}_proj") for name in "qkvo"] + [
    ("mlp", f"{n}_proj") for n in ("gate", "up", "down")
]
OPT_LINEARS = [("self_attn", n) for n in ("q_proj", "k_proj", "v_proj", "out_proj")] + [
    ("fc1",),
    ("fc2",),
]
# peft asks transformers 5 by its old name.
peft_warns = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated and will be removed in v6. "
    "Use `is_activation_checkpointing` instead.:FutureWarning"
)
VARIANTS = ("llama_gqa_tied", "llama_bias", "opt_pre_norm", "opt_post_norm_projected")


@pytest.fixture(scope="module")
def tiny():
    """A model of two blocks, its parameters, and ids."""
    model = from_preset("tiny-llama", num_hidden_layers=2, vocab_size=40)
    return model, jax.jit(model.init)(jax.random.key(0)), jnp.asarray(random_ids(0))


def drawn(key, block, settings):
    """Adapters whose b is not zero."""
    adapters = lora.init(key, block, settings)
    return jax.tree.map(
        lambda x: (
            x if x.any() else 0.3 * jax.random.normal(jax.random.fold_in(key, x.size), x.shape)
        ),
        adapters,
    )


def of_every_block(model, params, settings):
    names = model.layer_names[1:-1]
    return {name: drawn(jax.random.key(i), params[name], settings) for i, name in enumerate(names)}


def paths(tree, found=()):
    return (
        [found]
        if set(tree) == {"a", "b"}
        else [p for n, t in tree.items() for p in paths(t, (*found, n))]
    )


@pytest.mark.parametrize(
    ("preset", "expected"), [("tiny-llama", LLAMA_LINEARS), ("tiny-opt", OPT_LINEARS)]
)
def test_all_are_the_linear_layers(preset, expected):
    block = jax.eval_shape(from_preset(preset).init, jax.random.key(0))["block_00"]
    assert sorted(lora.targets(block, "all")) == sorted(expected)
    assert sorted(paths(lora.init(jax.random.key(0), block, Lora(2)))) == sorted(expected)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("q_proj, v_proj", {"q_proj", "v_proj"}),
        ("[qkv]_proj", {"q_proj", "k_proj", "v_proj"}),
        ("mlp.*", {"gate_proj", "up_proj", "down_proj"}),
        ("self_attn.o_proj,up_proj", {"o_proj", "up_proj"}),
    ],
)
def test_patterns_are_names_paths_and_regular_expressions(tiny, pattern, expected):
    assert {path[-1] for path in lora.targets(tiny[1]["block_00"], pattern)} == expected


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("q_proj,fc1", r"--lora_pattern=q_proj,fc1: no linear layer fc1; say all, or of .*q_proj"),
        ("", "no linear layer without a name"),
        ("input_layernorm", "no linear layer input_layernorm"),
        ("q_proj,(", r"\( is no regular expression"),
    ],
)
def test_a_pattern_that_names_nothing_is_refused(tiny, pattern, reason):
    with pytest.raises(UserError, match=reason):
        lora.targets(tiny[1]["block_00"], pattern)


def test_a_is_uniform_within_the_bound_of_its_inputs_and_b_is_zero():
    block = {"fc1": {"kernel": jax.ShapeDtypeStruct((400, 100), jnp.float32)}}
    adapter = lora.init(jax.random.key(0), block, Lora(64))["fc1"]
    a = np.asarray(adapter["a"])
    assert a.shape == (400, 64)
    assert adapter["b"].shape == (64, 100)
    assert not adapter["b"].any()
    assert 0.0499 < np.abs(a).max() <= 0.05
    assert a.std() == pytest.approx(0.05 / np.sqrt(3), rel=0.02)


def test_a_layers_values_do_not_depend_on_which_others_have_adapters(tiny):
    block = tiny[1]["block_00"]
    every, some = (
        lora.init(jax.random.key(5), block, Lora(4, pattern=p)) for p in ("all", "up_proj,v_proj")
    )
    assert same_bits(some["mlp"]["up_proj"], every["mlp"]["up_proj"])
    assert same_bits(some["self_attn"]["v_proj"], every["self_attn"]["v_proj"])
    assert not np.array_equal(every["self_attn"]["k_proj"]["a"], every["self_attn"]["v_proj"]["a"])


@pytest.mark.parametrize(
    ("rank", "reason"),
    [
        (33, r"--lora_rank=33 is above the width of self_attn.k_proj \[64, 32\]: take at most 32"),
        (0, "--lora_rank=0: adapters need a rank of at least 1"),
    ],
)
def test_a_rank_that_does_not_fit_is_refused(tiny, rank, reason):
    with pytest.raises(UserError, match=reason):
        lora.init(jax.random.key(0), tiny[1]["block_00"], Lora(rank))
    assert lora.init(jax.random.key(0), tiny[1]["block_00"], Lora(32))


def test_fresh_adapters_change_nothing(tiny):
    model, params, ids = tiny
    adapters = {
        n: lora.init(jax.random.key(0), params[n], Lora(8)) for n in model.layer_names[1:-1]
    }
    apply = jax.jit(lambda adapters: model.apply(params, ids, adapters=adapters))
    without = jax.jit(model.apply)(params, ids)
    assert same_bits(apply(adapters), apply(jax.tree.map(jnp.zeros_like, adapters)))
    np.testing.assert_allclose(
        apply(adapters), without, atol=1e-6
    )  # two programs sum in two orders
    assert same_bits(lora.merge(params["block_00"], adapters["block_00"], 2.0), params["block_00"])


@pytest.mark.parametrize("pattern", ["all", "q_proj,down_proj"])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_merged_equals_applied(tiny, pattern, dtype):
    model, params, ids = tiny
    adapters = of_every_block(model, params, Lora(4, pattern=pattern))
    stored = {
        name: freeze(params[name], dtype) if name in adapters else params[name] for name in params
    }
    applied = jax.jit(
        lambda: model.apply(
            stored,
            ids,
            adapters={name: lora.scaled(tree, 1.5) for name, tree in adapters.items()},
            prepare=lambda subtree: thaw(subtree, jnp.float32),
        )
    )()
    merged = {
        **stored,
        **{name: lora.merge(stored[name], tree, 1.5) for name, tree in adapters.items()},
    }
    logits = jax.jit(
        lambda p: model.apply(p, ids, prepare=lambda subtree: thaw(subtree, jnp.float32))
    )(merged)
    without = jax.jit(model.apply)(params, ids)
    np.testing.assert_allclose(logits, applied, rtol=1e-4, atol=1e-5)
    assert np.abs(logits - without).max() > 0.1


def test_merging_adds_the_scaled_product_to_the_kernels_it_is_for():
    block = {
        "fc1": {"kernel": np.ones((3, 2), np.float32), "bias": np.ones(2)},
        "fc2": {"kernel": np.ones((2, 3))},
    }
    adapters = {"fc1": {"a": np.array([[1.0], [2], [3]]), "b": np.array([[10.0, 100]])}}
    merged = lora.merge(block, adapters, 0.5)
    np.testing.assert_array_equal(merged["fc1"]["kernel"], [[6, 51], [11, 101], [16, 151]])
    assert merged["fc1"]["bias"] is block["fc1"]["bias"]
    assert merged["fc2"]["kernel"] is block["fc2"]["kernel"]


def saved(folder, variant, ranks, scale, pattern="all"):
    """A golden model whose blocks have adapters of these ranks, saved as PEFT does."""
    model, params = load_pretrained(FOLDER / variant)
    settings = Lora(ranks[0], scale, pattern)
    adapters = {
        block: drawn(
            jax.random.key(block), params[f"block_{block:02}"], settings._replace(rank=rank)
        )
        for block, rank in enumerate(ranks)
        if rank
    }
    lora.save_peft(folder, model.architecture, adapters, settings, "some/model")
    return model, params, adapters, settings


@peft_warns
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("ranks", "scale", "pattern"),
    [((3, 3), 1.0, "all"), ((4, 2), 0.7, "q_proj,v_proj"), ((2, 0), 2.0, "all")],
)
def test_torch_computes_the_same_logits_with_the_saved_adapter(
    variant, ranks, scale, pattern, tmp_path
):
    pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    model, params, adapters, _ = saved(tmp_path, variant, ranks, scale, pattern)
    base, ids = AutoModelForCausalLM.from_pretrained(FOLDER / variant).eval(), random_ids(7)
    before = torch_logits(base, ids)
    theirs = torch_logits(peft.PeftModel.from_pretrained(base, tmp_path), ids)
    names = {f"block_{block:02}": lora.scaled(tree, scale) for block, tree in adapters.items()}
    ours = jax.jit(lambda: model.apply(params, jnp.asarray(ids), adapters=names))()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-6 * np.abs(theirs).max())
    assert np.abs(theirs - before).max() > 0.01


@peft_warns
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_that_peft_saved_computes_the_same_here(variant, rslora, tmp_path):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")

    names = ["k_proj", "out_proj", "fc1"] if "opt" in variant else ["k_proj", "o_proj", "up_proj"]
    patterns = (
        {}
        if rslora
        else {"rank_pattern": {"1.self_attn.k_proj": 2}, "alpha_pattern": {names[2]: 5}}
    )
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=names,
        init_lora_weights=False,
        use_rslora=rslora,
        **patterns,
    )
    base = torch_model(variant, seed=1)
    base.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    theirs = peft.get_peft_model(base, config).eval()
    theirs.save_pretrained(tmp_path / "adapter")

    model, params = load_pretrained(tmp_path / "base")
    adapters, settings = lora.load_peft(tmp_path / "adapter")
    assert settings.rank == 4
    assert settings.scale == pytest.approx(3.0 if rslora else 1.5)
    assert set(settings.pattern.split(",")) == set(names)
    assert sorted(adapters) == [0, 1]
    named = {
        f"block_{block:02}": lora.scaled(tree, settings.scale) for block, tree in adapters.items()
    }
    ids = random_ids(8)
    expected = torch_logits(theirs, ids)
    ours = jax.jit(lambda: model.apply(params, jnp.asarray(ids), adapters=named))()
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("ranks", [(3, 3), (4, 2), (2, 0)])
def test_what_is_saved_is_loaded(ranks, tmp_path):
    _, _, adapters, settings = saved(tmp_path, "opt_pre_norm", ranks, 0.7, "q_proj,fc2")
    loaded, again = lora.load_peft(tmp_path)
    assert set(again.pattern.split(",")) == {"q_proj", "fc2"}
    assert (again.rank, again.scale) == (settings.rank, pytest.approx(0.7))
    assert same_bits(jax.tree.map(np.ascontiguousarray, loaded), adapters)


def test_files_are_named_as_peft_names_them(tmp_path):
    _, _, adapters, _ = saved(tmp_path, "opt_pre_norm", (3, 2), 2.0, "q_proj")
    config, tensors = (
        json.loads((tmp_path / lora.CONFIG).read_text()),
        load_file(tmp_path / lora.WEIGHTS),
    )
    stem = "base_model.model.model.decoder.layers.1.self_attn.q_proj"
    assert (config["peft_type"], config["task_type"], config["r"], config["lora_alpha"]) == (
        "LORA",
        "CAUSAL_LM",
        3,
        6,
    )
    assert config["target_modules"] == ["q_proj"]
    assert config["rank_pattern"] == {"model.decoder.layers.1.self_attn.q_proj": 2}
    assert config["alpha_pattern"] == {"model.decoder.layers.1.self_attn.q_proj": 4}
    assert config["base_model_name_or_path"] == "some/model"
    assert tensors[f"{stem}.lora_A.weight"].shape == (2, 16)
    np.testing.assert_array_equal(
        tensors[f"{stem}.lora_B.weight"], adapters[1]["self_attn"]["q_proj"]["b"].T
    )


def test_llama_blocks_have_the_names_of_llama(tmp_path):
    saved(tmp_path, "llama_gqa_tied", (2, 2), 1.0, "down_proj")
    assert "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight" in load_file(
        tmp_path / lora.WEIGHTS
    )


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    saved(folder, "llama_gqa_tied", (2, 2), 1.0, "q_proj")
    return folder


def configure(folder, **changes):
    config = json.loads((folder / lora.CONFIG).read_text()) | changes
    (folder / lora.CONFIG).write_text(
        json.dumps({name: x for name, x in config.items() if x is not None})
    )


def change(folder, **changes):
    tensors = load_file(folder / lora.WEIGHTS) | changes
    save_file({name: x for name, x in tensors.items() if x is not None}, folder / lora.WEIGHTS)


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
SPOILT = {
    "adapter_config.json is not readable: give the folder of a PEFT adapter": lambda f: (
        f / lora.CONFIG
    ).unlink(),
    "adapter_model.safetensors is not readable: save the": lambda f: (f / lora.WEIGHTS).unlink(),
    "safetensors is not readable: save": lambda f: (f / lora.WEIGHTS).write_bytes(b"1234567890"),
    "peft_type=IA3 is not supported, only plain LoRA is": lambda f: configure(f, peft_type="IA3"),
    "use_dora=True is not supported": lambda f: configure(f, use_dora=True),
    "bias=all is not supported": lambda f: configure(f, bias="all"),
    "lacks r: save the adapter anew": lambda f: configure(f, r=None),
    "layers.0.self_attn.q_proj has no matching lora_A and lora_B": lambda f: change(f, **{A: None}),
    "layers.0.self_attn.q_proj has rank 2, adapter_config.json says 5": lambda f: configure(f, r=5),
    "lm_head is in no block: only layers of model.layers.N or model.decoder.layers.N or "
    "transformer.h.N have": lambda f: change(
        f,
        **{f"base_model.model.lm_head.lora_{x}.weight": np.zeros((2, 2), np.float32) for x in "AB"},
    ),
    "lm_head.weight is no adapter of a linear layer": lambda f: change(
        f, **{"base_model.model.lm_head.weight": np.zeros((2, 2), np.float32)}
    ),
}


@pytest.mark.parametrize("reason", SPOILT)
def test_a_spoilt_adapter_is_refused_by_name(adapter, reason, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "spoilt")
    SPOILT[reason](folder)
    with pytest.raises(UserError, match=reason):
        lora.load_peft(folder)
