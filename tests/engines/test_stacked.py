"""Visits on language models: every method, what a visit changes and sends, one compilation, kept
prefixes, batches.
"""

import functools

import jax
import numpy as np
import pytest

from snake_jax.config import TextConfig
from snake_jax.data.text import packing
from snake_jax.engines.build import text_engine
from snake_jax.engines.contract import Held, Holdings, run_round, run_visits
from snake_jax.engines.epochs import settings_of
from snake_jax.nodes.places import SERVER, node
from snake_jax.params import select, without
from snake_jax.runs import loop, text_results, text_task
from snake_jax.runs.job import planned_transfers, state_like
from snake_jax.training import text_step
from snake_jax.training.text_step import ADAPTERS, ENDS
from tests.clients import drift
from tests.costs.test_language_costs import ADAPTER_PARAMS, BLOCK_BYTES, HEAD_BYTES, TABLE_BYTES
from tests.helpers import close, same_bits
from tests.launches import write_model, write_pairs
from tests.sweeps import sweep

BLOCKS = ("block_00", "block_01", "block_02")
SMALL = {"max_length": 64, "nodes": 2, "batch_size": 4, "eval_every": 100}
SMALL |= {"optimizer": "adamw", "learning_rate": 0.01}
FULL, LORA = {"lora_rank": 0}, {"lora_rank": 4, "lora_scale": 2.0}


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory):
    """A model of three blocks and short pairs, for all runs here."""
    folder = tmp_path_factory.mktemp("files")
    SMALL["model"], SMALL["data"] = (
        str(write_model(folder / "model")),
        str(write_pairs(folder / "pairs.jsonl")),
    )
    names = ("jax_disable_most_optimizations", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    for name, value in zip(names, (True, 0.0), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    _kept.cache_clear()
    _executor.cache_clear()


@functools.cache
def _kept(flags):
    flags = dict(flags)
    setup = loop.prepare(TextConfig(**SMALL | flags))
    state, executor = loop.initial_state(setup), _executor(_deciding(flags))
    return setup, executor, state, list(loop.train(setup, executor, state, lambda state: None))


def _deciding(flags):
    """Of these flags those that decide what an executor is: runs that differ in their visits alone
    share one.
    """
    others = {"order", "cycles", "interrupt", "interruption"}
    kind = flags.get("algorithm", "snake")
    if kind == "sequential" or (kind == "fedavg" and flags["lora_rank"]):
        kind = "snake" if flags["lora_rank"] else "fedavg"
    kept = {name: value for name, value in flags.items() if name not in others}
    return tuple(sorted((kept | {"algorithm": kind}).items()))


@functools.cache
def _executor(flags):
    return loop.make_engine(loop.prepare(TextConfig(**SMALL | dict(flags))))


def run(**flags):
    """Setup, executor, first state and reports of a run, made once for the same flags."""
    return _kept(tuple(sorted(flags.items())))


def final(**flags):
    """The parameters that a run ends with."""
    return run(**flags)[-1][-1].state.params


def moved(before, after):
    """The names of what changed by a bit, here of what may train."""
    assert before.keys() == after.keys()
    return {name for name in before if not same_bits(before[name], after[name])}


# Methods


@pytest.mark.parametrize("size", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("algorithm", ["snake", "fedavg", "centralised", "sequential"])
def test_every_method_trains_all_there_is_and_the_loss_falls(algorithm, size):
    _, executor, first, reports = run(algorithm=algorithm, **size)
    last = reports[-1]
    suffix = ADAPTERS if size is LORA else ""
    whole = {name + suffix for name in BLOCKS} | (
        set() if size is LORA or algorithm == "snake" else set(ENDS)
    )
    assert moved(first.params, last.state.params) == set(first.params) == whole
    assert last.record["test_loss"] < executor.evaluate(first.params)[1]
    assert (
        sum(r.record["bytes_up"] + r.record["bytes_down"] for r in reports) > 0
        or algorithm == "centralised"
    )


@pytest.mark.parametrize(
    ("order", "size"),
    [("sequential", FULL), ("random", LORA), ("reverse", FULL)],
    ids=["full", "lora", "reverse"],
)
def test_a_visit_changes_what_it_trains_and_no_bit_of_anything_else(order, size):
    _, _, state, reports = run(order=order, cycles=2, **size)
    params, seen = state.params, []
    for report in reports:
        (layer,) = report.record["layers"]
        assert moved(params, report.state.params) == {layer}
        params = report.state.params
        seen.append(layer.removesuffix(ADAPTERS))
    assert (sorted(seen[:3]), sorted(seen[3:])) == (list(BLOCKS), list(BLOCKS))
    if order != "random":
        assert tuple(seen[:3]) == (BLOCKS if order == "sequential" else BLOCKS[::-1])


def test_the_order_is_drawn_anew_in_every_cycle():
    setup = loop.prepare(TextConfig(**SMALL | FULL | {"order": "random", "cycles": 8}))
    orders = [visit.layers for (visit,) in loop.planned(setup)]
    assert len({tuple(orders[i : i + 3]) for i in range(0, 24, 3)}) > 1


def test_ends_train_at_every_visit():
    _, _, state, reports = run(always_train="embed,head", **FULL)
    params = state.params
    for report, block in zip(reports, BLOCKS, strict=True):
        assert moved(params, report.state.params) == {block, *ENDS}
        params = report.state.params


def test_federated_averaging_of_one_node_is_centralised_training():
    flags = {"nodes": 1, "cycles": 2, **LORA}
    assert same_bits(final(algorithm="fedavg", **flags), final(algorithm="centralised", **flags))


def test_federated_averaging_is_the_mean_by_tokens_with_a_loss():
    setup, executor, state, (report,) = run(algorithm="fedavg", **LORA)
    ((*visits,),) = loop.planned(setup)
    done = run_visits(executor, visits, state.params, {}, setup.config.learning_rate)
    held = setup.data.rows.train.target_tokens
    assert [result.examples_held for result in done] == held.tolist()
    assert held[0] != held[1]
    mean = jax.tree.map(
        lambda *w: np.average(np.float64(w), axis=0, weights=held), *(r.layers for r in done)
    )
    assert close(report.state.params, mean, rtol=1e-6, atol=1e-8)


def test_distillation_holds_on_to_what_was_received():
    """The first step's teacher is the student; later ones pull back to it."""
    setup, *_ = run(distill="on", distill_weight=50.0, local_epochs=3, **LORA)
    assert setup.distilled
    start = run(**LORA)[2].params
    distance = [
        sum(
            float(np.abs(a - b).sum())
            for a, b in zip(*map(jax.tree.leaves, (tree, start)), strict=True)
        )
        for tree in (
            final(distill="on", distill_weight=50.0, local_epochs=3, **LORA),
            final(local_epochs=3, **LORA),
        )
    ]
    assert 0 < distance[0] < distance[1]


def test_a_node_of_smaller_rank_leaves_the_other_columns_alone():
    _, _, state, reports = run(rank="2,4", **LORA)
    params = state.params
    for report, widest in zip(reports, (2, 4, 2), strict=True):
        (layer,) = report.record["layers"]
        for path, new in jax.tree.leaves_with_path(report.state.params[layer]):
            kind = path[-1].key
            old = functools.reduce(lambda tree, key: tree[key.key], path, params[layer])
            changed = (np.asarray(new) != np.asarray(old)).any(0 if kind == "a" else 1)
            # b begins at zero, so that the first step of a block moves a little, or not at all
            # where there is one step.
            assert not changed[widest:].any()
            assert changed[:widest].all() or kind == "a"
        params = report.state.params


# What travels


def ledger(**flags):
    """What is sent where nothing goes wrong; nothing is trained for it."""
    setup = loop.prepare(TextConfig(**SMALL | flags))
    rows = []
    for _, sent in planned_transfers(setup.job):
        rows += [(str(t.source), str(t.destination), t.bytes, t.why) for t in sent]
    return rows


@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_a_snake_sends_the_trained_block_whole_and_the_others_as_stored(dtype):
    block, whole = BLOCK_BYTES[dtype], BLOCK_BYTES["float32"]
    fresh = TABLE_BYTES[dtype] + HEAD_BYTES[dtype] + whole + 2 * block
    assert ledger(frozen_dtype=dtype, **FULL) == [
        ("server", "node0", fresh, "initial"),
        ("node0", "server", whole, "update"),
        ("server", "node1", fresh, "initial"),
        ("node1", "server", whole, "update"),
        (
            "server",
            "node0",
            block + whole,
            "catch-up",
        ),  # block_01 has changed, block_02 it is to train
        ("node0", "server", whole, "update"),
    ]


@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_with_adapters_the_base_travels_once_and_adapters_only_afterwards(dtype):
    adapters = 4 * ADAPTER_PARAMS
    fresh = (
        TABLE_BYTES[dtype]
        + HEAD_BYTES[dtype]
        + 3 * BLOCK_BYTES[dtype]
        + adapters
        + 2 * adapters // 2
    )
    assert ledger(frozen_dtype=dtype, **LORA) == [
        ("server", "node0", fresh, "initial"),
        ("node0", "server", adapters, "update"),
        ("server", "node1", fresh, "initial"),
        ("node1", "server", adapters, "update"),
        ("server", "node0", adapters // 2 + adapters, "catch-up"),
        ("node0", "server", adapters, "update"),
    ]


def test_a_node_of_smaller_rank_sends_its_columns_and_others_are_sent_no_more_than_these():
    adapters = 4 * ADAPTER_PARAMS
    sent = ledger(rank="1,4", cycles=2, **LORA)
    handed = [num_bytes for source, _, num_bytes, why in sent if why == "update"]
    assert [source for source, *_, why in sent if why == "update"] == ["node0", "node1"] * 3
    assert handed == [adapters // 4, adapters] * 3
    # Node 0 has had all; since then node 1 trained all columns of block 1, and it is to train
    # block 2. Node 1 lacks of block 2 the column that node 0 trained, and all of block 0, which it
    # is to train.
    to_node0, to_node1 = (
        [num_bytes for _, node, num_bytes, why in sent if node == name and why == "catch-up"]
        for name in ("node0", "node1")
    )
    assert to_node0[0] == adapters // 2 + adapters
    assert to_node1[0] == adapters // 2 // 4 + adapters
    whole = ledger(rank="4,4", cycles=2, **LORA)
    assert whole == ledger(cycles=2, **LORA)
    assert sum(row[2] for row in sent) < sum(row[2] for row in whole)


@pytest.mark.parametrize("mode", ["client_server", "peer_to_peer"])
def test_optimizer_states_travel_by_columns_too(mode):
    states = {"carry_optimizer_state": True, "mode": mode, "order": "reverse", **LORA}
    narrow, whole = (ledger(rank=rank, cycles=2, **states) for rank in ("2,2", "4,4"))
    assert len(narrow) == len(whole)
    for ours, theirs in zip(narrow, whole, strict=True):
        assert ours[:2] == theirs[:2]
    # What node 0 hands on first: two of four columns, of weights and of both moments.
    adapters = 4 * ADAPTER_PARAMS
    first = next(row for row in narrow if row[3] == "update")
    count = 4
    if mode == "client_server":
        assert first[2] == 3 * adapters // 2 + count


def test_federated_averaging_sends_adapters_both_ways():
    adapters = 3 * 4 * ADAPTER_PARAMS
    base = TABLE_BYTES["int8"] + HEAD_BYTES["int8"] + 3 * BLOCK_BYTES["int8"]
    assert sorted(ledger(algorithm="fedavg", **LORA)) == [
        ("node0", "server", adapters, "update"),
        ("node1", "server", adapters, "update"),
        ("server", "node0", base + adapters, "initial"),
        ("server", "node1", base + adapters, "initial"),
    ]


def test_what_is_sent_is_what_the_run_sent():
    reports = run(**LORA)[-1]
    assert [
        (str(t.source), str(t.destination), t.bytes, t.why) for r in reports for t in r.transfers
    ] == ledger(**LORA)
    for report in reports:
        up, down = (
            sum(t.bytes for t in report.transfers if (t.source == SERVER) is from_)
            for from_ in (False, True)
        )
        assert (report.record["bytes_up"], report.record["bytes_down"]) == (up, down)


@pytest.mark.parametrize(
    "ends", [LORA, {"lora_rank": 0, "always_train": "embed,head"}], ids=["lora", "ends"]
)
def test_a_carried_optimizer_state_travels_with_its_layers(ends):
    flags = {"cycles": 2, "nodes": 1, **ends}
    carried, fresh = run(carry_optimizer_state=True, **flags)[-1], run(**flags)[-1]
    trained = carried[0].record["layers"]
    weights = sum(
        w.nbytes for name in trained for w in jax.tree.leaves(carried[0].state.params[name])
    )
    sent = [t.bytes for report in carried for t in report.transfers if t.source == node(0)]
    assert sent == [3 * weights + 4 * len(trained)] * 6, (
        "weights, two moments, and the numbers of their steps"
    )
    last = carried[-1].state
    assert jax.tree.structure(last.states) == jax.tree.structure(
        state_like(run(**flags)[0].job, last.states)[1]
    )
    counts = {name: int(state.inner_state[0].count) for name, state in last.states.items()}
    steps = carried[0].record["iterations"]
    assert counts == {name: (6 if name in ENDS else 2) * steps for name in last.states}
    assert same_bits(carried[0].state.params, fresh[0].state.params)
    assert moved(carried[3].state.params, fresh[3].state.params)


# Compilation


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return str(write_model(tmp_path_factory.mktemp("deep"), num_hidden_layers=24))


def test_one_training_program_serves_all_24_blocks(deep, monkeypatch):
    traces, make = [], text_step.train_step

    def counted(*args):
        function = make(*args)
        return lambda *inner: traces.append(1) or function(*inner)

    monkeypatch.setattr(text_step, "train_step", counted)
    for order in ("sequential", "random"):
        _, executor, _, reports = run(model=deep, order=order, **FULL)
        assert len({report.record["layers"][0] for report in reports}) == 24
    assert executor.compilations.programs == 2, "one for training, one for evaluation"
    assert traces == [1]


def test_a_block_is_quantized_once_on_leaving(monkeypatch):
    """The stack of the others is made once; then every visit brings in the block that was trained
    before it.
    """
    setup = loop.prepare(TextConfig(**SMALL | FULL | {"cycles": 2}))
    executor, frozen = loop.make_engine(setup), []
    layout = executor._layout
    freeze = layout._freeze_own
    layout._freeze_own = lambda subtree: frozen.append(1) or freeze(subtree)
    made = []
    for _ in loop.train(setup, executor, loop.initial_state(setup), lambda state: None):
        made.append(len(frozen))
        frozen.clear()
    # A place of the stack is a block's while it does not train; two change hands where the order
    # begins anew.
    assert made == [2, 1, 1, 2, 1, 1]


# Several epochs


def test_a_kept_prefix_changes_no_bit_and_saves_work():
    off = run(local_epochs=3, **LORA)[-1]
    for where in ("host", "device"):
        kept = run(local_epochs=3, cache_prefix=where, **LORA)[-1]
        assert same_bits(kept[-1].state.params, off[-1].state.params)
        flops = [[report.record["train_flops"] for report in reports] for reports in (off, kept)]
        assert flops[0][0] == flops[1][0], "there is nothing below the first block"
        assert flops[0][1] > flops[1][1]
        assert flops[0][2] - flops[1][2] > 1.5 * (flops[0][1] - flops[1][1]), (
            "two blocks are below the last"
        )


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"dropout": 0.1}, "dropout draws it anew in every epoch"),
        ({"always_train": "embed,head", "lora_rank": 0}, "the embedding below it trains"),
        ({"local_epochs": 1}, "one local epoch reads it once"),
    ],
)
def test_a_prefix_that_cannot_be_kept_is_off_with_a_word(flags, reason):
    flags = {"cache_prefix": "host", "local_epochs": 2} | LORA | flags
    setup, executor, _, reports = run(**flags)
    assert f"--cache_prefix=host is off: {reason}" in text_results.describe_texts(setup)
    assert {program.kind for program in executor._programs} == {"train", "evaluate"}
    assert same_bits(reports[-1].state.params, final(**flags | {"cache_prefix": "off"}))


def test_a_kept_prefix_is_not_spoken_of_where_it_is_kept():
    assert "cache_prefix" not in text_results.describe_texts(
        run(local_epochs=3, cache_prefix="host", **LORA)[0]
    )


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ("none", ""),
        ("embed", "embed trains both"),
        ("embed,head", "embed trains both"),
        ("head", "the final norm alone"),
    ],
)
def test_what_a_tied_end_trains_is_said(ends, words):
    setup = loop.prepare(TextConfig(**SMALL | FULL | {"always_train": ends}))
    told = [
        line for line in text_results.describe_texts(setup).splitlines() if "output matrix" in line
    ]
    assert len(told) == bool(words)
    assert all(words in line for line in told)


# Batches


def test_packing_changes_no_target():
    whole = [run(packing=packing, **LORA) for packing in (True, False)]
    data = [setup.data.rows for setup, *_ in whole]
    assert data[0].train.target_tokens.tolist() == data[1].train.target_tokens.tolist()
    assert max(len(rows.ids) for rows in data[0].train.rows.values()) < len(data[0].samples)
    for name in ("tokens", "target_tokens"):
        first, second = (sum(report.record[name] for report in reports) for *_, reports in whole)
        assert first == second > 0
    before = [executor.evaluate(state.params)[1] for _, executor, state, _ in whole]
    assert before[0] == pytest.approx(before[1], rel=1e-5)


def test_two_parts_of_two_rows_are_a_batch_of_four():
    whole, parts = run(**LORA), run(accumulate=2, batch_size=2, **LORA)
    assert close(parts[-1][-1].state.params, whole[-1][-1].state.params, rtol=1e-4, atol=1e-6)
    for a, b in zip(whole[-1], parts[-1], strict=True):
        assert [a.record[n] for n in ("iterations", "tokens")] == [
            b.record[n] for n in ("iterations", "tokens")
        ]


def test_interrupted_visits_are_taken_over_or_done_again():
    plain = run(local_epochs=2, **LORA)[-1]
    upload, lost = (
        run(local_epochs=2, interrupt="1@0.5", interruption=kind, **LORA)[-1]
        for kind in ("upload", "lost")
    )
    assert [report.record["event"] for report in upload] == ["", "interrupted", "takeover", ""]
    assert [report.record["event"] for report in lost] == ["", "lost", "takeover", ""]
    assert [r.record["node"] for r in upload] == [r.record["node"] for r in lost] == [0, 1, 0, 0]
    steps = [report.record["iterations"] for report in plain]
    half = upload[1].record["iterations"]
    assert 0 < half < steps[1]
    assert lost[1].record["iterations"] == half
    assert lost[2].record["iterations"] == steps[0], "the other node begins anew, on its own data"
    assert not moved(lost[0].state.params, lost[1].state.params), "a lost visit leaves nothing"
    assert moved(upload[0].state.params, upload[1].state.params) == {"block_01.lora"}
    assert node(1) not in {t.source for t in lost[1].transfers}


# Side by side, and a method's client


def engine_of(setup, emulation="loop", data=None, **changes):
    """The engine of a setup with another step, emulation, or rows and shards."""
    texts, config = setup.data, setup.config
    step = text_task.make_step(setup.job)._replace(**changes)
    base = without(texts.weights(), setup.plan.layer_names)
    settings = settings_of(config)
    train, shards = data or (texts.rows.train.rows, texts.shards)
    test = texts.rows.test
    return text_engine(step, base, train, test, shards, settings, texts.ranks, emulation)


def round_of(engine, setup, state, share=(0.0, 1.0)):
    """The outcomes of a part of the first round, and what server and nodes had in mind."""
    rng = np.random.default_rng(3)
    noise = lambda w: rng.normal(size=w.shape).astype(np.float32)  # noqa: E731
    shared, *memory = [jax.tree.map(noise, state.params) for _ in range(3)]
    layers = {name: Held(0, value) for name, value in state.params.items()}
    remembered = {node: Held(0, value) for node, value in enumerate(memory)}
    holdings, orders = Holdings(layers, {}, remembered, Held(0, shared)), []
    engine.hold(holdings)
    for planned in loop.planned(setup)[0]:
        orders.append(holdings.order(planned._replace(share=share), setup.config.learning_rate))
    return run_round(engine, orders), shared, memory


def test_nodes_side_by_side_train_as_one_after_the_other():
    setup = loop.prepare(TextConfig(**SMALL | LORA | {"algorithm": "fedavg"}))
    state = loop.initial_state(setup)
    ((length, rows),) = setup.data.rows.train.rows.items()
    longer = packing.TextRows(*(np.pad(part, ((0, 0), (0, length))) for part in rows))
    shards = [
        {length: np.arange(5), 2 * length: np.arange(5, 8)},
        {length: np.arange(8, 11)},
    ]
    data = {length: rows, 2 * length: longer}, shards
    engines = [engine_of(setup, how, data) for how in ("loop", "vmap")]
    one, many = (round_of(engine, setup, state)[0] for engine in engines)
    assert [done.iterations for done in one] == [3, 1], "of unlike length, and one sits out"
    for a, b in zip(one, many, strict=True):
        assert close(a.layers, b.layers, rtol=1e-4, atol=1e-5)
        same = ("finite", "iterations", "examples", "examples_held")
        assert [getattr(a, name) for name in same] == [getattr(b, name) for name in same]
        assert (a.text.tokens, a.text.target_tokens) == (b.text.tokens, b.text.target_tokens)
        assert sorted(a.text.passed) == sorted(b.text.passed)
        np.testing.assert_allclose(a.loss, b.loss, rtol=1e-5)


@pytest.mark.parametrize(
    ("algorithm", "emulation"),
    sweep(
        [("fedavg", "loop"), ("fedavg", "vmap"), ("snake", "loop")],
        quick=[("fedavg", "vmap"), ("snake", "loop")],
    ),
)
def test_a_client_corrects_blocks_by_their_roles(algorithm, emulation):
    flags = {"optimizer": "sgd", "momentum": 0.0, "clip_norm": 0.0, "algorithm": algorithm}
    setup = loop.prepare(TextConfig(**SMALL | LORA | flags))
    state = loop.initial_state(setup)
    rate = setup.config.learning_rate
    steps = setup_steps(setup)
    share = (0.0, 1.01 / max(steps))
    free, *_ = round_of(engine_of(setup, emulation), setup, state, share)
    with_client = engine_of(setup, emulation, client=drift())
    bound, shared, memory = round_of(with_client, setup, state, share)
    trained = {done.visit.node: done for done in bound if done.iterations}
    assert trained
    push = lambda new, c, own: new - rate * (c - own)  # noqa: E731
    for before in free:
        if not before.iterations:
            continue
        after = trained[before.visit.node]
        assert before.iterations == after.iterations == 1
        own = select(memory[after.visit.node], before.layers)
        wanted = jax.tree.map(push, before.layers, select(shared, before.layers), own)
        assert close(after.layers, wanted, rtol=1e-4, atol=1e-6)
        assert after.memory.keys() == state.params.keys()
        assert after.report.keys() == after.layers.keys()


def setup_steps(setup):
    """Steps of each node's visit."""
    size = setup.config.batch_size
    return [sum(-(-len(rows) // size) for rows in shard.values()) for shard in setup.data.shards]
