"""`--follow_clock`: what the clock has go wrong decides who trains, and replays after a resume."""

import itertools

import pytest

from snake_jax.config import ImageConfig
from snake_jax.report.events import read_events
from snake_jax.runs import loop
from snake_jax.runs.front import kept_rounds
from snake_jax.runs.workdir import Workdir
from tests.helpers import same_bits
from tests.launches import write_images

SMALL = {"model": "mlp", "width": 0.25, "nodes": 3, "cycles": 3, "batch_size": 8}


@pytest.fixture(scope="module")
def small(tmp_path_factory, quick_compilation):
    images = write_images(tmp_path_factory.mktemp("data") / "images.npz")
    return {**SMALL, "dataset": f"npz:{images}"}


def with_nodes(small, folder, *windows, **flags):
    """Nodes that are free in these stretches of a period of 1,000 s."""
    lines = [f"  - {{windows: {[list(pair) for pair in each]}}}" for each in windows]
    lines = [line if "[]" not in line else "  - {}" for line in lines]
    (folder / "nodes.yaml").write_text(
        "\n".join(["period_s: 1000", "defaults: {latency_s: 0.3}", "nodes:", *lines, ""])
    )
    return ImageConfig(**{**small, "node_file": str(folder / "nodes.yaml"), **flags})


def kept(config, path, stop=None):
    setup = loop.prepare(config)
    folder = Workdir(path, setup.config)
    try:
        found = []
        for report in kept_rounds(setup, folder, folder.resume(setup, pytest.fail)):
            found.append(report)
            if report.state.rounds == stop:
                break
        return found
    finally:
        folder.close()


def told(path):
    rows = read_events(path)
    return [(row["node"], row["event"], row["cause"]) for row in rows if row["event"] != "admitted"]


def test_windows_and_drops_decide_who_trains_and_a_resumed_run_decides_alike(small, tmp_path):
    """Node 1 is away at first, node 0 leaves within its second visit."""
    flags = {"follow_clock": True, "drop_rate_per_hour": 1000.0, "rejoin_s": 1.0, "seed": 6}
    config = with_nodes(small, tmp_path, [], [(500, 900)], [], **flags)
    whole = kept(config, tmp_path / "whole")
    nodes = [report.record["node"] for report in whole]
    assert 1 not in nodes
    events = [report.record["event"] for report in whole]
    assert {"interrupted", "takeover"} <= set(events)
    for before, after in itertools.pairwise(whole):
        if before.record["event"] == "interrupted":
            assert after.record["event"] in ("takeover", "waited")
    assert sum(report.record["drops"] for report in whole) >= events.count("interrupted")

    rows = told(tmp_path / "whole")
    away = [cause for node, event, cause in rows if (node, event) == (1, "away")]
    assert away
    assert all(cause.startswith("by the clock until 500 s: node ") for cause in away)
    left = [cause for _, event, cause in rows if event == "interrupted"]
    assert all(cause.startswith("its node left by the clock, after 0.") for cause in left)

    # Times, and so decisions, are kept: stopped after a cut visit it goes on to the same bits.
    stop = events.index("interrupted") + 1
    kept(config, tmp_path / "run", stop=stop)
    rest = kept(config, tmp_path / "run")
    assert [report.record["node"] for report in rest] == nodes[stop:]
    assert same_bits(rest[-1].state.params, whole[-1].state.params)
    assert rest[-1].state.begun_s == whole[-1].state.begun_s
    assert [row for row in told(tmp_path / "run") if row[1] != "restarted"] == rows


def test_a_run_in_which_all_are_there_is_that_without_the_flag(small, tmp_path):
    plain = kept(ImageConfig(**{**small, "cycles": 1}), tmp_path / "plain")
    config = ImageConfig(**{**small, "cycles": 1, "follow_clock": True})
    followed = kept(config, tmp_path / "followed")
    assert same_bits(plain[-1].state.params, followed[-1].state.params)
    assert [r.record["clock_s"] for r in plain] == [r.record["clock_s"] for r in followed]


def test_at_night_the_run_waits_by_the_clock(small, tmp_path):
    night = [(600, 900)]
    config = with_nodes(small, tmp_path, night, [(700, 900)], night, follow_clock=True, cycles=1)
    first, second = kept(config, tmp_path / "run")
    assert (first.record["node"], first.record["event"]) == (0, "waited")
    assert first.record["away_s"] == pytest.approx(600, abs=0.01)
    # Once it is day the others take turns; node 1 still sleeps.
    assert (second.record["node"], second.record["event"]) == (2, "")
    cause = "by the clock until 600 s: its visit waits, since nobody who is there can take it"
    assert told(tmp_path / "run")[0] == (0, "away", cause)


def test_the_assignment_weighs_windows(small, tmp_path):
    """Node 0 is a little faster, and free for a tenth of the period only."""
    nodes = "nodes:\n  - {flops_per_s: 1.1e+11, windows: [[0, 100]]}\n  - {count: 2}\n"
    (tmp_path / "nodes.yaml").write_text(f"period_s: 1000\n{nodes}")
    flags = {"node_file": str(tmp_path / "nodes.yaml"), "assign": "milp"}
    flags["assign_objective"] = "duration"
    plain = loop.prepare(ImageConfig(**{**small, **flags}))
    followed = loop.prepare(ImageConfig(**{**small, **flags, "follow_clock": True}))
    assert set(plain.plan.visitors.values()) == {0}
    assert 0 not in followed.plan.visitors.values()
    # What a visit takes once it runs is as before.
    assert followed.plan.able == plain.plan.able
