"""What is refused before a merge, whatever engine it comes from, and what becomes of its visit."""

import jax
import numpy as np
import pytest

from snake_jax.algorithms.visits import Order, Outcome, Visit
from snake_jax.config import ImageConfig
from snake_jax.engines import updates
from snake_jax.errors import UserError
from snake_jax.runs import loop
from tests.helpers import same_bits
from tests.launches import write_images

VISIT = Visit(3, 0, 1, ("a",))
ORDER = Order(VISIT, 0.1, {"a": 4, "b": 2})
PARAMS = {
    "a": {"kernel": np.ones((2, 3), np.float32), "bias": np.zeros(3, np.float32)},
    "b": {"kernel": np.ones((3, 3), np.float32)},
}
TRAINED = {"a": {"kernel": np.full((2, 3), 1.5, np.float32), "bias": np.zeros(3, np.float32)}}


def outcome(**changes):
    made = Outcome(VISIT, TRAINED, {}, 0.5, True, 1, 8, 8, 0.0, started={"a": 4, "b": 2})
    return made._replace(**changes)


def changed(**leaves):
    return {"a": {**TRAINED["a"], **leaves}}


def test_a_sound_update_is_merged():
    sound = outcome()
    assert updates.refusal(sound, ORDER, PARAMS) == ""
    sent = sound._replace(checksum=updates.checksum(sound))
    assert updates.refusal(sent, ORDER, PARAMS) == ""
    # Of an engine that says neither.
    assert updates.refusal(outcome(started=None), ORDER, PARAMS) == ""
    on_device = sound._replace(layers=jax.device_put(TRAINED))
    assert updates.checksum(on_device) == updates.checksum(sound)


@pytest.mark.parametrize(
    ("spoiled", "why"),
    [
        (outcome(checksum=1), "its checksum differs"),
        (outcome(started={"a": 3, "b": 2}), "it started from another version of a"),
        (outcome(started={"a": 4}), "it started from another version of b"),
        (outcome(layers={}), "it has layers , not a"),
        (outcome(layers=PARAMS), "it has layers a, b, not a"),
        (outcome(layers={"a": {"kernel": TRAINED["a"]["kernel"]}}), "a has other arrays"),
        (outcome(layers=changed(bias=np.zeros(2, np.float32))), "an array float32[2], not"),
        (outcome(layers=changed(bias=np.zeros(3, np.float64))), "float64[3], not float32[3]"),
        (outcome(layers=changed(bias=np.float32([0, np.nan, 0]))), "it is not finite"),
        (outcome(states={"a": np.float32([np.inf])}), "it is not finite"),
        (outcome(memory={"x": np.float32([np.nan])}), "it is not finite"),
    ],
)
def test_what_is_wrong_with_an_update_is_named(spoiled, why):
    assert why in updates.refusal(spoiled, ORDER, PARAMS)


def test_the_norm_of_what_moved_is_bounded():
    # Six numbers moved by a half: sqrt(6) / 2 = 1.2247.
    assert updates.refusal(outcome(), ORDER, PARAMS, 1.23) == ""
    why = updates.refusal(outcome(), ORDER, PARAMS, 1.22)
    assert why == "it moved by 1.225, over --max_update_norm=1.22"


def test_a_checksum_is_of_values_and_of_their_places():
    first = outcome()
    other = outcome(layers=changed(bias=np.float32([0, 0, 1e-30])))
    assert updates.checksum(first) != updates.checksum(other)
    swapped = {"a": {"kernel": TRAINED["a"]["kernel"].T[::-1], "bias": np.float32([1, 2, 3])}}
    backwards = {"a": {**swapped["a"], "bias": np.float32([3, 2, 1])}}
    assert updates.checksum(outcome(layers=swapped)) != updates.checksum(outcome(layers=backwards))


def test_a_divergence_that_a_node_tells_itself_is_no_refusal():
    told = outcome(finite=False, layers=changed(bias=np.float32([np.nan, 0, 0])))
    assert updates.refusal(told, ORDER, PARAMS) == ""


# In a run


class Spoiling:
    """An engine whose outcome of a turn's first visit has numbers that are none."""

    def __init__(self, engine, turn):
        self._engine, self._turn = engine, turn

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def next(self, timeout_s=None):
        made = self._engine.next(timeout_s)
        if made is not None and made.visit.turn == self._turn and not made.visit.event:
            layers = jax.tree.map(lambda leaf: leaf * np.nan, made.layers)
            return made._replace(layers=layers)
        return made


@pytest.fixture(scope="module")
def flags(tmp_path_factory, quick_compilation):
    images = write_images(tmp_path_factory.mktemp("data") / "images.npz")
    small = {"model": "mlp", "width": 0.25, "nodes": 3, "cycles": 1, "batch_size": 8}
    return {**small, "dataset": f"npz:{images}"}


def trained(flags, wrap=lambda engine: engine, **more):
    setup = loop.prepare(ImageConfig(**{**flags, **more}))
    engine, state = wrap(loop.make_engine(setup)), loop.initial_state(setup)
    return list(loop.train(setup, engine, state, lambda state: None))


def test_a_refused_update_replays_as_a_lost_visit(flags):
    refused = trained(flags, lambda engine: Spoiling(engine, 1))
    asked = trained(flags, interrupt="1@0", interruption="lost")
    cause = "its update was refused: it is not finite, though its node says it is"
    assert [[one.why for one in report.lost] for report in refused] == [[], [cause], []]
    assert [e.cause for e in refused[1].events if e.event == "lost"] == [cause]
    ours = [report.record | {"train_s": 0} for report in refused]
    assert ours == [report.record | {"train_s": 0} for report in asked]
    assert same_bits(refused[-1].state.params, asked[-1].state.params)


def test_a_bound_that_no_update_keeps_ends_the_run_in_one_line(flags):
    with pytest.raises(UserError, match="3 updates were refused, the last because it moved by"):
        trained(flags, max_update_norm=1e-9)
    assert len(trained(flags, max_update_norm=1e9)) == 2
