"""What `config.json` says: both forms of it, defaults, and what is refused."""

import numpy as np
import pytest

from snake_jax.errors import UserError
from snake_jax.models.architecture import RopeScaling
from snake_jax.models.decoder import rope_frequencies
from snake_jax.models.families import family_of, read
from snake_jax.models.presets import PRESETS

LLAMA = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
OPT = {
    "model_type": "opt",
    "vocab_size": 40,
    "hidden_size": 16,
    "ffn_dim": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LLAMA3 = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_written_is_what_is_read(name):
    architecture = PRESETS[name]
    family = family_of(architecture)
    config = family.write(architecture) | {"model_type": family.model_type}
    again = read(config)
    assert again == architecture
    assert family.write(again) == family.write(architecture)
    assert again.table_width == architecture.table_width


def test_settings_left_out_are_those_of_the_first_llama():
    found = read(LLAMA)
    assert (found.num_key_value_heads, found.head_dim) == (4, 4)
    assert (found.rope_theta, found.rope_scaling) == (10000.0, None)
    assert (found.norm_epsilon, found.hidden_act) == (1e-6, "silu")
    assert not found.tie_word_embeddings
    assert (found.bos_token_id, found.eos_token_id, found.pad_token_id) == (1, 2, None)


def test_settings_left_out_are_those_of_opt():
    found = read(OPT)
    assert found.table_width == 16
    assert not found.projects
    assert found.has_final_norm
    assert found.tie_word_embeddings
    assert (found.max_position_embeddings, found.hidden_act) == (2048, "relu")
    assert (found.bos_token_id, found.eos_token_id, found.pad_token_id) == (2, 2, 1)


def test_several_end_tokens_are_kept():
    found = read(LLAMA | {"eos_token_id": [7, 9]})
    assert found.eos_token_id == (7, 9)
    assert family_of(found).write(found)["eos_token_id"] == [7, 9]


@pytest.mark.parametrize(
    ("rope", "theta", "scaling"),
    [
        ({"rope_theta": 5e5}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, None),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, 5e5, None),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, 1e4, RopeScaling("linear", 2.0)),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            5e5,
            RopeScaling("llama3", 32.0),
        ),
        (
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}},
            5e5,
            RopeScaling("llama3", 32.0),
        ),
    ],
)
def test_both_forms_of_rope_settings_are_read(rope, theta, scaling):
    found = read(LLAMA | {"max_position_embeddings": 8192} | rope)
    assert (found.rope_theta, found.rope_scaling) == (theta, scaling)


def frequencies(architecture):
    return rope_frequencies(architecture, architecture.rope_theta, architecture.rope_scaling)


def test_rope_frequencies_by_hand():
    config = LLAMA | {
        "hidden_size": 24,
        "num_attention_heads": 4,
        "rope_theta": 1000.0,
    }  # heads of 6: three pairs
    plain = np.array([1, 0.1, 0.01])
    np.testing.assert_allclose(frequencies(read(config)), plain, rtol=1e-6)
    linear = read(config | {"rope_scaling": {"type": "linear", "factor": 4}})
    np.testing.assert_allclose(frequencies(linear), plain / 4, rtol=1e-6)
    # Within 50 pi positions these turn 25, 2.5 and 0.25 times: kept, blended half and half,
    # divided.
    scaling = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
    scaled = read(
        config | {"rope_scaling": scaling | {"original_max_position_embeddings": 50 * np.pi}}
    )
    expected = [1, (0.1 + 0.1 / 8) / 2, 0.01 / 8]
    np.testing.assert_allclose(frequencies(scaled), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "config.json of a llama model lacks hidden_size: complete it"),
        (
            {"num_key_value_heads": 3},
            "num_attention_heads=4 is no multiple of num_key_value_heads=3",
        ),
        ({"hidden_size": 18}, "hidden_size=18 is no multiple of num_attention_heads=4"),
        ({"head_dim": 5}, "head_dim=5 is no multiple of a pair=2"),
        ({"hidden_act": "mish"}, "hidden_act=mish is not supported, only gelu or gelu_new"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1 is not supported, only 0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported, only 1"),
        (
            {"rope_parameters": {"rope_type": "yarn"}},
            "rope_scaling type=yarn is not supported, only default or linear",
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2}},
            "rope_scaling type=dynamic is not supported",
        ),
        ({"rope_scaling": {"type": "linear"}}, "rope scaling linear lacks factor"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8}},
            "lacks low_freq_factor, high_freq_factor",
        ),
    ],
)
def test_unsupported_llamas_are_refused_by_name(changes, message):
    with pytest.raises(UserError, match=message):
        read(LLAMA | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ffn_dim": None}, "config.json of a opt model lacks ffn_dim"),
        ({"num_attention_heads": 3}, "hidden_size=16 is no multiple of num_attention_heads=3"),
        ({"activation_function": "mish"}, "activation_function=mish is not supported"),
        ({"layerdrop": 0.1}, "layerdrop=0.1 is not supported, only 0"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1 is not supported, only 0"),
    ],
)
def test_unsupported_opts_are_refused_by_name(changes, message):
    with pytest.raises(UserError, match=message):
        read(OPT | changes)
