"""Encoders: hidden states as PyTorch's, padding, slices, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from snake_jax.errors import UserError
from snake_jax.models.encoder import PRESETS, Encoder, Texts, encoder
from snake_jax.models.hub import load_encoder, load_pretrained

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
    "initializer_range": 0.3,
}
KINDS = {
    "bert": {"type_vocab_size": 2, "pad_token_id": 0},
    "roberta": {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5},
}
LENGTHS = (20, 7, 1)


def torch_folder(kind, folder, head=False):
    """A folder that transformers saved, weights and biases all away from zero; the torch model."""
    torch = pytest.importorskip("torch")
    import transformers

    config_class = {"bert": transformers.BertConfig, "roberta": transformers.RobertaConfig}[kind]
    names = {"bert": "BertModel", "roberta": "RobertaModel"}
    if head:
        names = {"bert": "BertForQuestionAnswering", "roberta": "RobertaForQuestionAnswering"}
    torch.manual_seed(1)
    model = getattr(transformers, names[kind])(config_class(**SIZES, **KINDS[kind])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def texts(kind):
    """Three texts of unlike lengths, padded; types of a pair where there are two kinds."""
    rng = np.random.default_rng(0)
    ids = rng.integers(2, SIZES["vocab_size"], (len(LENGTHS), max(LENGTHS)), np.int32)
    lengths = np.array(LENGTHS, np.int32)
    is_text = np.arange(max(LENGTHS)) < lengths[:, None]
    ids = np.where(is_text, ids, KINDS[kind]["pad_token_id"]).astype(np.int32)
    types = (np.arange(max(LENGTHS)) >= 5) & is_text
    own = types if kind == "bert" else np.zeros_like(types)
    return Texts(jnp.asarray(ids), jnp.asarray(lengths), jnp.asarray(own, jnp.int32)), is_text


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_those_of_torch(kind, tmp_path):
    torch_model = torch_folder(kind, tmp_path)
    import torch

    given, is_text = texts(kind)
    ids, types = (torch.tensor(np.asarray(x), dtype=torch.long) for x in (given.ids, given.types))
    mask = torch.tensor(is_text.astype(np.int64))
    with torch.no_grad():
        wanted = torch_model(ids, attention_mask=mask, token_type_ids=types).last_hidden_state
    model, params = load_encoder(tmp_path)
    found = jax.jit(model.apply)(params, given).values
    difference = np.abs(np.asarray(found) - wanted.numpy())[is_text]
    assert difference.max() < 1e-4 * np.abs(wanted.numpy()).max()


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_a_task_gives_its_encoder(kind, tmp_path):
    torch_model = torch_folder(kind, tmp_path, head=True)
    model, params = load_encoder(tmp_path)
    bare = getattr(torch_model, kind)
    table = bare.embeddings.word_embeddings.weight.detach().numpy()
    assert np.array_equal(params["embed"]["tokens"]["embedding"], table)
    assert model.num_blocks == SIZES["num_hidden_layers"]


def small() -> Encoder:
    return encoder("bert-tiny")


def test_padding_changes_nothing_of_a_text():
    model = small()
    params = model.init(jax.random.key(0))
    ids = jax.random.randint(jax.random.key(1), (2, 9), 0, 1000)
    alone = model.apply(params, Texts(ids, jnp.array([9, 9]))).values
    padded = jnp.concatenate([ids, jnp.full((2, 3), 7)], axis=1)
    beside = model.apply(params, Texts(padded, jnp.array([9, 9]))).values
    np.testing.assert_allclose(beside[:, :9], alone, atol=2e-6)


def test_a_token_sees_those_after_it():
    model = small()
    params = model.init(jax.random.key(0))
    ids = jnp.arange(8)[None]
    one = model.apply(params, Texts(ids, jnp.array([8]))).values
    other = model.apply(params, Texts(ids.at[0, 7].set(99), jnp.array([8]))).values
    assert np.abs(one[0, 0] - other[0, 0]).max() > 1e-4


def test_slices_compose_to_the_whole_also_with_dropout():
    model = encoder("bert-tiny", dropout=0.5)
    params, key = model.init(jax.random.key(0)), jax.random.key(3)
    given = Texts(jnp.arange(12).reshape(2, 6), jnp.array([6, 4]))
    whole = model.apply(params, given, key=key)
    hidden = model.apply(params, given, stop=2, key=key)
    rest = model.apply(params, hidden, start=2, key=key)
    assert np.array_equal(rest.values, whole.values)
    assert not np.array_equal(whole.values, model.apply(params, given).values)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("bert-tiny", 4.37),
        ("bert-base", 108.89),
        ("bert-large", 334.09),
        ("roberta-base", 124.06),
        ("roberta-large", 354.31),
    ],
)
def test_presets_have_the_published_counts_without_pooler(name, millions):
    shapes = jax.eval_shape(encoder(name).init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert round(count / 1e6, 2) == millions
    assert set(PRESETS) >= {name}


def test_old_names_of_norms_are_understood(tmp_path):
    torch_folder("bert", tmp_path)
    file = tmp_path / "model.safetensors"
    _, params = load_encoder(tmp_path)
    tensors = {}
    for name, value in load_file(file).items():
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        tensors[f"bert.{old.replace('LayerNorm.bias', 'LayerNorm.beta')}"] = value
    save_file(tensors, file)
    _, again = load_encoder(tmp_path)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, again))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "opt"}, "model_type=opt is no encoder; there are bert, roberta"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type=relative_key"),
        ({"is_decoder": True}, "is_decoder=True"),
        ({"hidden_act": "tanh"}, "hidden_act=tanh"),
        ({"num_attention_heads": 5}, "hidden_size=32 is no multiple of num_attention_heads=5"),
        ({"intermediate_size": 50}, "does not fit its config.json"),
        ({"num_hidden_layers": 4}, "lacks tensors"),
        ({"num_hidden_layers": 2}, "has tensors that config.json has no place for"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(changes, words, tmp_path):
    torch_folder("bert", tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=words):
        load_encoder(tmp_path)


def test_an_encoder_is_no_decoder(tmp_path):
    torch_folder("bert", tmp_path)
    with pytest.raises(UserError, match="model_type=bert is an encoder"):
        load_pretrained(tmp_path)


def test_texts_longer_than_the_table_are_refused():
    model = small()
    with pytest.raises(UserError, match="513 tokens in a row, bert-tiny has 512 positions"):
        jax.eval_shape(
            model.apply,
            model.init(jax.random.key(0)),
            Texts(jnp.zeros((1, 513), jnp.int32), jnp.array([5])),
        )
