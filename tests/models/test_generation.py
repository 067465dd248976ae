"""Generation with a cache: equal to repeated full passes, row by row, reproducible, few
compilations.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from snake_jax.errors import UserError
from snake_jax.kernels.dequantize import dense
from snake_jax.models import generation
from snake_jax.models.generation import generate
from snake_jax.models.hub import load_pretrained
from snake_jax.models.presets import from_preset
from tests.models.make_golden import FOLDER
from tests.sweeps import sweep

VARIANTS = ("llama_gqa_tied", "llama_rope_llama3", "opt_pre_norm", "opt_post_norm_projected")
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5], [7], [11, 13, 17, 19]]


@functools.cache
def loaded(variant):
    model, params = load_pretrained(FOLDER / variant)
    return model, jax.tree.map(jnp.asarray, params)


def full_passes(model, params, prompts, count, **options):
    """Greedy decoding without a cache: the whole rows anew for every token; what is behind a row's
    end is not seen.
    """
    forward = jax.jit(functools.partial(model.apply, **options))
    rows, ends = (
        np.zeros((len(prompts), 32), np.int32),
        np.array([len(prompt) for prompt in prompts]),
    )
    for row, prompt in zip(rows, prompts, strict=True):
        row[: len(prompt)] = prompt
    each = np.arange(len(prompts))
    for step in range(count):
        rows[each, ends + step] = np.asarray(forward(params, rows)).argmax(-1)[
            each, ends + step - 1
        ]
    return [row[end : end + count].tolist() for row, end in zip(rows, ends, strict=True)]


@pytest.mark.parametrize(
    "variant", sweep(VARIANTS, quick=("llama_gqa_tied", "opt_post_norm_projected"))
)
def test_greedy_generation_is_the_argmax_of_full_passes(variant):
    model, params = loaded(variant)
    new = generate(model, params, PROMPTS, max_new_tokens=12)
    assert new == full_passes(model, params, PROMPTS, 12)
    assert len({tuple(row) for row in new}) == 3


def test_rows_of_a_batch_are_what_they_are_alone():
    model, params = loaded("llama_gqa_tied")
    together = generate(model, params, PROMPTS, max_new_tokens=10)
    assert together == [
        generate(model, params, [prompt], max_new_tokens=10)[0] for prompt in PROMPTS
    ]


def test_a_row_ends_before_its_first_stop_token():
    model, params = loaded("opt_pre_norm")
    free = generate(model, params, PROMPTS, max_new_tokens=12)
    stop = free[0][5]
    stopped = generate(model, params, PROMPTS, max_new_tokens=12, stop_ids=[stop, 39])
    assert [
        row[: next((i for i, x in enumerate(row) if x in (stop, 39)), 12)] for row in free
    ] == stopped
    assert len(stopped[0]) <= 5


def test_the_loop_ends_when_all_rows_have_stopped():
    model, params = loaded("opt_pre_norm")
    first = [row[0] for row in generate(model, params, PROMPTS, max_new_tokens=1)]
    static = generation._Static(model, generation._identity, jnp.dtype("float32"), 16)
    ids, lengths = generation._padded(PROMPTS)
    settings = {
        "temperature": jnp.float32(0),
        "top_k": jnp.int32(0),
        "top_p": jnp.float32(1),
        "key": jax.random.key(0),
    }
    request = generation._Request(ids, lengths, jnp.int32(16), jnp.array(first), **settings)
    output = generation._program(static, generation._Weights(params, {}), request)
    assert output[:, 0].tolist() == first
    assert not output[:, 1:].any()


def test_draws_follow_the_seed():
    model, params = loaded("llama_gqa_tied")
    draw = functools.partial(generate, model, params, [[1]] * 3, max_new_tokens=12, temperature=1.5)
    one = draw(seed=1)
    assert one == draw(seed=1)
    assert one != draw(seed=2)
    assert len({tuple(row) for row in one}) == 3


def test_a_low_temperature_or_one_candidate_is_greedy():
    model, params = loaded("llama_gqa_tied")
    draw = functools.partial(generate, model, params, PROMPTS, max_new_tokens=12)
    assert (
        draw(temperature=1e-4)
        == draw(temperature=5.0, top_k=1)
        == draw(temperature=5.0, top_p=1e-6)
        == draw()
    )


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (0, 1.0, [0, 1, 2, 3]),
        (2, 1.0, [1, 3]),
        (0, 0.5, [1]),  # 0.5 are reached by the first
        (0, 0.51, [1, 3]),
        (0, 0.93, [0, 1, 3]),
        (3, 0.85, [1, 3]),  # of the three likeliest, the first two have 0.8 / 0.94 = 0.851
        (3, 0.86, [0, 1, 3]),
    ],
)
def test_draws_are_from_the_likeliest_only(top_k, top_p, kept):
    logits = jnp.log(jnp.array([[0.14, 0.5, 0.06, 0.3]]))
    likely = generation._likely(logits, jnp.int32(top_k), jnp.float32(top_p))
    assert np.flatnonzero(np.isfinite(likely[0])).tolist() == kept
    assert np.array_equal(likely[0, jnp.array(kept)], logits[0, jnp.array(kept)])


def test_frequencies_of_draws_are_the_probabilities():
    logits = jnp.broadcast_to(jnp.log(jnp.array([0.1, 0.6, 0.3])), (4000, 3))
    request = generation._Request(
        *[None] * 4,
        temperature=jnp.float32(2),
        top_k=jnp.int32(2),
        top_p=jnp.float32(1),
        key=jax.random.key(0),
    )
    counts = np.bincount(generation._choose(request, logits, jnp.int32(3)), minlength=3)
    expected = np.sqrt([0, 0.6, 0.3]) / np.sqrt([0.6, 0.3]).sum()  # temperature 2 takes the root
    assert counts[0] == 0
    np.testing.assert_allclose(counts / 4000, expected, atol=4 * 0.5 / np.sqrt(4000))


def test_like_lengths_share_one_compilation():
    model, params = loaded("opt_pre_norm")
    generation._program.clear_cache()
    for length, count in ((2, 3), (5, 6), (16, 16)):
        settings = {
            "stop_ids": range(count % 7),
            "seed": count,
            "temperature": count - 3,
            "top_k": count,
        }
        generate(model, params, [[4] * length], max_new_tokens=count, **settings)
    assert generation._program._cache_size() == 1
    generate(model, params, [[4] * 17], max_new_tokens=16)
    assert generation._program._cache_size() == 2


def thaw(tree):
    return jax.tree.map(
        lambda leaf: dense(leaf, jnp.float32),
        tree,
        is_leaf=lambda leaf: isinstance(leaf, qwix.QArray),
    )


def quantize(kind, path, leaf):
    if leaf.ndim < 2:
        return leaf
    channel = 0 if path[-1].key == "embedding" else 1
    tiles = {} if kind == jnp.int8 else {"tiled_axes": {1 - channel: 64}}
    return qwix.quantize(leaf, kind, channelwise_axes=[channel], **tiles)


def test_blocks_are_dequantized_one_at_a_time():
    model = from_preset("tiny-llama", num_hidden_layers=4, hidden_size=256, head_dim=64)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    stored = jax.eval_shape(
        functools.partial(jax.tree_util.tree_map_with_path, functools.partial(quantize, "nf4")),
        shapes,
    )
    block_bytes = sum(leaf.size * 4 for leaf in jax.tree.leaves(shapes["block_00"]))
    static = generation._Static(model, thaw, jnp.dtype("float32"), 16)
    scalar = lambda dtype: jax.ShapeDtypeStruct((), dtype)  # noqa: E731
    ids, lengths, stops = (
        jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((1, 16), (1,), (8,))
    )
    request = generation._Request(
        ids,
        lengths,
        scalar("int32"),
        stops,
        scalar("float32"),
        scalar("int32"),
        scalar("float32"),
        jax.random.key(0),
    )
    compiled = generation._program.lower(static, generation._Weights(stored, {}), request).compile()
    # All dense at once would be 4 blocks. One is 1; the rest are caches, activations and the table.
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * block_bytes


def test_adapters_and_quantized_weights_generate_what_full_passes_do():
    model = from_preset("tiny-llama", num_hidden_layers=2, initializer_range=0.1)
    store = functools.partial(
        jax.tree_util.tree_map_with_path, functools.partial(quantize, jnp.int8)
    )
    stored = jax.jit(lambda key: store(model.init(key)))(jax.random.key(0))
    a, b = (
        0.5 * jax.random.normal(jax.random.key(k), shape)
        for k, shape in ((1, (64, 2)), (2, (2, 192)))
    )
    options = {"adapters": {"block_01": {"mlp": {"up_proj": {"a": a, "b": b}}}}, "prepare": thaw}
    new = generate(model, stored, PROMPTS[:2], max_new_tokens=6, **options)
    assert new == full_passes(model, stored, PROMPTS[:2], 6, **options)
    assert new != full_passes(model, stored, PROMPTS[:2], 6, prepare=thaw)


def test_bfloat16_generates():
    model, params = loaded("opt_post_norm_projected")
    new = generate(model, params, PROMPTS, max_new_tokens=5, dtype=jnp.bfloat16)
    assert new == full_passes(model, params, PROMPTS, 5, dtype=jnp.bfloat16)


def test_nothing_to_do_is_done():
    model, params = loaded("opt_pre_norm")
    assert generate(model, params, [], max_new_tokens=3) == []
    assert generate(model, params, PROMPTS, max_new_tokens=0) == [[], [], []]


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([[1], []], {}, "prompt 1 is empty"),
        ([[1], [40]], {}, "prompt 1 has id 40, opt_pre_norm knows 0 to 39"),
        ([[-1]], {}, "prompt 0 has id -1"),
        ([[1] * 46], {}, "46 tokens, with 3 new ones more than the 48 positions of opt_pre_norm"),
        ([[1]], {"max_new_tokens": -1}, "max_new_tokens must not be negative"),
        ([[1]], {"temperature": -1.0}, "temperature must be 0"),
        ([[1]], {"top_k": -1}, "top_k must be 0"),
        ([[1]], {"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
    ],
)
def test_wrong_requests_are_refused(prompts, settings, message):
    model, params = loaded("opt_pre_norm")
    with pytest.raises(UserError, match=message):
        generate(model, params, prompts, **{"max_new_tokens": 3, **settings})


def test_all_positions_of_the_model_can_be_used():
    model, params = loaded("opt_pre_norm")
    assert len(generate(model, params, [[1] * 32], max_new_tokens=16)[0]) == 16
