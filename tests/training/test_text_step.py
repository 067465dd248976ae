"""The step of language models: against plain autodiff of the whole model, with packing, adapters,
ends and teachers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from snake_jax.algorithms.proximal import proximal_client
from snake_jax.config import TextConfig
from snake_jax.data.text import packing
from snake_jax.models.language import Tokens
from snake_jax.models.presets import from_preset
from snake_jax.training import adapter_columns, quantization, stack
from snake_jax.training.image_step import Distillation
from snake_jax.training.optimizers import init_states, update_rule
from snake_jax.training.text_scores import evaluate, exact_texts
from snake_jax.training.text_step import (
    ENDS,
    FrozenModel,
    LanguageStep,
    TextBatch,
    block_roles,
    own_items,
    prefix,
    train_step,
)
from tests.sweeps import sweep

pytestmark = pytest.mark.usefixtures("quick_compilation")
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
LLAMA = from_preset("tiny-llama", num_hidden_layers=3, vocab_size=40, **SMALL)
UNTIED = from_preset(
    "tiny-llama", num_hidden_layers=3, vocab_size=40, tie_word_embeddings=False, **SMALL
)
OPT = from_preset(
    "tiny-opt",
    num_hidden_layers=3,
    vocab_size=40,
    hidden_size=16,
    ffn_dim=24,
    num_attention_heads=2,
)
MODELS = {"llama": LLAMA, "untied": UNTIED, "opt": OPT}
RATE = 0.1


@functools.cache
def weights(name):
    """Larger than fresh ones, so that no part of the model is nearly linear."""
    return jax.tree.map(
        lambda w: w * (8.0 if w.ndim > 1 else 1.0), MODELS[name].init(jax.random.key(1))
    )


def rows(seed=0, shape=(1, 2, 7), packed=False):
    """Random tokens; where packed, each row has a text of 4, one of 2, and padding."""
    keys = jax.random.split(jax.random.key(seed), 3)
    ids, targets = (jax.random.randint(key, shape, 0, 40) for key in keys[:2])
    positions = jnp.broadcast_to(jnp.arange(shape[-1]), shape)
    weight = (jax.random.uniform(keys[2], shape) < 0.7).astype(jnp.float32)
    if not packed:
        return TextBatch(ids, targets, weight, positions)
    positions = jnp.broadcast_to(jnp.array([0, 1, 2, 3, 0, 1, 0]), shape)
    segments = jnp.broadcast_to(jnp.array([1, 1, 1, 1, 2, 2, 0]), shape)
    return TextBatch(ids, targets, weight * (segments > 0), positions, segments)


def adapters(name, seed=5):
    def one(path, kernel, index):
        key = jax.random.fold_in(jax.random.key(seed), index)
        a, b = jax.random.split(key)
        return {
            "a": 0.3 * jax.random.normal(a, (len(kernel), 2)),
            "b": 0.3 * jax.random.normal(b, (2, kernel.shape[1])),
        }

    def tree(block, index):
        flat = {k: v for k, v in _flat(block).items() if k[-1] == "kernel"}
        made = {k[:-1]: one(k, v, 100 * index + i) for i, (k, v) in enumerate(sorted(flat.items()))}
        return _nested(made)

    return [tree(weights(name)[item], i) for i, item in enumerate(own_items(MODELS[name], False))]


def _flat(tree, path=()):
    return {
        k: v
        for n, s in tree.items()
        for k, v in (_flat(s, (*path, n)) if isinstance(s, dict) else {(*path, n): s}).items()
    }


def _nested(flat):
    tree = {}
    for path, leaf in flat.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = leaf
    return tree


def parted(name, first, count=1, ends=(), adapted=False, dtype="float32"):
    """Trainable, frozen, for blocks from `first` on."""
    model, params = MODELS[name], weights(name)
    blocks = [params[item] for item in own_items(model, False)]
    own = adapters(name) if adapted else blocks
    freeze = functools.partial(quantization.freeze, dtype=dtype)
    trainable = dict(zip(block_roles(count), own[first : first + count], strict=True)) | {
        n: params[n] for n in ends
    }
    others = [
        freeze(w) if not adapted else w for i, w in enumerate(own) if not first <= i < first + count
    ]
    rest = stack.stack_trees(others) if others else jax.tree.map(lambda w: w[None][:0], own[0])
    base = stack.stack_trees([freeze(w) for w in blocks]) if adapted else {}
    frozen = FrozenModel(
        stack.FrozenBlocks(base, rest, jnp.int32(first)),
        {n: freeze(params[n]) for n in ENDS if n not in ends},
    )
    return trainable, frozen


def make(name="llama", **changes):
    settings = {
        "rule": update_rule("sgd", momentum=0.0, weight_decay=0.0),
        "clip_norm": 0.0,
        **changes,
    }
    return LanguageStep(MODELS[name], **settings)


def run(step, trainable, frozen, batch, received=None, key=None):
    states = init_states(step.rule, trainable, tuple(trainable))
    function = train_step(step, tuple(trainable))
    received = trainable if received is None and step.needs_received else received or {}
    return jax.jit(function)(
        trainable, states, frozen, received, batch, key or jax.random.key(0), jnp.float32(RATE)
    )


def whole_loss(name, params, own_adapters, batch, teacher=None, distillation=None):
    """The loss by the model's whole logits; one part of a batch."""
    named = dict(zip(own_items(MODELS[name], False), own_adapters or [{}] * 3, strict=True))
    tokens = Tokens(
        batch.ids[0], batch.positions[0], None if batch.segments is None else batch.segments[0]
    )
    logits = MODELS[name].apply(params, tokens, adapters=named)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets[0])
    if teacher is not None:
        temperature, factor = distillation
        taught = jax.nn.softmax(MODELS[name].apply(teacher, tokens) / temperature)
        losses = losses + factor * temperature**2 * optax.softmax_cross_entropy(
            logits / temperature, taught
        )
    return (losses * batch.weight[0]).sum() / batch.weight[0].sum()


def grad(function):
    return jax.jit(jax.grad(function))


def close(tree, other, rtol=2e-4, atol=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), tree, other)


@pytest.mark.parametrize(
    ("name", "ends", "packed"),
    sweep(
        [
            ("llama", (), False),
            ("llama", ("head",), True),
            ("llama", ENDS, False),
            ("untied", ENDS, True),
            ("untied", ("head",), False),
            ("opt", (), True),
            ("opt", ENDS, False),
        ],
        quick=[("llama", (), False), ("untied", ENDS, True), ("opt", ENDS, False)],
    ),
)
def test_a_step_is_that_of_the_whole_models_gradient(name, ends, packed):
    trainable, frozen = parted(name, 1, ends=ends)
    batch = rows(packed=packed)
    gradients = grad(lambda params: whole_loss(name, params, None, batch))(weights(name))
    wanted = {"block_0": gradients["block_01"], **{end: gradients[end] for end in ends}}
    if (
        ends == ("head",) and MODELS[name].tied
    ):  # the matrix is the embedding's, which does not train here
        wanted["head"] = grad(
            lambda h: whole_loss(name, {**weights(name), "head": h}, None, batch)
        )(weights(name)["head"])
    new, _, stats = run(make(name), trainable, frozen, batch)
    close(new, jax.tree.map(lambda w, g: w - RATE * g, trainable, wanted))
    np.testing.assert_allclose(
        stats.loss_sum / stats.examples, whole_loss(name, weights(name), None, batch), rtol=1e-5
    )


@pytest.mark.parametrize("name", ["untied", "opt"])
def test_all_blocks_at_once_are_federated_averagings_step(name):
    trainable, frozen = parted(name, 0, 3, ends=ENDS)
    batch = rows()
    gradients = grad(lambda params: whole_loss(name, params, None, batch))(weights(name))
    wanted = dict(
        zip(
            block_roles(3),
            (gradients[item] for item in own_items(MODELS[name], False)),
            strict=True,
        )
    )
    wanted |= {end: gradients[end] for end in ENDS}
    new, *_ = run(make(name), trainable, frozen, batch)
    close(new, jax.tree.map(lambda w, g: w - RATE * g, trainable, wanted))


def test_adapters_train_beside_their_frozen_base():
    scale = 0.5
    trainable, frozen = parted("llama", 1, adapted=True)
    batch, every = rows(), adapters("llama")

    def loss(own):
        chosen = [own if i == 1 else other for i, other in enumerate(every)]
        scaled = jax.tree.map(lambda w: scale * w if w.shape[0] == 2 else w, chosen)
        return whole_loss("llama", weights("llama"), scaled, batch)

    new, *_ = run(make(adapted=True, adapter_scale=scale), trainable, frozen, batch)
    close(new["block_0"], jax.tree.map(lambda w, g: w - RATE * g, every[1], grad(loss)(every[1])))


def of_rank(rank, trainable, frozen):
    """The same at a node that trains the first columns and reads the others."""
    columns = [adapter_columns.cut(tree, rank, 2) for tree in trainable.values()]
    blocks = frozen.blocks._replace(columns=stack.stack_trees(columns))
    return adapter_columns.cut(trainable, 0, rank), frozen._replace(blocks=blocks)


@pytest.mark.parametrize(
    ("recompute", "count"), sweep([("block", 1), ("none", 1), ("block", 2)], quick=[("block", 1)])
)
def test_a_node_of_smaller_rank_trains_its_columns_only(recompute, count):
    trainable, frozen = parted("llama", 1, count, adapted=True)
    rule = update_rule("adamw", momentum=0.0, weight_decay=0.1)
    step = make(adapted=True, rule=rule, recompute=recompute)
    whole, *_, stats = run(step, trainable, frozen, rows())
    part, _, of_part = run(step, *of_rank(1, trainable, frozen), rows())
    close(part, adapter_columns.cut(whole, 0, 1), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(of_part.loss_sum, stats.loss_sum, rtol=1e-6)


def test_a_client_pulls_what_trains_and_leaves_foreign_columns_alone():
    trainable, frozen = parted("llama", 1, adapted=True)
    received = jax.tree.map(lambda w: 1.1 * w, trainable)
    free, *_ = run(make(adapted=True), trainable, frozen, rows())
    pulling = make(adapted=True, client=proximal_client(TextConfig(proximal=0.5)))
    assert pulling.needs_received
    pulled, *_ = run(pulling, trainable, frozen, rows(), received)
    wanted = jax.tree.map(lambda w, a, b: w - RATE * 0.5 * (a - b), free, trainable, received)
    close(pulled, wanted)
    own, reading = of_rank(1, trainable, frozen)
    part, *_ = run(pulling, own, reading, rows(), adapter_columns.cut(received, 0, 1))
    close(part, adapter_columns.cut(pulled, 0, 1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("ends", [(), ("embed", "head")])
def test_distillation_is_from_the_model_as_received(ends):
    distillation = Distillation(2.0, 0.7)
    received, frozen = parted("llama", 1, ends=ends)
    trainable = jax.tree.map(lambda w: 1.3 * w, received)
    batch = rows(3)
    student = {
        **weights("llama"),
        "block_01": trainable["block_0"],
        **{end: trainable[end] for end in ends},
    }
    gradients = grad(
        lambda params: whole_loss("llama", params, None, batch, weights("llama"), distillation)
    )(student)
    wanted = {"block_0": gradients["block_01"], **{end: gradients[end] for end in ends}}
    new, *_ = run(make(distillation=distillation), trainable, frozen, batch, received)
    close(new, jax.tree.map(lambda w, g: w - RATE * g, trainable, wanted))


def test_parts_of_a_batch_add_up_to_the_whole_batch():
    trainable, frozen = parted("llama", 0)
    whole = rows(shape=(1, 4, 7))
    halves = jax.tree.map(lambda w: w.reshape(2, 2, *w.shape[2:]), whole)
    close(*(run(make(), trainable, frozen, batch)[0] for batch in (whole, halves)))


def test_packed_texts_have_the_loss_they_have_apart():
    pair = [
        packing.Example(np.array(ids, np.int32), np.arange(len(ids)) >= 2)
        for ids in ([3, 9, 4, 7, 2], [5, 6, 8])
    ]
    packed, apart = packing.pack(pair, 7, 0), packing.pad(pair, [7], 0)[7]
    assert packed.ids.shape == (1, 7)
    assert apart.ids.shape == (2, 7)
    step, scores = make(), []
    for part in (packed, apart):
        params = weights("llama")
        own = stack.stack_trees([params[item] for item in own_items(LLAMA, False)])
        scores.append(jax.jit(evaluate(step))({}, own, params, TextBatch(*map(jnp.asarray, part))))
    close(*scores, rtol=1e-5)
    assert scores[0].tokens == 4


def test_a_text_is_exact_where_all_its_targets_are_hit():
    # Two texts and padding in a row; the second row's one text has no target.
    segments = jnp.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 0, 0, 0]])
    weight = jnp.array([[0, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0]], jnp.float32)
    rows = TextBatch(segments, segments, weight, segments, segments)
    hits = {
        (1, 1, 1, 1, 1, 1): (2, 2),
        (0, 1, 1, 0, 1, 0): (2, 2),
        (1, 1, 0, 1, 1, 1): (1, 2),
        (1, 1, 0, 1, 0, 1): (0, 2),
    }
    for hit, wanted in hits.items():
        assert exact_texts(rows, jnp.array([hit, hit])) == wanted
    # Without segments each row is a text.
    assert exact_texts(rows._replace(segments=None), jnp.ones((2, 6))) == (1, 1)
    assert exact_texts(rows._replace(segments=None), jnp.zeros((2, 6))) == (0, 1)


def test_gradients_do_not_cross_from_text_to_text():
    """A row of two texts trains as two rows of one do."""
    pair = [
        packing.Example(np.array(ids, np.int32), np.arange(len(ids)) >= 2)
        for ids in ([3, 9, 4, 7, 2], [5, 6, 8])
    ]
    trainable, frozen = parted("llama", 1)
    packed, apart = packing.pack(pair, 7, 0), packing.pad(pair, [7], 0)[7]
    batches = [TextBatch(*(jnp.asarray(part)[None] for part in rows)) for rows in (packed, apart)]
    close(*(run(make(), trainable, frozen, batch)[0] for batch in batches))


@pytest.mark.parametrize("dtype", sweep(["int8", "nf4"], quick=["nf4"]))
def test_frozen_blocks_compute_as_they_dequantize(dtype):
    trainable, frozen = parted("llama", 1, dtype=dtype)
    thawed = {
        name: quantization.thaw(quantization.freeze(subtree, dtype), jnp.float32)
        for name, subtree in weights("llama").items()
    }
    params = {**thawed, "block_01": weights("llama")["block_01"]}
    batch = rows()
    gradient = grad(lambda block: whole_loss("llama", {**params, "block_01": block}, None, batch))(
        params["block_01"]
    )
    new, *_ = run(make(), trainable, frozen, batch)
    close(
        new["block_0"],
        jax.tree.map(lambda w, g: w - RATE * g, params["block_01"], gradient),
        2e-3,
        1e-4,
    )


@pytest.mark.parametrize(
    ("name", "adapted", "dtype", "recompute"),
    sweep(
        [
            ("llama", True, "nf4", "block"),
            ("opt", True, "int8", "none"),
            ("opt", False, "nf4", "block"),
        ],
        quick=[("llama", True, "nf4", "block")],
    ),
)
def test_matrices_that_stay_in_their_stack_give_the_same_step(name, adapted, dtype, recompute):
    trainable, frozen = parted(name, 1, adapted=adapted, dtype=dtype)
    assert any(
        map(
            quantization.is_quantized,
            jax.tree.leaves(frozen.blocks, is_leaf=quantization.is_quantized),
        )
    )
    options = {"adapted": adapted, "recompute": recompute}
    fused, plain = (
        run(make(name, fused=fused, **options), trainable, frozen, rows())
        for fused in (True, False)
    )
    close(fused, plain, 1e-5, 1e-6)


def test_of_matrices_that_stay_in_their_stack_nothing_is_kept_for_the_backward_pass():
    trainable, frozen = parted("llama", 1, adapted=True, dtype="int8")
    step = make(adapted=True, recompute="none", fused=True)
    states = init_states(step.rule, trainable, tuple(trainable))
    program = jax.make_jaxpr(train_step(step, tuple(trainable)))
    text = str(program(trainable, states, frozen, {}, rows(), jax.random.key(0), jnp.float32(RATE)))
    assert "i8[3," in text
    assert "i8[2,3," not in text


def test_a_given_entrance_changes_no_bit():
    trainable, frozen = parted("llama", 2)
    batch = rows()
    hidden = jax.jit(prefix(make()))(frozen, jax.tree.map(lambda w: w[0], batch))[None]
    here, there = (
        run(make(), trainable, frozen, batch._replace(hidden=h))[0] for h in (None, hidden)
    )
    jax.tree.map(np.testing.assert_array_equal, here, there)


def test_one_compilation_serves_all_blocks():
    traces = []
    step = make()
    function = train_step(step, ("block_0",))

    @jax.jit
    def traced(*args):
        traces.append(1)
        return function(*args)

    for first in range(3):
        trainable, frozen = parted("llama", first)
        states = init_states(step.rule, trainable, ("block_0",))
        traced(trainable, states, frozen, {}, rows(), jax.random.key(0), jnp.float32(RATE))
    assert len(traces) == 1


def test_bfloat16_trains_float32_masters():
    trainable, frozen = parted("llama", 1, dtype="bfloat16")
    new, _, stats = run(make(compute_dtype=jnp.bfloat16), trainable, frozen, rows())
    exact, *_ = run(make(), trainable, parted("llama", 1)[1], rows())
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype("float32")}
    moved = [jax.tree.map(lambda a, b: a - b, tree, trainable) for tree in (new, exact)]
    for a, b in zip(*map(jax.tree.leaves, moved), strict=True):
        assert np.abs(a - b).max() < 0.15 * np.abs(b).max()
    assert stats.finite
