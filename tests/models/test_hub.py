"""Folders in the form of Hugging Face: loading, saving, memory, and what is refused."""

import json
import shutil
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import qwix
from safetensors.numpy import load_file, save_file

from snake_jax.errors import UserError
from snake_jax.models import pickles, save
from snake_jax.models.hub import check_pretrained, load_pretrained
from snake_jax.models.presets import from_preset
from snake_jax.models.save import save_pretrained
from snake_jax.params import num_bytes
from tests.helpers import same_bits
from tests.models.make_golden import FOLDER, VARIANTS, random_ids, torch_logits, torch_model
from tests.sweeps import sweep

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    """A copy of a golden folder, to be spoilt."""

    def copy(variant):
        return shutil.copytree(FOLDER / variant, tmp_path / variant)

    return copy


def change(folder, **changes):
    """Rewrites the weights with some tensors replaced, or left out where None."""
    tensors = load_file(folder / WEIGHTS) | changes
    save_file(
        {name: value for name, value in tensors.items() if value is not None}, folder / WEIGHTS
    )


def rename(folder, old, new):
    save_file(
        {name.replace(old, new, 1): x for name, x in load_file(folder / WEIGHTS).items()},
        folder / WEIGHTS,
    )


def configure(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def same_trees(one, other):
    return jax.tree.structure(one) == jax.tree.structure(other) and all(
        jax.tree.leaves(jax.tree.map(same_bits, one, other))
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("max_shard_bytes", [10**9, 5000])
def test_what_is_saved_is_loaded(variant, max_shard_bytes, tmp_path):
    model, params = load_pretrained(FOLDER / variant)
    save_pretrained(tmp_path, model, params, max_shard_bytes=max_shard_bytes)
    again, loaded = load_pretrained(tmp_path)
    assert again.architecture == model.architecture
    assert same_trees(loaded, params)
    files = {path.name for path in tmp_path.iterdir()}
    if max_shard_bytes == 10**9:
        assert files == {"config.json", WEIGHTS}
        stored, golden = load_file(tmp_path / WEIGHTS), load_file(FOLDER / variant / WEIGHTS)
        assert same_trees(stored, golden)
    else:
        count = len(files) - 2
        assert files == {
            "config.json",
            INDEX,
            *(f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)),
        }
        assert count > 3


@pytest.mark.parametrize(
    "variant", sweep(VARIANTS, quick=("llama_gqa_tied", "opt_pre_norm", "gpt2", "phi3"))
)
def test_hugging_face_loads_what_is_saved_with_the_same_logits(variant, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model, params = load_pretrained(FOLDER / variant)
    save_pretrained(tmp_path, model, params, max_shard_bytes=5000)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert loaded.dtype == torch.float32
    ids = load_file(FOLDER / variant / "golden.safetensors")["ids"]
    np.testing.assert_allclose(
        torch_logits(loaded, ids), jax.jit(model.apply)(params, ids), rtol=1e-4, atol=1e-5
    )


def test_bfloat16_goes_through_hugging_face_bit_by_bit(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    theirs = torch_model("llama_gqa_tied", seed=7).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs")
    model, params = load_pretrained(tmp_path / "theirs", dtype="keep")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(ml_dtypes.bfloat16)}
    save_pretrained(tmp_path / "ours", model, jax.tree.map(jnp.asarray, params))
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert ours.dtype == torch.bfloat16
    assert all(
        torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)
    )
    wide = load_pretrained(tmp_path / "ours", dtype="float32")[1]
    ids = random_ids(7)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.float32)
    np.testing.assert_allclose(
        torch_logits(theirs, ids), jax.jit(model.apply)(wide, ids), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "keep"])
def test_parameters_come_in_the_dtype_asked_for(dtype):
    params = load_pretrained(FOLDER / "opt_pre_norm", dtype=dtype)[1]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {
        "float32" if dtype == "keep" else dtype
    }
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("variant", "old", "new"),
    [("opt_pre_norm", "model.decoder.", "decoder."), ("llama_gqa_tied", "model.", "")],
)
def test_checkpoints_of_the_bare_model_load(folder, variant, old, new):
    path = folder(variant)
    rename(path, old, new)
    assert same_trees(load_pretrained(path)[1], load_pretrained(FOLDER / variant)[1])


@pytest.mark.parametrize("variant", ["opt_post_norm_projected", "llama_gqa_tied"])
def test_a_tied_matrix_may_be_stored_twice_if_it_is_the_same(folder, variant):
    path = folder(variant)
    table = next(
        x for name, x in load_file(path / WEIGHTS).items() if name.endswith("embed_tokens.weight")
    )
    change(path, **{"lm_head.weight": table})
    assert same_trees(load_pretrained(path)[1], load_pretrained(FOLDER / variant)[1])
    change(path, **{"lm_head.weight": table + 1})
    with pytest.raises(
        UserError,
        match=r"lm_head.weight is not model.*embed_tokens.weight: set tie_word_embeddings",
    ):
        load_pretrained(path)


def test_buffers_that_are_computed_are_passed_over(folder):
    path = folder("llama_mha")
    change(path, **{"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)})
    assert same_trees(load_pretrained(path)[1], load_pretrained(FOLDER / "llama_mha")[1])


def wide_model():
    """About 4.5 MB in tensors of up to 66 kB, so that one tensor is little beside all."""
    model = from_preset("tiny-llama", num_hidden_layers=24)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return model, jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)


def peak_bytes(call):
    tracemalloc.start()
    try:
        result = call()
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_holds_the_model_once(tmp_path, dtype):
    model, params = wide_model()
    save_pretrained(
        tmp_path, model, params, max_shard_bytes=10**6
    )  # also traces and compiles what loading will
    save_bytes, _ = peak_bytes(
        lambda: save_pretrained(tmp_path, model, params, max_shard_bytes=10**6)
    )
    assert save_bytes < 0.2 * num_bytes(params)
    load_pretrained(tmp_path)
    load_bytes, (_, loaded) = peak_bytes(lambda: load_pretrained(tmp_path, dtype=dtype))
    assert num_bytes(loaded) < load_bytes < 1.3 * num_bytes(loaded)


def test_a_kill_while_saving_leaves_the_old_checkpoint(folder, monkeypatch):
    path = folder("llama_mha")
    model, params = load_pretrained(path)

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(save, "_flush", die)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(path, model, jax.tree.map(np.zeros_like, params))
    assert same_trees(load_pretrained(path)[1], params)


def test_saving_again_in_fewer_files_leaves_none_of_the_old(tmp_path):
    model, params = load_pretrained(FOLDER / "llama_mha")
    save_pretrained(tmp_path, model, params, max_shard_bytes=5000)
    save_pretrained(tmp_path, model, params)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", WEIGHTS}
    (tmp_path / "model-mine.safetensors").touch()
    save_pretrained(tmp_path, model, params, max_shard_bytes=10_000)
    assert not (tmp_path / WEIGHTS).exists()
    assert (tmp_path / "model-mine.safetensors").exists()
    assert same_trees(load_pretrained(tmp_path)[1], params)


PICKLE = "pytorch_model.bin"


def pickled(path, shards=1, **options):
    """The folder with its weights as PyTorch saves them, in one file or several."""
    torch = pytest.importorskip("torch")
    tensors = {
        name: torch.tensor(np.asarray(value)) for name, value in load_file(path / WEIGHTS).items()
    }
    (path / WEIGHTS).unlink()
    files = [f"pytorch_model-{i + 1:05}-of-{shards:05}.bin" for i in range(shards)]
    if shards == 1:
        files = [PICKLE]
    names = list(tensors)
    for number, file in enumerate(files):
        part = {name: tensors[name] for name in names[number::shards]}
        torch.save(part, path / file, **options)
    if shards > 1:
        weight_map = {name: files[number % shards] for number, name in enumerate(names)}
        (path / f"{PICKLE}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("variant", ["llama_gqa_tied", "opt_pre_norm"])
def test_weights_of_pytorch_alone_are_read(folder, variant, shards):
    path = pickled(folder(variant), shards)
    model, params = load_pretrained(path)
    assert same_trees(params, load_pretrained(FOLDER / variant)[1])
    check_pretrained(path, model)


def test_old_files_of_pytorch_are_read_too(folder):
    path = pickled(folder("llama_mha"), _use_new_zipfile_serialization=False)
    assert same_trees(load_pretrained(path)[1], load_pretrained(FOLDER / "llama_mha")[1])


def test_bfloat16_in_files_of_pytorch_comes_bit_by_bit(tmp_path):
    torch = pytest.importorskip("torch")
    theirs = torch_model("llama_gqa_tied", seed=7).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    wanted = load_pretrained(tmp_path, dtype="keep")[1]
    torch.save(theirs.state_dict(), tmp_path / PICKLE)
    (tmp_path / WEIGHTS).unlink()
    assert same_trees(load_pretrained(tmp_path, dtype="keep")[1], wanted)


def test_safetensors_go_before_files_of_pytorch(folder):
    path = folder("llama_mha")
    (path / PICKLE).write_bytes(b"never read")
    assert same_trees(load_pretrained(path)[1], load_pretrained(FOLDER / "llama_mha")[1])


class Code:
    """What a pickle could bring with it."""

    def __reduce__(self):
        return print, ("code of a model was run",)


def test_code_in_a_file_of_pytorch_is_never_run(folder, capsys):
    torch = pytest.importorskip("torch")
    path = pickled(folder("llama_mha"))
    torch.save({"model.embed_tokens.weight": Code()}, path / PICKLE)
    with pytest.raises(UserError, match="holds more than tensors, which could be code") as caught:
        load_pretrained(path)
    assert "\n" not in str(caught.value)
    assert "code of a model was run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"PK broken", "is broken, copy it anew"), (b"", "broken"), (b"text", "is broken, copy")],
)
def test_a_broken_file_of_pytorch_is_one_line(folder, content, message):
    path = pickled(folder("llama_mha"))
    (path / PICKLE).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_pretrained(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_without_pytorch_the_command_that_converts_is_said(folder, monkeypatch):
    path = folder("llama_mha")
    (path / WEIGHTS).rename(path / PICKLE)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError) as caught:
        load_pretrained(path)
    assert f"A.from_pretrained('{path}').save_pretrained('{path}-safetensors')" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_that_converts_does(folder, monkeypatch):
    """As it is said, run here."""
    path = pickled(folder("llama_mha"))
    command = pickles.conversion(path)
    exec(command[command.index('"') + 1 : command.rindex('"')], {})
    again = load_pretrained(f"{path}-safetensors")[1]
    assert same_trees(again, load_pretrained(FOLDER / "llama_mha")[1])


def test_a_byte_order_mark_in_a_configuration_is_passed_over(folder):
    path = folder("llama_mha")
    content = (path / "config.json").read_bytes()
    (path / "config.json").write_bytes(b"\xef\xbb\xbf" + content)
    assert same_trees(load_pretrained(path)[1], load_pretrained(FOLDER / "llama_mha")[1])


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json; give a folder"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is no JSON: Expecting"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json should hold a JSON object"),
        (
            lambda f: configure(f, model_type="bloom"),
            "model_type=bloom is unknown; there are llama, opt, qwen2",
        ),
        (
            lambda f: configure(f, quantization_config={"bits": 4}),
            "quantization_config is not supported",
        ),
        (
            lambda f: (f / WEIGHTS).unlink(),
            "no weights: neither model.safetensors nor model.safetensors.index.json",
        ),
        (
            lambda f: (f / WEIGHTS).write_bytes(b"\1" * 20),
            "model.safetensors is broken, copy it anew: ",
        ),
        (
            lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-4]),
            "model.safetensors is broken, copy it",
        ),
        (lambda f: change(f, **{Q: None}), f"lacks tensors: {Q}$"),
        (
            lambda f: change(f, **{Q: np.ones((8, 16), np.float32)}),
            rf"{Q} is \[8, 16\], not \[16, 16\]$",
        ),
        (
            lambda f: change(f, **{Q: np.ones((16, 16), np.int8)}),
            f"has tensors that are no floats: {Q} is I8$",
        ),
        (
            lambda f: change(f, mine=np.ones(1)),
            "has tensors that config.json has no place for: mine$",
        ),
        (
            lambda f: configure(f, num_hidden_layers=1),
            "has no place for: model.layers.1.* and 5 more$",
        ),
        (
            lambda f: configure(f, vocab_size=48),
            r"model.embed_tokens.weight is \[40, 16\], not \[48, 16\]",
        ),
        (lambda f: configure(f, attention_bias=True), "lacks tensors: .*k_proj.bias"),
    ],
)
def test_wrong_folders_are_refused_in_one_line(folder, spoil, message):
    path = folder("llama_mha")
    spoil(path)
    with pytest.raises(UserError, match=message) as caught:
        load_pretrained(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: next(f.glob("model-00002-of-*")).unlink(),
            "lacks files that its index names: model-00002",
        ),
        (lambda f: (f / INDEX).write_text("{}"), "index.json has no weight_map"),
        (lambda f: (f / INDEX).write_text("no"), "index.json is no JSON"),
    ],
)
def test_wrong_shards_are_refused(spoil, message, tmp_path):
    save_pretrained(tmp_path, *load_pretrained(FOLDER / "llama_mha"), max_shard_bytes=2500)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        load_pretrained(tmp_path)


def test_names_and_shapes_are_checked_before_data_is_read(folder, monkeypatch):
    path = folder("llama_mha")
    change(path, **{Q: np.ones((8, 16), np.float32)})
    monkeypatch.setattr("snake_jax.models.hub._read", lambda *_: pytest.fail("read"))
    with pytest.raises(UserError, match="does not fit"):
        load_pretrained(path)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(UserError, match="int8: not one of float32, bfloat16, float16, keep"):
        load_pretrained(FOLDER / "llama_mha", dtype="int8")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            np.ones((16, 3), np.float32),
            r"block_00/mlp/up_proj/kernel is \[3, 16\] as model.layers.0.mlp.up_proj.weight",
        ),
        (
            np.ones((16, 24), np.int32),
            "block_00/mlp/up_proj/kernel is int32: save as one of float32, bfloat16, float16",
        ),
        (qwix.quantize(jnp.ones((16, 24)), jnp.int8), "block_00/mlp/up_proj/kernel is quantized"),
    ],
)
def test_wrong_parameters_are_not_saved(wrong, message, tmp_path):
    model, params = load_pretrained(FOLDER / "llama_mha")
    params["block_00"]["mlp"]["up_proj"]["kernel"] = wrong
    with pytest.raises(UserError, match=message):
        save_pretrained(tmp_path, model, params)
    assert not list(tmp_path.iterdir())
