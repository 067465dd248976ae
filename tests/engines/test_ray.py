"""The engine of processes: the bits of the local one, what is sent, what ends and what hangs.

One small cluster serves all tests here, in processes that a child of this one starts: Ray forks,
and this process has threads.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

import snake_jax as sj
from experiments.faults.nodes import schedule_replays
from experiments.faults.runs import SIZES
from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.algorithms.visits import Visit
from snake_jax.config import ImageConfig, TextConfig
from snake_jax.data.images.dataset import normalise
from snake_jax.engines import ray_faults
from snake_jax.engines.begun import why_given_up
from snake_jax.engines.choice import HERE, Choice, check, resources
from snake_jax.engines.contract import Progress, unversioned
from snake_jax.errors import UserError
from snake_jax.nodes import columns
from snake_jax.runs import loop
from snake_jax.runs.engines import make_engine
from snake_jax.training import quantization
from tests.helpers import same_bits
from tests.launches import (
    MEASURED,
    Launcher,
    in_new_process,
    json_lines,
    results,
    write_images,
    write_model,
    write_pairs,
)
from tests.sweeps import sweep
from tests.wiretap import leaked, looked_into, tapped

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'snake-jax[ray]'")
from snake_jax.engines.ray_node import Facts, VisitTask  # noqa: E402  (needs Ray)

pytestmark = pytest.mark.usefixtures("quick_compilation")
SENT = ("serialized_to_nodes_bytes", "serialized_to_controller_bytes")
SERVER = """
import logging, sys
import ray
ray.init(address="local", num_cpus=3, object_store_memory=80_000_000, include_dashboard=False,
         log_to_driver=False, logging_level=logging.ERROR)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@pytest.fixture(scope="module")
def cluster():
    """A choice of the engine whose actors are in a small cluster, which this process has joined."""
    from snake_jax.engines import ray_cluster

    command = [sys.executable, "-c", SERVER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in QUIET.items():
            patch.setenv(name, value)
        server = stack.enter_context(subprocess.Popen(command, **pipes))
        address = server.stdout.readline().strip()
        assert address, "the cluster did not start"
        # A busy machine is no hanging one: only the test of hanging has a short deadline.
        choice = Choice("ray", address, actors=2, deadline_s=120.0)
        with ray_cluster.cluster(choice):
            yield choice
        server.stdin.close()
        server.wait(60)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Flags of a small run on 90 images of 8x8x3."""
    rng = np.random.default_rng(3)
    labels = np.arange(120) % 4
    pixels = rng.integers(0, 256, (4, 8, 8, 3))[labels] + rng.normal(0, 40, (120, 8, 8, 3))
    pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    arrays = {"train_x": pixels[:90], "test_x": pixels[90:]}
    file = write_images(tmp_path_factory.mktemp("ray") / "images.npz", **arrays)
    small = {"model": "cnn", "width": 0.25, "nodes": 3, "cycles": 2, "batch_size": 8}
    return small | {"dataset": f"npz:{file}", "partition": "dirichlet", "alpha": 1.0}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Flags of a small run on pairs of text, with a Llama of three blocks."""
    folder = tmp_path_factory.mktemp("ray_texts")
    model, pairs = write_model(folder / "model"), write_pairs(folder / "pairs.jsonl")
    small = {"max_length": 64, "nodes": 2, "batch_size": 4, "learning_rate": 0.01, "eval_every": 2}
    return small | {"model": str(model), "data": str(pairs), "lora_rank": 0}


def prepared(flags):
    return loop.prepare((TextConfig if "data" in flags else ImageConfig)(**flags))


def trained(setup, choice=HERE, wrap=lambda engine: engine):
    """The reports of a run, and what its engine compiled."""
    engine = make_engine(setup, choice)
    try:
        found = wrap(engine)
        reports = list(loop.train(setup, found, loop.initial_state(setup), lambda state: None))
        return reports, engine.compilations
    finally:
        engine.close()


def lasting(record):
    """What a line says that no machine and no engine decides."""
    return {name: value for name, value in record.items() if name not in {*MEASURED, *SENT}}


def assert_alike(ours, theirs):
    """Same parameters, states, memories, metrics and ledger, round by round."""
    assert [lasting(r.record) for r in ours] == [lasting(r.record) for r in theirs]
    assert [r.transfers for r in ours] == [r.transfers for r in theirs]
    last, other = ours[-1].state, theirs[-1].state
    for part in ("params", "states", "memory", "nodes"):
        assert same_bits(getattr(last, part), getattr(other, part)), part
    assert last.network == other.network
    assert last.failures == other.failures


PLAIN = {"momentum": 0.0, "clip_norm": 0.0}
# Flags, and how many processes the three nodes share.
IMAGE_RUNS = {
    "snake": ({"frozen_dtype": "int8"}, 3),
    "snake, peer to peer, states carried": (
        {
            "mode": "peer_to_peer",
            "carry_optimizer_state": True,
            "optimizer": "adam",
            "learning_rate": 0.01,
            "frozen_dtype": "int8",
            "distill": "on",
            "order": "random",
            "fault_rate": 0.3,
            "local_epochs": 2,
        },
        2,
    ),
    "fedprox of some": pytest.param(
        {
            "algorithm": "fedprox",
            "proximal": 0.1,
            "nodes_per_round": 2,
            "dp_clip": 0.3,
            "dp_noise": 0.1,
        },
        2,
        marks=pytest.mark.slow,
    ),
    "scaffold": ({"algorithm": "scaffold", **PLAIN}, 1),
}
TEXT_RUNS = {
    "snake, frozen in four bits": pytest.param(
        {"frozen_dtype": "nf4", "cycles": 2}, 2, marks=pytest.mark.slow
    ),
    "snake, peer to peer": (
        {"mode": "peer_to_peer", "lora_rank": 4, "rank": "2,4", "carry_optimizer_state": True},
        2,
    ),
    "fedavg": pytest.param(
        {"algorithm": "fedavg", "packing": False, "dp_clip": 0.3, "dp_noise": 0.1},
        1,
        marks=pytest.mark.slow,
    ),
}


@pytest.mark.parametrize(("flags", "actors"), IMAGE_RUNS.values(), ids=IMAGE_RUNS)
def test_networks_for_images_end_with_the_bits_of_the_local_engine(cluster, images, flags, actors):
    setup = prepared({**images, **flags})
    here, compiled = trained(setup)
    with tapped() as seen:
        there, compiled_there = trained(setup, cluster._replace(actors=actors))
    assert_only_layers_and_numbers(setup, there, seen)
    if setup.config.algorithm == "snake" and setup.config.mode == "client_server":
        assert_serialized_as_the_ledger_says(setup, there)
        assert there[-1].record[SENT[0]] < there[0].record[SENT[0]]
    assert_alike(there, here)
    assert compiled_there.peak_bytes == compiled.peak_bytes
    assert {visit.node for visits in loop.planned(setup) for visit in visits} == {0, 1, 2}


@pytest.mark.parametrize(("flags", "actors"), TEXT_RUNS.values(), ids=TEXT_RUNS)
def test_language_models_end_with_the_bits_of_the_local_engine(cluster, texts, flags, actors):
    setup = prepared({**texts, **flags})
    with tapped() as seen:
        there, _ = trained(setup, cluster._replace(actors=actors))
    assert_only_layers_and_numbers(setup, there, seen)
    if setup.config.frozen_dtype == "nf4":
        # In its first visit the ledger has a node sent what never trains too, which it reads.
        assert_serialized_as_the_ledger_says(setup, there[setup.config.nodes :])
    assert_alike(there, trained(setup)[0])
    if "rank" in flags:
        # Of adapters of rank 4 a node of rank 2 gives half, and half of their states.
        narrow, wide = (report.record[SENT[1]] for report in there[:2])
        assert [report.record["node"] for report in there[:2]] == [0, 1]
        assert narrow < 0.7 * wide


# What is sent


@pytest.mark.slow
def test_what_is_serialized_from_node_to_node_is_what_the_ledger_says(cluster, images):
    setup = prepared({**images, "mode": "peer_to_peer"})
    reports, _ = trained(setup, cluster._replace(actors=3))
    assert_serialized_as_the_ledger_says(setup, reports)
    assert reports[-1].record[SENT[0]] < reports[0].record[SENT[0]]


def assert_serialized_as_the_ledger_says(setup, reports):
    """And little more, with a process a node."""
    # Pickling names arrays, shapes and types: of each array, and around each item.
    params = reports[-1].state.params
    stored = quantization.packed(quantization.freeze(params, setup.config.frozen_dtype))
    names = 100 * len(params) + 80 * len(jax.tree.leaves(stored))
    for report in reports:
        record = report.record
        to_nodes = record["bytes_down"]
        if setup.config.mode == "peer_to_peer":
            to_nodes += record["bytes_up"]
        trained_bytes = sum(
            leaf.nbytes
            for name in record["layers"]
            for leaf in jax.tree.leaves(report.state.params[name])
        )
        assert to_nodes <= record[SENT[0]] <= to_nodes + names
        assert trained_bytes <= record[SENT[1]] <= trained_bytes + names


def test_nodes_that_cache_nothing_are_sent_all_again(cluster, images):
    reports, _ = trained(prepared({**images, "cached": False}), cluster._replace(actors=1))
    sent = [report.record[SENT[0]] for report in reports]
    assert max(sent) == min(sent) > 0


def secrets_of(setup):
    """The bytes of every example, as any of its readers has them, and of every node's labels."""
    data = setup.data
    if isinstance(setup.config, ImageConfig):
        train = data.dataset.train
        normal = normalise(train.images, data.dataset.mean, data.dataset.std)
        found = [image.tobytes() for image in (*train.images, *np.asarray(normal))]
        for shard in data.shards:
            found.append(train.labels[shard].tobytes())
        return found
    found = [str(sample.response).encode() for sample in data.rows.samples]
    for rows in data.rows.train.rows.values():
        # From the first token that is no padding of the kept length on.
        found += [row.tobytes() for part in rows[:2] for row in part]
    return found


def assert_only_layers_and_numbers(setup, reports, seen):
    """No example and no label; arrays of layers, or of the columns that adapters are cut into, and
    of what goes along with them, alone.
    """
    state, cut = reports[-1].state, setup.job.columns
    parts = []
    for trees in (state.params, state.states):
        for name, tree in trees.items():
            parts += columns.split(cut, name, tree).values()
    own = jax.tree.leaves((parts, state.memory, dict(state.nodes)))
    stored = quantization.packed(quantization.freeze(state.params, setup.config.frozen_dtype))
    kinds = set()
    for leaf in (*own, *jax.tree.leaves(stored)):
        # Codes of four bits travel two in a byte.
        array = getattr(leaf, "codes", leaf)
        kinds.add((array.shape, array.dtype.name))
    arrays, blobs = looked_into(seen)
    assert {(array.shape, array.dtype.name) for array in arrays} <= kinds
    assert len(arrays) > len(jax.tree.leaves((state.params, state.states)))
    assert leaked(secrets_of(setup), blobs) == []
    names = set()
    for value in seen:
        if isinstance(value, VisitTask | Facts):
            names |= {name for kind, name in value.items if kind != "memory"}
    assert names <= {*columns.all_parts(cut, setup.layer_names), ""}


def test_the_search_for_examples_finds_those_that_are_there(images, texts):
    setup = prepared(images)
    train, shards = setup.data.dataset.train, setup.data.shards
    arrays, blobs = looked_into([{"x": train.images[5]}, ("y", train.labels[shards[0]])])
    assert len(arrays) == 2
    assert len(leaked(secrets_of(setup), blobs)) == 2
    setup = prepared(texts)
    (rows,) = setup.data.rows.train.rows.values()
    _, blobs = looked_into([setup.data.rows.samples[3], rows.ids])
    assert len(leaked(secrets_of(setup), blobs)) > len(rows.ids)


# What ends and what hangs


class Striking:
    """Sends a signal to the process of a turn's node while it trains."""

    def __init__(self, engine, turn, number):
        self._engine, self._turn, self._number = engine, turn, number

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def submit(self, order):
        self._engine.submit(order)
        if order.visit.turn == self._turn:
            self._turn = None
            pid = self._engine.processes()[order.visit.node % 2]
            threading.Thread(target=strike, args=(pid, self._number)).start()


def strike(pid, number):
    time.sleep(0.2)
    os.kill(pid, number)


LONG = {"local_epochs": 1500, "cycles": 1, "model": "mlp", "width": 0.05}
ENDS = {signal.SIGKILL: "its process ended", signal.SIGSTOP: "no heart-beat for 3 s"}


@pytest.mark.parametrize("number", ENDS)
def test_a_node_that_ends_or_hangs_replays_as_a_flag(cluster, images, number):
    setup = prepared({**images, **LONG})
    choice = cluster._replace(deadline_s=3.0 if number == signal.SIGSTOP else 120.0)
    struck, _ = trained(setup, choice, lambda engine: Striking(engine, 1, number))
    assert [[lost.why for lost in report.lost] for report in struck][:3] == [[], [ENDS[number]], []]
    asked = {**images, **LONG, "interrupt": "1@0", "interruption": "lost"}
    flagged, _ = trained(prepared(asked))
    assert [report.record["event"] for report in flagged][:3] == ["", "lost", "takeover"]
    assert_alike(struck, flagged)


@pytest.mark.slow
def test_a_node_for_whose_new_process_no_machine_has_room_is_done_without(
    cluster, images, monkeypatch
):
    from snake_jax.engines import ray_engine

    begun = []

    def placed(engine, number):
        begun.append(number)
        if begun.count(number) == 1:
            return engine._options
        monkeypatch.setattr(ray_engine, "_STARTED_WITHIN_S", 1.0)
        return {**engine._options, "resources": {"nowhere": 1.0}}

    monkeypatch.setattr(ray_engine.RayEngine, "_placed", placed)
    monkeypatch.setenv(ray_faults.VARIABLE, "die@1")
    flags = {**images, **SIZES, "dataset": images["dataset"], "nodes": 2}
    struck, _ = trained(prepared(flags), cluster)
    whys = [lost.why for report in struck for lost in report.lost]
    assert whys[0] == "its process ended"
    assert re.fullmatch(r"no machine started its process in \d+ s", whys[1]), whys
    flagged, _ = trained(prepared({**flags, "interrupt": "1@0,3@0", "interruption": "lost"}))
    assert_alike(struck, flagged)


def test_a_round_goes_on_without_the_node_that_ends(cluster, images):
    setup = prepared({**images, **LONG, "algorithm": "fedavg"})
    (report,), _ = trained(setup, cluster, lambda engine: Striking(engine, 0, signal.SIGKILL))
    assert report.record["event"] == "lost"
    assert {lost.why for lost in report.lost} == {"its process ended"}
    assert report.record["examples"] > 0


def test_a_launch_starts_its_cluster_and_goes_on_when_its_controller_is_killed(
    images, tmp_path, monkeypatch, capfd
):
    """Nothing is set up; what a killed one leaves is its folder, and no process."""
    words = {"model": "mlp", "local_epochs": 40, "dataset": images["dataset"], "width": 0.25}
    words |= {"nodes": 3, "cycles": 2, "batch_size": 8}
    flags = [f"--{name}={value}" for name, value in words.items()]
    there = [*flags, f"--workdir={tmp_path / 'there'}", "--engine=ray", "--ray_actors=1"]
    there.append("--ray_deadline_s=120")

    lines = tmp_path / "there" / "metrics.jsonl"
    with in_new_process(there) as killed:
        while killed.poll() is None and not (lines.exists() and len(json_lines(lines)) > 1):
            time.sleep(0.05)
        killed.kill()
        _, errors = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, errors
    assert not (tmp_path / "there" / "summary.json").exists()

    with in_new_process(there) as going_on:
        said, errors = going_on.communicate()
    assert (going_on.returncode, errors) == (0, ""), said
    assert "going on after visit" in said
    local = Launcher(monkeypatch, capfd)(*flags, f"--workdir={tmp_path / 'here'}")
    assert local.code == 0, local.stderr
    ours, wanted = results(tmp_path / "there"), results(tmp_path / "here")
    assert all(ours["summary"].pop(name) > 0 for name in SENT)
    for line in ours["metrics"]:
        for name in SENT:
            line.pop(name)
    assert ours == wanted


def test_what_a_node_may_take_over_is_compiled_before_it_is_needed(cluster, images):
    """Node 1 has the program of node 0's visit though it trained none like it."""
    setup = prepared({**images, "cycles": 1, "nodes": 2})
    (first,), (second,) = loop.planned(setup)[:2]
    assert first.layers != second.layers
    engine = make_engine(setup, cluster)
    try:
        params = loop.initial_state(setup).params
        engine.expect(((first,), (second,)), params)
        until = time.monotonic() + 200
        while not engine.are_prepared():
            assert time.monotonic() < until
            time.sleep(0.05)
        holdings = unversioned(params, {})
        engine.hold(holdings)
        compiled = []
        for visit in (second, first._replace(node=1, event="takeover")):
            engine.submit(holdings.order(visit, 0.01))
            assert engine.next().iterations > 0
            compiled.append(engine.compilations.programs)
        assert compiled[0] == compiled[1]
    finally:
        engine.close()


# Drawn by the seed, for the four visits of a run.
FAULTS = {
    6: "die@0,shape@3",
    7: "checksum@0,stale@1,die@2",
    8: "nan@1,shape@2,stale@3",
}


@pytest.mark.parametrize("seed", sweep(FAULTS, quick=[7]))
def test_what_nodes_do_wrong_replays_as_flags(cluster, images, seed):
    base = ImageConfig(**SIZES, dataset=images["dataset"])
    assert schedule_replays(seed, base, cluster) == (FAULTS[seed], True)


def test_a_node_that_answers_and_does_not_get_on_is_given_up():
    told = Progress(Visit(4, 0, 1, ("a",)), 7, 12.0, 0.5, 10**8)
    limits = Choice("ray", stall_s=5.0, visit_deadline_s=20.0)
    assert why_given_up(told, 4.9, limits) == ""
    assert why_given_up(told, 5.1, limits) == "it stayed at step 7 for 5 s"
    assert why_given_up(None, 5.1, limits) == "it stayed at step 0 for 5 s"
    slow = told._replace(seconds=20.5)
    assert why_given_up(slow, 0.0, limits) == "its visit took longer than 20 s"
    assert why_given_up(slow, 1e6, Choice("ray")) == "", "both are off by default"


# Data and methods of one's own


def test_arrays_and_a_method_of_ones_own_are_sent_to_their_nodes(cluster):
    job = sj.Job(own_model(), algorithm=ALGORITHMS["snake"]._replace(name="snake"), nodes=2)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 60)
    pixels = rng.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    data = sj.image_data(job, (pixels[:48], labels[:48]), (pixels[48:], labels[48:]))
    here = list(sj.train(job, data))
    there = list(sj.train(job, data, engine=cluster._replace(actors=1)))
    assert_alike(there, here)


def own_model():
    import flax.linen as nn

    class Flat(nn.Module):
        features: int

        @nn.compact
        def __call__(self, x):
            return nn.relu(nn.Dense(self.features)(x.reshape(x.shape[0], -1)))

    stages = [("one", Flat(8)), ("two", Flat(8)), ("three", Flat(8)), ("four", Flat(4))]
    return sj.from_linen("flat", stages, input_shape=(8, 8, 3))


def test_data_that_a_node_cannot_open_is_said_in_one_line(cluster, images, tmp_path):
    file = write_images(tmp_path / "gone.npz")
    setup = prepared({**images, "model": "mlp", "dataset": f"npz:{file}"})
    (tmp_path / "gone.npz").unlink()
    with pytest.raises(UserError, match=r"gone\.npz") as error:
        trained(setup, cluster._replace(actors=1))
    assert "\n" not in str(error.value)


# What is refused


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"algorithm": "split"}, "--algorithm=split trains all sides of its cuts in one program"),
        ({"algorithm": "accelerated_fl"}, "say --engine=local, or one of snake, fedavg, "),
        ({"executor": "vmap"}, "leave --executor=vmap out"),
    ],
)
def test_what_processes_cannot_do_is_refused_before_anything_starts(config, reason):
    with pytest.raises(UserError) as error:
        check(Choice("ray"), ImageConfig(**config))
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    check(HERE, ImageConfig(**config))


def test_a_missing_ray_is_said_with_what_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'snake-jax\[ray\]'"):
        check(Choice("ray"), ImageConfig())


def test_flags_of_ray_without_ray_are_refused():
    with pytest.raises(UserError, match="--ray_actors is for --engine=ray"):
        check(Choice(actors=3), ImageConfig())
    with pytest.raises(UserError, match="--visit_deadline_s is for --engine=ray"):
        check(Choice(visit_deadline_s=3.0), ImageConfig())


def test_resources_are_numbers_by_name():
    assert resources("CPU=1,arm=0.5") == {"CPU": 1.0, "arm": 0.5}
    assert resources("") == {}
    for text in ("CPU", "CPU=x", "=1", "CPU=-1"):
        with pytest.raises(UserError, match="want NAME=NUMBER"):
            resources(text)


def test_what_the_cluster_does_not_offer_is_said(cluster, images):
    setup = prepared(images)
    with pytest.raises(UserError, match="--ray_resources=arm=1: the cluster has that 0 times"):
        make_engine(setup, cluster._replace(resources={"arm": 1.0}))
    with pytest.raises(UserError, match="CPU=2: the cluster has that 1 times, for 2"):
        make_engine(setup, cluster._replace(resources={"CPU": 2.0}, actors=2))


def test_a_ray_that_does_not_start_is_one_line(monkeypatch):
    from snake_jax.engines import ray_cluster

    def init(**options):
        raise Exception("The current node timed out during startup.\nThis could happen because ...")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match="Ray did not start") as error, ray_cluster.cluster(HERE):
        pass
    assert "timed out during startup" in str(error.value)
    assert "\n" not in str(error.value)
