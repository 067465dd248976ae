"""Thresholds that end visits and runs: when, why it is said, and that a run that goes on agrees."""

import dataclasses

import pytest

from snake_jax.config import ImageConfig, TextConfig
from snake_jax.engines.contract import Scores
from snake_jax.engines.epochs import Tally, settings_of, why_ended
from snake_jax.errors import UserError
from snake_jax.runs import loop, membership, stops
from tests.helpers import same_bits
from tests.launches import write_images

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`flags -> setup, reports` of a short run, on one engine for all."""
    file = write_images(tmp_path_factory.mktemp("data") / "images.npz")
    small = {"model": "mlp", "width": 0.25, "nodes": 3, "cycles": 3, "batch_size": 8, "seed": 3}
    base = ImageConfig(dataset=f"npz:{file}", local_epochs=3, distill="off", **small)
    engines = {}

    def run(state=None, **flags):
        config = dataclasses.replace(base, **flags)
        setup = loop.prepare(config)
        # Thresholds of visits decide what an engine does, those of runs what the loop does.
        key = config.visit_loss, config.visit_accuracy
        engine = engines.setdefault(key, None) or loop.make_engine(setup)
        engines[key] = engine
        begun = state or loop.initial_state(setup)
        return setup, list(loop.train(setup, engine, begun, lambda state: None))

    return run


def test_a_run_ends_at_the_first_evaluation_that_is_good_enough(runs):
    _, whole = runs()
    losses = [report.record["test_loss"] for report in whole]
    bound = sorted(losses)[len(losses) // 2]
    first = next(index for index, loss in enumerate(losses) if loss <= bound)
    assert first < len(losses) - 1
    _, short = runs(stop_loss=bound)
    assert len(short) == first + 1 < len(whole)
    # Up to there it is the same run, bit for bit.
    assert same_bits(short[-1].state.params, whole[first].state.params)
    why = f"test loss {losses[first]:.4g} is at most --stop_loss={bound:g}"
    assert short[-1].record["ended"] == short[-1].state.ended == why
    assert not any("ended" in report.record for report in short[:-1])
    event = short[-1].events[-1]
    assert (event.event, event.node, event.cause) == ("ended", None, why)
    assert stops.summary([report.record for report in short]) == {"ended": why}


def test_a_run_that_a_threshold_ended_does_not_go_on(runs):
    setup, whole = runs(stop_loss=1e9)
    assert len(whole) == 1
    kept = membership.to_json(whole[-1].state)
    state = membership.restored(loop.initial_state(setup), kept)
    assert state.ended == whole[-1].state.ended
    assert runs(whole[-1].state, stop_loss=1e9)[1] == []


def test_a_run_that_goes_on_ends_where_the_unbroken_one_does(runs):
    _, whole = runs()
    bound = min(report.record["test_loss"] for report in whole[:-1])
    _, short = runs(stop_loss=bound)
    middle = short[len(short) // 2 - 1].state
    _, rest = runs(middle, stop_loss=bound)
    assert rest[-1].record["ended"] == short[-1].record["ended"]
    assert same_bits(rest[-1].state.params, short[-1].state.params)
    assert rest[-1].state.rounds == short[-1].state.rounds


def test_a_visit_ends_with_the_epoch_that_is_good_enough(runs):
    _, whole = runs(cycles=1)
    _, brief = runs(cycles=1, visit_loss=1e9)
    for ours, theirs in zip(brief, whole, strict=True):
        assert ours.record["iterations"] * 3 == theirs.record["iterations"]
        node = str(ours.record["node"])
        (why,) = ours.record["visits_ended"].values()
        assert list(ours.record["visits_ended"]) == [node]
        assert why.endswith("is at most 1e+09, after 1 of 3 epochs")
        assert [event.cause for event in ours.events if event.event == "ended"] == [why]
        assert "visits_ended" not in theirs.record


def test_a_visit_ends_with_the_epoch_that_is_accurate_enough(runs):
    # Two nodes of the three reach the bound in some epoch before their last.
    bound = 0.4
    setup, brief = runs(cycles=1, visit_accuracy=bound)
    _, whole = runs(cycles=1)
    ended = {}
    for ours, theirs in zip(brief, whole, strict=True):
        for why in ours.record.get("visits_ended", {}).values():
            assert " of 3 epochs" in why
            reached = float(why.removeprefix("its accuracy of ").split()[0])
            assert reached >= bound
            # A share of the node's own examples.
            held = len(setup.data.shards[ours.record["node"]])
            assert reached * held == pytest.approx(round(reached * held), abs=1e-3 * held)
            ended[ours.record["node"]] = why
            assert ours.record["iterations"] < theirs.record["iterations"]
    assert ended
    # That hits are counted changes no bit of what is trained.
    _, counted = runs(cycles=1, visit_accuracy=1.0)
    assert same_bits(counted[0].state.params, whole[0].state.params)


@pytest.mark.parametrize(
    ("config", "scores", "why"),
    [
        (ImageConfig(stop_accuracy=0.8), Scores(0.8, 1.0), "accuracy 0.8 is at least"),
        (ImageConfig(stop_accuracy=0.8), Scores(0.79, 1.0), ""),
        (ImageConfig(stop_accuracy=0.8), None, ""),
        (ImageConfig(), Scores(1.0, 0.0), ""),
        (TextConfig(stop_perplexity=2.0), Scores(None, 0.6), "perplexity 1.822 is at most"),
        (TextConfig(stop_perplexity=2.0), Scores(None, 0.7), ""),
        (TextConfig(stop_loss=0.5), Scores(None, 0.5), "test loss 0.5 is at most --stop_loss=0.5"),
        (TextConfig(stop_loss=0.5), Scores(None, float("nan")), ""),
    ],
)
def test_thresholds_are_of_test_scores(config, scores, why):
    found = stops.why_ends(config, scores)
    assert found.startswith(why)
    assert bool(found) == bool(why)


def test_each_node_s_own_epochs_count():
    stops.check(ImageConfig(visit_loss=0.5, nodes=2, node_epochs="1,3"))
    settings = settings_of(ImageConfig(visit_loss=0.5, nodes=2, node_epochs="1,3"))
    over = Tally(previous=0.4, over=True, epochs=1)
    assert why_ended(over, settings, 0) == ""
    assert why_ended(over, settings, 1) == "its loss of 0.4 is at most 0.5, after 1 of 3 epochs"


@pytest.mark.parametrize(
    ("config", "flag"),
    [
        (ImageConfig(visit_loss=0.5), "--visit_loss=0.5"),
        (ImageConfig(visit_accuracy=0.9), "--visit_accuracy=0.9"),
        (TextConfig(visit_perplexity=4.0), "--visit_perplexity=4"),
    ],
)
def test_a_threshold_of_visits_with_one_epoch_is_refused(config, flag):
    with pytest.raises(UserError, match=f"{flag}: a visit ends between its epochs"):
        stops.check(config)
