"""The loop: what is lost is handed over, and what fails replays as a flag."""

import numpy as np
import pytest

from snake_jax.algorithms.visits import Lost
from snake_jax.config import ImageConfig
from snake_jax.runs import loop
from snake_jax.runs.workdir import Workdir
from tests.helpers import same_bits
from tests.launches import write_images

SMALL = {"model": "mlp", "width": 0.25, "nodes": 3, "cycles": 2, "batch_size": 8}


@pytest.fixture(scope="module")
def small(tmp_path_factory, quick_compilation):
    images = write_images(tmp_path_factory.mktemp("data") / "images.npz")
    return {**SMALL, "dataset": f"npz:{images}"}


class Losing:
    """An engine from which the outcome of one turn's first visit does not come back."""

    def __init__(self, engine, turn):
        self._engine, self._turn = engine, turn

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def next(self, timeout_s=None):
        outcome = self._engine.next(timeout_s)
        if outcome is not None and outcome.visit.turn == self._turn:
            self._turn = None
            return Lost(outcome.visit, "deadline")
        return outcome


def keep_nothing(state):
    del state


def reports(small, turn=None, **flags):
    setup = loop.prepare(ImageConfig(**{**small, **flags}))
    engine = loop.make_engine(setup)
    if turn is not None:
        engine = Losing(engine, turn)
    state = loop.initial_state(setup)
    return list(loop.train(setup, engine, state, keep_nothing))


def column(run, field):
    """A field of every line."""
    return [report.record[field] for report in run]


def test_a_node_that_is_lost_is_taken_over_as_the_flag_says_it(small):
    lost = reports(small, turn=1, lr_schedule="cosine_visits")
    flags = {"interrupt": "1@0.5", "interruption": "lost", "lr_schedule": "cosine_visits"}
    asked = reports(small, **flags)
    assert column(lost, "event") == ["", "lost", "takeover", "", ""]
    for field in ("event", "node", "learning_rate", "bytes_up", "bytes_down"):
        assert column(asked, field) == column(lost, field)
    assert same_bits(asked[-1].state.params, lost[-1].state.params)


def test_a_round_goes_on_without_a_node_that_is_lost(small):
    whole = reports(small, algorithm="fedavg", cycles=1)
    rest = reports(small, turn=0, algorithm="fedavg", cycles=1)
    assert not same_bits(rest[0].state.params, whole[0].state.params)
    of_rest = rest[0].record
    of_whole = whole[0].record
    assert of_rest["event"] == "lost"
    assert of_rest["examples"] < of_whole["examples"]
    # It was sent the model before it was lost, and sent nothing back.
    assert of_rest["bytes_down"] == of_whole["bytes_down"]
    assert 0 < of_rest["bytes_up"] < of_whole["bytes_up"]


def test_a_run_that_lost_a_node_goes_on_from_a_checkpoint_with_the_same_bits(small, tmp_path):
    config = ImageConfig(**small)
    setup = loop.prepare(config)
    unbroken = reports(small, turn=1)
    for stop in (2, 3):  # between the loss and the visit that makes up for it, and after both
        folder = tmp_path / str(stop)
        workdir = Workdir(folder, config)
        engine = Losing(loop.make_engine(setup), turn=1)
        state = workdir.resume(setup, pytest.fail)
        for report in loop.train(setup, engine, state, keep_nothing):
            workdir.add(report, engine.compilations)
            if report.state.rounds == stop:
                break
        workdir.close()
        workdir = Workdir(folder, config)
        state = workdir.resume(setup, pytest.fail)
        workdir.close()
        assert state.failures == {1: ("lost",)}
        rest = list(loop.train(setup, loop.make_engine(setup), state, keep_nothing))
        assert len(rest) == 5 - stop
        assert same_bits(rest[-1].state.params, unbroken[-1].state.params)


def test_a_hand_over_leaves_the_learning_rates_of_all_others(small):
    flags = {"lr_schedule": "cosine_visits"}
    whole = column(reports(small, **flags), "learning_rate")
    rates = column(reports(small, interrupt="1@0.5", **flags), "learning_rate")
    assert rates == [whole[0], whole[1], whole[1], *whole[2:]]
    assert np.all(np.diff(whole) < 0)


def test_a_node_that_cannot_hold_a_visit_does_not_take_it_over(small, tmp_path):
    """Case R4: of three nodes the second is too small; the third takes over for the first."""
    nodes = tmp_path / "nodes.yaml"
    nodes.write_text("nodes:\n  - {}\n  - {memory_bytes: 10000}\n  - {}\n")
    flags = {**small, "node_file": str(nodes), "assign": "proportional", "always_train": "all"}
    setup = loop.prepare(ImageConfig(**flags, interrupt="0"))
    (stopped,), (taken,), *_ = loop.planned(setup)
    assert (stopped.event, taken.event) == ("interrupted", "takeover")
    assert {stopped.node, taken.node} == {0, 2}


def test_an_interruption_that_nobody_can_take_over_waits_for_its_own_node(small, tmp_path):
    nodes = tmp_path / "nodes.yaml"
    nodes.write_text("nodes:\n  - {}\n  - {count: 2, memory_bytes: 10000}\n")
    flags = {"node_file": str(nodes), "assign": "proportional", "always_train": "all"}
    found = reports(small, interrupt="0@0.5", rejoin_s=70.0, **flags)
    assert column(found, "event")[:3] == ["interrupted", "waited", ""]
    assert column(found, "node")[:2] == [0, 0]
    events = [(event.node, event.event, event.cause) for event in found[1].events]
    cause = "no other node can take it; its own goes on, from what was handed in after 0.5 of the "
    assert events == [(0, "waits", cause + "steps")]
    # By the clock it stands still until the node is back, in the mean.
    assert found[1].record["away_s"] == 70.0
    assert found[0].record["away_s"] == found[2].record["away_s"] == 0.0


def test_a_loss_before_the_first_step_replays_as_a_flag_in_every_number(small):
    """What is counted of a lost visit is nothing, and so is it of one that flags lose at once."""
    lost = reports(small, turn=1)
    asked = reports(small, interrupt="1@0", interruption="lost")
    assert [r.record | {"train_s": 0} for r in lost] == [r.record | {"train_s": 0} for r in asked]
    assert [r.transfers for r in lost] == [r.transfers for r in asked]
    assert [[gone.why for gone in r.lost] for r in lost] == [[], ["deadline"], [], [], []]
    assert same_bits(asked[-1].state.params, lost[-1].state.params)


class Backwards:
    """An engine whose outcomes of a round arrive in the reverse of its order."""

    def __init__(self, engine):
        self._engine, self._done = engine, []

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def next(self, timeout_s=None):
        outcome = self._engine.next(timeout_s)
        while outcome is not None:
            self._done.append(outcome)
            outcome = self._engine.next(timeout_s)
        return self._done.pop()


@pytest.mark.parametrize("method", ["fedavg", "scaffold"])
def test_who_is_faster_changes_no_bit(small, method):
    plain = {"optimizer": "sgd", "momentum": 0.0, "clip_norm": 0.0, "algorithm": method}
    in_turn = reports(small, **plain)
    setup = loop.prepare(ImageConfig(**{**small, **plain}))
    engine, state = Backwards(loop.make_engine(setup)), loop.initial_state(setup)
    late = list(loop.train(setup, engine, state, lambda state: None))
    assert same_bits(late[-1].state.params, in_turn[-1].state.params)
    assert same_bits(late[-1].state.nodes, in_turn[-1].state.nodes)
    assert [r.transfers for r in late] == [r.transfers for r in in_turn]


@pytest.mark.parametrize("method", ["centralised", "snake", "fedavg", "split"])
def test_what_changes_has_a_new_version(small, method):
    setup = loop.prepare(ImageConfig(**{**small, "algorithm": method}))
    engine, before = loop.make_engine(setup), loop.initial_state(setup)
    for report in loop.train(setup, engine, before, lambda state: None):
        after = report.state
        for name in setup.layer_names:
            changed = after.params[name] is not before.params[name]
            step = after.network.latest[name] - before.network.latest[name]
            assert step == changed, f"{method}: {name}"
        before = after
