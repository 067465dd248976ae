"""The engine: the same visits give the same results however nodes are emulated, in one program an
assignment.
"""

import json
import math
import os
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from snake_jax.algorithms.visits import Order, Visit
from snake_jax.config import ImageConfig
from snake_jax.data.images import augmentation
from snake_jax.engines import orders
from snake_jax.engines.build import image_engine
from snake_jax.engines.contract import run_visits, unversioned
from snake_jax.engines.emulations import EMULATIONS
from snake_jax.engines.epochs import VisitSettings
from snake_jax.engines.orders import are_alike
from snake_jax.params import num_bytes
from snake_jax.runs import loop
from snake_jax.training.image_step import Distillation, LocalStep
from snake_jax.training.optimizers import init_states
from tests.helpers import close, random_examples, same_bits, small_model, small_step
from tests.launches import ROOT
from tests.sweeps import sweep

SHARDS = [np.arange(10), np.arange(10, 14), np.arange(14, 31), np.arange(31, 33), np.arange(33, 48)]
ENDS, MIDDLE = ("fc1", "fc4"), ("fc2", "fc4")
SETTINGS = VisitSettings(
    local_epochs=3, batch_size=4, frozen_dtype="float32", early_stop=0.0, seed=7
)
SEVERAL = tuple(name for name in EMULATIONS if name != "loop")


class Case(NamedTuple):
    """Visits of a round and what they train."""

    visits: tuple[Visit, ...]
    step: dict[str, Any] = {}  # noqa: RUF012 NamedTuples have no other defaults
    settings: dict[str, Any] = {}  # noqa: RUF012
    dropout: float = 0.0
    carried: bool = False


def visits(*layers, shares=()):
    """One visit a node."""
    whole = [(0.0, 1.0)] * (len(layers) - len(shares))
    return tuple(
        Visit(3, 1, node, *pair)
        for node, pair in enumerate(zip(layers, [*shares, *whole], strict=True))
    )


CASES = {
    "unequal data, cut short, ending early": Case(
        visits(*[ENDS] * 5, shares=[(0.0, 0.4), (0.4, 1.0), (0.0, 0.0)]),
        settings={"early_stop": 0.5},
    ),
    "unlike layers, distilled, frozen in int8, random": Case(
        visits(ENDS, MIDDLE, ENDS, ("fc3",), MIDDLE),
        {
            "distillation": Distillation(2.0, 0.5),
            "augment": lambda key, x: augmentation.augment("crop_flip", key, x),
        },
        {"frozen_dtype": "int8", "local_epochs": 2},
        dropout=0.3,
    ),
    "carried optimizer states": Case(
        visits(*[MIDDLE] * 3),
        {"optimizer": "adam", "clip_norm": 0.1},
        {"carry_optimizer_state": True},
        carried=True,
    ),
}


def make(case, emulation, train=None, shards=SHARDS):
    """An engine and the parameters to start from."""
    model, params = small_model("mlp", dropout=case.dropout)
    step = small_step(model, **case.step)
    train = train or random_examples(48)
    settings = SETTINGS._replace(**case.settings)
    test = random_examples(9, seed=1)
    return image_engine(step, train, test, shards, settings, emulation), params


def results(case, emulation):
    """What the visits give back."""
    engine, params = make(case, emulation)
    states = {}
    if case.carried:
        states = init_states(engine._step.rule, params, engine._step.layer_names)
    states = jax.tree.map(lambda x: x + 1, {name: states[name] for name in states if name != "fc2"})
    before = jax.tree.map(np.array, (params, states))
    done = run_visits(engine, case.visits, params, states, 0.05)
    assert same_bits(before, (params, states)), "what was given is left as it was"
    return done


@pytest.mark.parametrize("emulation", SEVERAL)
@pytest.mark.parametrize("name", sweep(CASES, quick=list(CASES)[:2]))
def test_side_by_side_gives_what_one_after_the_other_gives(name, emulation, loop_results):
    case = CASES[name]
    for ours, theirs in zip(results(case, emulation), loop_results(case), strict=True):
        assert ours.visit == theirs.visit
        assert close(ours.layers, theirs.layers, rtol=1e-4, atol=1e-5)
        assert close(ours.states, theirs.states, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-5)
        same = ("finite", "iterations", "examples", "examples_held")
        assert [getattr(ours, name) for name in same] == [getattr(theirs, name) for name in same]


@pytest.fixture(scope="module")
def loop_results():
    done = {}

    def of(case):
        return done.setdefault(id(case), results(case, "loop"))

    return of


def test_the_cases_are_what_they_say(loop_results):
    early, random, carried = map(loop_results, CASES.values())
    full = [3 * -(-len(shard) // 4) for shard in SHARDS]
    assert [r.iterations for r in early][:3] == [
        int(0.4 * full[0]),
        full[1] - int(0.4 * full[1]),
        0,
    ]
    assert np.isnan(early[2].loss)
    assert (early[3].iterations, early[4].iterations) == (full[3], full[4] - 4), (
        "the last visit ended early"
    )
    fresh = results(CASES["carried optimizer states"]._replace(carried=False), "loop")
    assert not close(carried[0].layers, fresh[0].layers, rtol=1e-3)
    assert [set(r.layers) for r in random] == [
        set(ENDS),
        set(MIDDLE),
        set(ENDS),
        {"fc3"},
        set(MIDDLE),
    ]


@pytest.mark.parametrize("emulation", SEVERAL)
def test_one_program_serves_rounds_of_unlike_numbers_of_nodes(emulation):
    engine, params = make(Case(()), emulation)
    rounds = [visits(*[ENDS] * count) for count in (4, 2, 3)]
    lowered = []
    inner = engine._jitted
    engine._jitted = lambda program: (lowered.append(program), inner(program))[1]
    engine.expect(rounds, params, done=1, wait=True)
    program = engine._program(ENDS, 2)
    assert math.prod(program.lead) == 4, "as in a run that was not cut off after the first round"
    programs = set(lowered)
    three = run_visits(engine, rounds[2], params, {}, 0.05)
    engine.evaluate(params)
    assert set(engine._programs) == programs
    assert len(lowered) == 2, "of the round and of the evaluation"
    unknown, _ = make(Case(()), emulation)
    again = run_visits(unknown, rounds[2], params, {}, 0.05)
    assert all(
        close(a.layers, b.layers, rtol=1e-4, atol=1e-5) for a, b in zip(three, again, strict=True)
    )


@pytest.mark.parametrize("emulation", SEVERAL)
def test_a_program_s_seconds_are_shared_by_those_it_trained(emulation):
    engine, params = make(Case(()), emulation)
    *working, idle = run_visits(
        engine, visits(*[ENDS] * 3, shares=[(0, 1), (0, 1), (0, 0)]), params, {}, 0.05
    )
    assert working[0].train_s == working[1].train_s > 0 == idle.train_s
    assert engine.compilations.peak_bytes is None, (
        "a node's memory is not seen in a program of three"
    )


def fedavg(nodes, emulation="loop", **flags):
    """An executor, the rounds and the reports of FedAvg on the digits."""
    flags = {"model": "mlp", "width": 0.25, "cycles": 3, "eval_every": 100, "batch_size": 1} | flags
    setup = loop.prepare(ImageConfig(algorithm="fedavg", nodes=nodes, executor=emulation, **flags))
    executor, state = loop.make_engine(setup), loop.initial_state(setup)
    return executor, loop.planned(setup), loop.train(setup, executor, state, lambda state: None)


@pytest.mark.parametrize("emulation", EMULATIONS)
def test_no_round_compiles_anything_anew(emulation, monkeypatch):
    traced = []
    inner = LocalStep.prepare
    monkeypatch.setattr(
        LocalStep, "prepare", lambda self, subtree: (traced.append(1), inner(self, subtree))[1]
    )
    executor, _, reports = fedavg(
        20, emulation, nodes_per_round=3, partition="dirichlet_split", batch_size=32
    )
    next(reports)
    first = len(traced)
    assert [report.record["iterations"] > 0 for report in reports] == [True, True]
    assert (len(traced), executor.compilations.programs) == (first, 2)


@pytest.mark.parametrize("emulation", ["loop", "vmap"])
def test_memory_does_not_grow_with_virtual_nodes(emulation):
    def of(nodes):
        executor, _, reports = fedavg(nodes, emulation, nodes_per_round=10, cycles=2)
        before = num_bytes(jax.live_arrays())
        states = [report.state for report in reports]
        live = num_bytes(jax.live_arrays()) - before
        program = next(iter(executor._programs.values())).memory_analysis()
        batches = (
            (10 if emulation == "vmap" else 1) * executor._feed.rows * 8
        )  # an index, a weight; one example in each
        held = len(states[-1].network.held)
        return program.argument_size_in_bytes - batches, program.temp_size_in_bytes, live, held

    few, many = of(20), of(1000)
    assert many[0] == few[0]
    assert many[1] <= few[1]
    assert many[2] <= few[2] + 1024
    assert many[3] <= 1 + 2 * 10, "the server and who was visited"


def test_a_scan_over_unequal_nodes_is_one_call_an_epoch_with_the_bits_of_the_loop(monkeypatch):
    def of(emulation):
        flags = {"batch_size": 32, "local_epochs": 2, "momentum": 0.9, "cycles": 2}
        executor, _, reports = fedavg(6, emulation, partition="dirichlet_split", alpha=0.5, **flags)
        called, compared = [], []
        monkeypatch.setattr(
            orders, "are_alike", lambda one, first: (compared.append(1), are_alike(one, first))[1]
        )
        inner = executor._call
        monkeypatch.setattr(
            executor, "_call", lambda program, *args: (called.append(1), inner(program, *args))[1]
        )
        found = list(reports)
        assert len(compared) == (2 * 5 if emulation == "scan" else 0)
        return found, len(called)

    (one_by_one, many_calls), (at_once, few_calls) = of("loop"), of("scan")
    assert same_bits(at_once[-1].state.params, one_by_one[-1].state.params)
    for a, b in zip(at_once, one_by_one, strict=True):
        for name in ("loss", "iterations", "examples"):
            assert a.record[name] == b.record[name]
    # Two rounds of two epochs, and an evaluation in the end.
    assert (many_calls, few_calls) == (2 * 2 * 6 + 1, 2 * 2 + 1)


EIGHT_DEVICES = """
import json, sys
import jax, numpy as np
from snake_jax.runs import loop
from snake_jax.config import ImageConfig

assert len(jax.devices()) == 8
small = {"model": "mlp", "width": 0.25, "cycles": 2, "eval_every": 100}
small |= {"local_epochs": 2, "batch_size": 64, "train_examples": 600}
uneven = {"partition": "dirichlet_split", "alpha": 0.5}
methods = {
    "fedavg": (
        {"nodes": 11, "early_stop": 0.05, **uneven},
        ("loop", "scan", "vmap", "pmap", "shard_map"),
    ),
    "sequential": ({"nodes": 3, "cycles": 1, **uneven}, ("loop", "pmap")),
    "snake": (
        {"nodes": 4, "cycles": 1, "parallel": 3, "frozen_dtype": "int8"},
        ("loop", "vmap", "pmap"),
    ),
    "splitfed": ({"nodes": 3, "cut": "fc1", "tail": 1}, ("loop", "vmap", "pmap")),
    "accelerated_fl": ({"nodes": 9, **uneven}, ("loop", "vmap", "shard_map")),
}
report = {}
for name, (flags, executors) in methods.items():
    for executor in executors:
        flags |= {"algorithm": name, "executor": executor}
        setup = loop.prepare(ImageConfig(**{**small, **flags}))
        made, state = loop.make_engine(setup), loop.initial_state(setup)
        *_, last = loop.train(setup, made, state, lambda state: None)
        values = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(last.state.params)])
        told = ("iterations", "examples", "loss", "accuracy", "bytes_up")
        record = {key: last.record[key] for key in told}
        report.setdefault(name, {})[executor] = record | {"values": values[::50].tolist()}
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def on_eight_devices():
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-W", "error", "-c", EIGHT_DEVICES]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return json.loads(ended.stdout)


@pytest.mark.slow
def test_methods_end_alike_on_eight_devices(on_eight_devices):
    assert {executor for found in on_eight_devices.values() for executor in found} == set(
        EMULATIONS
    )
    for name, by_executor in on_eight_devices.items():
        expected = by_executor.pop("loop")
        for executor, found in by_executor.items():
            for key, value in expected.items():
                np.testing.assert_allclose(
                    found[key], value, rtol=1e-4, atol=1e-5, err_msg=f"{name} {executor} {key}"
                )


def test_only_whole_numbers_of_devices_share_a_program():
    engine, _ = make(Case(()), "pmap")
    for visit in visits(ENDS, MIDDLE, ENDS):
        engine.submit(Order(visit, 0.05, {}))
    (program, together), (alone, last) = engine._group(), engine._group()
    assert (program.lead, alone.lead) == ((1, 2), ())
    assert [[order.visit.node for order in group] for group in (together, last)] == [[0, 2], [1]]


def called_in_order(engine, monkeypatch):
    """The epochs' programs that an engine calls, and when it waits for one: a list that grows."""
    seen = []
    inner, waited_for = engine._call, engine._waited_for
    monkeypatch.setattr(engine, "_call", lambda *args: (seen.append("call"), inner(*args))[1])
    monkeypatch.setattr(
        engine, "_waited_for", lambda *args: (seen.append("wait"), waited_for(*args))[1]
    )
    return seen


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        ({"local_epochs": 1}, ["call", "call", "wait"]),
        ({}, ["call", "call", "call", "call", "wait", "call", "wait", "wait"]),
        ({"early_stop": 1e-9}, ["call", "wait"] * 3),
    ],
    ids=["one epoch", "three epochs", "the loss may end it"],
)
def test_a_further_visit_is_begun_before_anybody_waits_for_the_first(settings, seen, monkeypatch):
    case = Case(visits(ENDS, ENDS), settings=settings)
    alone = [results(case._replace(visits=(one,)), "loop")[0] for one in case.visits]
    engine, params = make(case, "loop")
    called = called_in_order(engine, monkeypatch)
    holdings = unversioned(params, {})
    engine.hold(holdings)
    for visit in case.visits:
        engine.submit(holdings.order(visit, 0.05))
    first = engine.next()
    assert called == seen
    second = engine.next()
    assert engine.next() is None
    for ours, theirs in zip((first, second), alone, strict=True):
        assert same_bits((ours.layers, ours.loss), (theirs.layers, theirs.loss))
        assert (ours.visit, ours.iterations) == (theirs.visit, theirs.iterations)


def test_what_is_begun_after_a_visit_diverged_counts_for_nothing(monkeypatch):
    settings = {"local_epochs": 4}
    one_at_once = {**settings, "enough_loss": -1e9}
    found = []
    for own in (settings, one_at_once):
        engine, params = make(Case((), settings=own), "loop")
        called = called_in_order(engine, monkeypatch)
        (outcome,) = run_visits(engine, visits(ENDS), params, {}, 1e30)
        assert not outcome.finite
        found.append((outcome.iterations, outcome.examples, called.count("call")))
    (steps, examples, two_calls), (steps_alone, examples_alone, one_call) = found
    assert (steps, examples) == (steps_alone, examples_alone) == (3, 10)
    assert (two_calls, one_call) == (2, 1)


def test_epochs_that_are_asked_for_at_once_are_told_as_they_end():
    engine, params = make(Case(()), "loop")
    (visit,) = visits(ENDS)
    told = []
    inner = engine._waited_for

    def waited_for(*args):
        sums = inner(*args)
        told.append(engine.progress()[0])
        return sums

    engine._waited_for = waited_for
    run_visits(engine, [visit], params, {}, 0.05)
    assert [one.visit for one in told] == [visit] * 3
    assert told[-1].steps == 9
    assert [one.steps for one in told] == sorted(one.steps for one in told)
    assert engine.progress() == []
