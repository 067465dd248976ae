"""Runs on cut language models: they train as uncut ones, and what they send is the hand count."""

import functools

import jax
import numpy as np
import pytest

from snake_jax.config import TextConfig
from snake_jax.nodes.fleet import figures_of
from snake_jax.nodes.places import CLOUD, SERVER, node
from snake_jax.runs import loop
from snake_jax.runs.text_task import visit_state
from tests.costs.test_language_costs import ADAPTER_PARAMS, BLOCK_BYTES, HEAD_BYTES, TABLE_BYTES
from tests.helpers import close, same_bits
from tests.launches import write_model, write_pairs

SMALL = {"max_length": 64, "nodes": 2, "batch_size": 4, "eval_every": 100}
FULL = {"lora_rank": 0, "optimizer": "sgd", "learning_rate": 0.1, "clip_norm": 0.0}
LORA = {"lora_rank": 4, "lora_scale": 2.0, "learning_rate": 0.01, "frozen_dtype": "int8"}
THREE = {"cut": "block_00", "cloud_cut": "block_01"}
ADAPTERS = 4 * ADAPTER_PARAMS  # bytes of a block's
WIDTH, INT = 4 * 16, 4  # bytes of a token between blocks, and of its label


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory):
    """A model of three blocks and short pairs, for all runs here."""
    folder = tmp_path_factory.mktemp("files")
    SMALL["model"] = str(write_model(folder / "model"))
    SMALL["data"] = str(write_pairs(folder / "pairs.jsonl"))
    names = ("jax_disable_most_optimizations", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    for name, value in zip(names, (True, 0.0), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    kept.cache_clear()


@functools.cache
def kept(flags):
    setup = loop.prepare(TextConfig(**SMALL | dict(flags)))
    engine, state = loop.make_engine(setup), loop.initial_state(setup)
    untrained = engine.evaluate(state.params), base_of(engine)
    reports = list(loop.train(setup, engine, state, lambda state: None))
    return setup, engine, state, untrained, reports


def run(**flags):
    """Setup, engine, first state, first scores and base, and reports, made once for each flags."""
    return kept(tuple(sorted(flags.items())))


def base_of(engine):
    """What never trains, as it lies on the device: a copy."""
    return jax.tree.map(np.array, (engine._layout._base, engine._layout._ends))


@pytest.mark.parametrize(
    "cut",
    [{"cut": "block_00"}, {**THREE, "tail": 1}],
    ids=["node and server", "three places and a tail"],
)
def test_split_learning_trains_as_the_uncut_model_does(cut):
    *_, whole = run(algorithm="sequential", **FULL)
    *_, reports = run(algorithm="split", **FULL, **cut)
    assert close(reports[-1].state.params, whole[-1].state.params)
    assert not close(reports[-1].state.params, whole[0].state.params)
    for report, other in zip(reports, whole, strict=True):
        # All layers train, so a cut leaves no work out and adds none.
        record = report.record
        assert record["train_flops"] == other.record["train_flops"]
        assert 0 < record["server_flops"] + record["cloud_flops"] < record["train_flops"]
        assert (record["cloud_flops"] > 0) == ("cloud_cut" in cut)


def test_splitfed_of_one_node_is_split_learning():
    flags = {"nodes": 1, **LORA, **THREE}
    *_, split = run(algorithm="split", **flags)
    *_, federated = run(algorithm="splitfed", **flags)
    assert same_bits(federated[-1].state.params, split[-1].state.params)


def test_splitfed_averages_as_federated_averaging_does():
    """Of all parts, with nothing clipped: FedAvg clips a norm over all layers."""
    *_, whole = run(algorithm="fedavg", **FULL)
    *_, parts = run(algorithm="splitfed", **FULL, cut="block_00")
    assert close(parts[-1].state.params, whole[-1].state.params)


@pytest.mark.parametrize(
    ("algorithm", "how"), [("split", THREE), ("random_walking_snakes", {"snake_length": 2})]
)
def test_adapters_train_on_every_place_and_their_base_nowhere(algorithm, how):
    _, engine, first, (untrained, base), reports = run(algorithm=algorithm, **LORA, **how)
    params = reports[-1].state.params
    assert set(params) == {f"block_0{index}.lora" for index in range(3)}
    for name in params:
        assert not same_bits(params[name], first.params[name])
    assert reports[-1].record["test_loss"] < untrained.loss

    # With its first adapters, whose product is 0, the model is what it was, bit for bit.
    assert same_bits(base_of(engine), base)
    assert engine.evaluate(first.params) == untrained
    network = reports[-1].state.network
    assert {item for item, version in network.latest.items() if version} == set(params)


def test_what_three_places_send_is_the_hand_count():
    *_, reports = run(algorithm="split", **LORA, **THREE)
    ends = {"embed": TABLE_BYTES["int8"], "head": HEAD_BYTES["int8"]}
    block = BLOCK_BYTES["int8"]
    for number, report in enumerate(reports):
        place, tokens = node(number), report.record["tokens"]
        wide, narrow = WIDTH * tokens, INT * tokens
        wanted = [
            (SERVER, place, ends["embed"] + block + ADAPTERS, "initial"),
            (place, SERVER, ADAPTERS, "update"),
            (place, SERVER, wide, "activations"),
            (SERVER, CLOUD, wide, "activations"),
            (place, SERVER, narrow, "labels"),
            (SERVER, CLOUD, narrow, "labels"),
            (CLOUD, SERVER, wide, "gradients"),
            (SERVER, place, wide, "gradients"),
        ]
        if number == 0:
            # The cloud gets its part once; its head reads the embedding's matrix.
            part = ends["embed"] + block + ends["head"] + ADAPTERS
            wanted.insert(0, (SERVER, CLOUD, part, "initial"))
        found = [(t.source, t.destination, t.bytes, t.why) for t in report.transfers]
        assert sorted(found, key=str) == sorted(wanted, key=str)
    assert reports[-1].state.network.held[CLOUD].keys() == {
        "embed",
        "block_02",
        "head",
        "block_02.lora",
    }


def test_the_clock_of_three_places_is_the_hand_count():
    setup, *_, reports = run(algorithm="split", **LORA, **THREE)
    record, fleet = reports[0].record, setup.fleet
    rates = {place: figures_of(fleet, place) for place in (node(0), SERVER, CLOUD)}
    seconds = 0.0
    for sent in reports[0].transfers:
        source, destination = rates[sent.source], rates[sent.destination]
        rate = min(source.up_bytes_per_s, destination.down_bytes_per_s)
        seconds += sent.bytes / rate + source.latency_s + destination.latency_s
    of_node = record["train_flops"] - record["server_flops"] - record["cloud_flops"]
    seconds += of_node / rates[node(0)].flops_per_s
    seconds += record["server_flops"] / rates[SERVER].flops_per_s
    seconds += record["cloud_flops"] / rates[CLOUD].flops_per_s
    # A batch goes up and comes back over both links.
    latencies_s = [rates[place].latency_s for place in (node(0), SERVER, CLOUD)]
    near, far = latencies_s[0] + latencies_s[1], latencies_s[1] + latencies_s[2]
    seconds += 2 * record["iterations"] * (near + far)
    assert record["clock_s"] == pytest.approx(seconds, rel=1e-12)
    assert record["cloud_joules"] > 0


def test_a_matrix_that_embedding_and_head_share_goes_to_and_fro_in_every_step():
    *_, reports = run(algorithm="split", **FULL, cut="block_00")
    table = TABLE_BYTES["float32"]
    for number, report in enumerate(reports):
        rows = [sent for sent in report.transfers if sent.why == "shared"]
        steps = report.record["iterations"]
        assert [(t.source, t.destination, t.bytes) for t in rows] == [
            (SERVER, node(number), steps * table),
            (node(number), SERVER, steps * table),
        ]


def test_the_node_has_the_state_of_its_part_alone():
    setup, *_ = run(algorithm="split", **LORA, **THREE)
    state = visit_state(setup.job)
    assert (state.trained, state.gradients) == (ADAPTERS, ADAPTERS)
    assert state.frozen == TABLE_BYTES["int8"] + BLOCK_BYTES["int8"]
