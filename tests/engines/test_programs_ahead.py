"""Programs are compiled in the background, in the schedule's order; what goes wrong is told."""

import threading

import jax
import numpy as np
import pytest

from snake_jax.algorithms.visits import Visit
from snake_jax.engines.build import image_engine
from snake_jax.engines.contract import run_visits
from snake_jax.engines.epochs import VisitSettings
from snake_jax.engines.programs import EVALUATE, Ahead, Program
from tests.helpers import random_examples, same_bits, small_model, small_step

X = jax.ShapeDtypeStruct((2,), np.float32)
ASSIGNMENTS = (("fc1", "fc4"), ("fc2", "fc4"), ("fc3", "fc4"))
ROUNDS = tuple((Visit(turn, 0, turn % 2, layers),) for turn, layers in enumerate(ASSIGNMENTS * 2))
SHARDS = (np.arange(10), np.arange(10, 20))
SETTINGS = VisitSettings(
    local_epochs=1, batch_size=5, frozen_dtype="float32", early_stop=0.0, seed=7
)


def named(name):
    return Program("train", (name,))


class Traced:
    """Programs whose tracing is seen, and may be held up or fail."""

    def __init__(self):
        self.names, self.threads, self.devices = [], [], []
        self.gate = threading.Event()

    def lower(self, name, held=False, error=None):
        def traced():
            self.names.append(name)
            self.threads.append(threading.get_ident())
            self.devices.append(jax.config.jax_default_device)
            if held:
                assert self.gate.wait(60)
            if error is not None:
                raise error
            return jax.jit(lambda x: x + 1).lower(X)

        return traced


@pytest.fixture
def traced():
    found = Traced()
    yield found
    found.gate.set()


def test_programs_are_traced_in_the_order_asked_for_and_once(traced):
    ahead = Ahead()
    for name in ("a", "b", "c", "a"):
        ahead.ask(named(name), traced.lower(name))
    assert len(ahead) == 3
    ahead.finish()
    assert traced.names == ["a", "b", "c"]
    assert threading.get_ident() not in traced.threads
    assert ahead.take(named("b"))(np.zeros(2, np.float32)).tolist() == [1, 1]
    assert named("b") not in ahead
    assert traced.names == ["a", "b", "c"]


def test_what_is_needed_before_its_turn_is_compiled_by_who_needs_it(traced):
    ahead = Ahead()
    ahead.ask(named("first"), traced.lower("first", held=True))
    for name in ("second", "third"):
        ahead.ask(named(name), traced.lower(name))
    # The first one holds the background up for as long as this test likes.
    ahead.take(named("third"))
    assert traced.names == ["first", "third"]
    assert traced.threads[1] == threading.get_ident()
    traced.gate.set()
    ahead.finish()
    assert traced.names == ["first", "third", "second"]


def test_an_error_is_raised_by_who_takes_and_before_that_by_who_looks(traced):
    ahead = Ahead()
    ahead.ask(named("sound"), traced.lower("sound"))
    ahead.ask(named("broken"), traced.lower("broken", error=ArithmeticError("no such shape")))
    ahead.check()
    ahead.take(named("sound"))
    for looks in (ahead.finish, ahead.check, lambda: ahead.take(named("broken"))):
        with pytest.raises(ArithmeticError, match="no such shape"):
            looks()


def test_closing_begins_nothing_further_and_leaves_no_thread_at_work(traced):
    ahead = Ahead()
    ahead.ask(named("first"), traced.lower("first", held=True))
    ahead.ask(named("second"), traced.lower("second"))
    threading.Timer(0.1, traced.gate.set).start()
    ahead.close()
    assert traced.gate.is_set(), "the one that was begun is waited for"
    assert traced.names == ["first"]
    ahead.check()
    # Whoever goes on all the same has it.
    assert ahead.take(named("second"))(np.zeros(2, np.float32)).tolist() == [1, 1]
    assert ahead.take(named("first"))(np.zeros(2, np.float32)).tolist() == [1, 1]


def test_another_thread_compiles_for_the_device_of_who_asks(traced):
    ahead, device = Ahead(), jax.devices()[0]
    with jax.default_device(device):
        ahead.ask(named("a"), traced.lower("a"))
    ahead.ask(named("b"), traced.lower("b"))
    ahead.finish()
    assert traced.devices == [device, None]


def make():
    model, params = small_model("mlp")
    examples, test = random_examples(20), random_examples(9, seed=1)
    return image_engine(small_step(model), examples, test, SHARDS, SETTINGS), params


@pytest.fixture(scope="module")
def plain():
    """What the visits and the evaluation give where nothing is compiled ahead."""
    engine, params = make()
    done = [run_visits(engine, visits, params, {}, 0.05) for visits in ROUNDS[:3]]
    return [one.layers for (one,) in done], engine.evaluate(params)


def test_the_schedule_s_programs_come_in_its_order_and_the_first_visit_waits_for_its_own_alone(
    plain, monkeypatch
):
    engine, params = make()
    lowered, second, gate = [], threading.Event(), threading.Event()
    inner = type(engine)._lowered

    def lowering(self, program, layers, *rest):
        lowered.append(layers)
        if len(lowered) > 1:
            second.set()
            assert gate.wait(60)
        return inner(self, program, layers, *rest)

    monkeypatch.setattr(type(engine), "_lowered", lowering)
    engine.expect(ROUNDS, params)
    assert engine.compilations.programs == 4
    # All but the first are held up, and the first visit is carried out.
    (first,) = run_visits(engine, ROUNDS[0], params, {}, 0.05)
    assert set(engine._programs) == {Program("train", ASSIGNMENTS[0])}
    assert second.wait(60)
    gate.set()
    others = [run_visits(engine, visits, params, {}, 0.05)[0] for visits in ROUNDS[1:3]]
    scores = engine.evaluate(params)
    assert lowered == list(ASSIGNMENTS)
    assert engine.compilations.programs == len(engine._programs) == 4
    expected_layers, expected_scores = plain
    assert same_bits([one.layers for one in (first, *others)], expected_layers)
    assert scores == expected_scores


def test_the_evaluation_comes_after_the_first_round_s_programs():
    engine, params = make()
    asked = []
    engine._ahead.ask = lambda program, lower: asked.append(program)
    engine.expect(ROUNDS, params, done=1)
    trained = [Program("train", ASSIGNMENTS[number]) for number in (1, 2, 0)]
    assert asked == [trained[0], EVALUATE, *trained[1:]]


def test_an_error_of_a_later_program_ends_the_run_at_the_next_call(monkeypatch):
    engine, params = make()
    inner = type(engine)._lowered

    def lowering(self, program, layers, *rest):
        if layers == ASSIGNMENTS[2]:
            raise MemoryError("it is too large")
        return inner(self, program, layers, *rest)

    monkeypatch.setattr(type(engine), "_lowered", lowering)
    engine.expect(ROUNDS, params)
    with pytest.raises(MemoryError, match="too large"):
        engine._ahead.finish()
    with pytest.raises(MemoryError, match="too large"):
        run_visits(engine, ROUNDS[0], params, {}, 0.05)
    engine.close()
