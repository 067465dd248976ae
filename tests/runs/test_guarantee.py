"""Epsilon of a run: what it is, whose it is, that it survives a kill, and what is refused."""

import json

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

from snake_jax.algorithms.visits import Visit
from snake_jax.config import ImageConfig, TextConfig
from snake_jax.errors import UserError
from snake_jax.runs import loop, privacy
from snake_jax.runs.job import chosen_algorithm
from tests.helpers import close, same_bits
from tests.launches import Launcher, write_images, write_model, write_pairs

pytestmark = pytest.mark.usefixtures("quick_compilation")
DELTA = 1e-5
PRIVATE = {"dp_clip": 0.5, "dp_noise": 2.0, "clip_norm": 0.0}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Flags of a small run of four visits of two nodes."""
    file = write_images(tmp_path_factory.mktemp("data") / "images.npz")
    small = {"model": "mlp", "width": 0.25, "nodes": 3, "cycles": 2, "batch_size": 8}
    return {**small, "dataset": f"npz:{file}", "local_epochs": 2, "distill": "off"}


def by_hand(noise, epochs):
    """Epsilon of so many Gaussian mechanisms, by an accountant of another kind."""
    accountant = PLDAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(noise), epochs)
    return accountant.get_epsilon(DELTA)


def trained(flags, state=None):
    setup = loop.prepare((TextConfig if "data" in flags else ImageConfig)(**flags))
    engine = loop.make_engine(setup)
    start = state or loop.initial_state(setup)
    reports = list(loop.train(setup, engine, start, lambda state: None))
    return setup, engine, reports


def test_epsilon_is_the_accountant_s_for_the_epochs_of_each_nodes_own_visits(images):
    setup, engine, reports = trained({**images, **PRIVATE})
    lines = [report.record for report in reports]
    assert [line["node"] for line in lines] == [0, 1, 2, 0]
    assert [line["dp_epochs"] for line in lines] == [[2]] * 4
    # Node 0 has been visited twice only at the end, the others once.
    once, twice = by_hand(2.0, 2), by_hand(2.0, 4)
    assert [line["epsilon"] for line in lines] == pytest.approx([once] * 3 + [twice], abs=1e-4)
    summary = loop.summarise(setup, engine.compilations, lines)
    assert summary["epsilon_of_nodes"] == pytest.approx([twice, once, once], abs=1e-4)
    assert summary["epsilon"] == max(summary["epsilon_of_nodes"])
    assert summary["dp_delta"] == DELTA
    assert summary["dp_sampling"] == "shuffled epochs, no amplification"
    assert json.dumps(summary)


def test_noise_follows_the_seed_and_goes_on_after_a_kill(images):
    flags = {**images, **PRIVATE}
    _, _, unbroken = trained(flags)
    _, _, again = trained(flags)
    _, _, other = trained({**flags, "seed": 1})
    assert same_bits(unbroken[-1].state.params, again[-1].state.params)
    assert not close(unbroken[-1].state.params, other[-1].state.params)
    _, _, resumed = trained(flags, unbroken[1].state)
    assert same_bits(resumed[-1].state.params, unbroken[-1].state.params)
    epsilons = [report.record["epsilon"] for report in unbroken]
    assert [report.record["epsilon"] for report in resumed] == epsilons[2:]


def test_nodes_side_by_side_draw_what_they_draw_alone(images):
    flags = {**images, **PRIVATE, "algorithm": "fedavg", "cycles": 1}
    loop_, batched = (trained({**flags, "executor": how})[2] for how in ("loop", "vmap"))
    assert close(loop_[0].state.params, batched[0].state.params)
    assert loop_[0].record["dp_epochs"] == [2, 2, 2]


def test_without_noise_there_is_no_guarantee_and_the_run_says_so(images):
    setup, engine, reports = trained({**images, "cycles": 1, "dp_clip": 0.5})
    summary = loop.summarise(setup, engine.compilations, [r.record for r in reports])
    assert summary["epsilon"] is None
    assert privacy.said(summary).startswith("differential privacy: none")


def test_a_run_without_privacy_says_nothing_of_it(images):
    setup, engine, reports = trained({**images, "cycles": 1})
    summary = loop.summarise(setup, engine.compilations, [r.record for r in reports])
    assert not [name for name in (*summary, *reports[0].record) if "epsilon" in name]
    assert privacy.said(summary) == ""


def test_a_taken_over_turn_counts_at_both_nodes():
    first, second = Visit(0, 0, 0, ("fc1",), (0.0, 0.6)), Visit(0, 0, 1, ("fc1",), (0.6, 1.0))
    assert [len(privacy.epochs(visit, 5)) for visit in (first, second)] == [3, 2]
    assert [len(privacy.epochs(visit, 1)) for visit in (first, second)] == [1, 1]
    spent = privacy.spent_in([(first,), (second,), (second._replace(turn=1),)], 5)
    assert {node: len(found) for node, found in spent.items()} == {0: 3, 1: 4}


def test_visits_that_share_a_pass_over_the_data_count_it_once():
    halves = [Visit(4, 0, 0, ("fc1",), share) for share in ((0.0, 0.5), (0.5, 1.0))]
    assert len(privacy.spent_in([halves], 1)[0]) == 1
    assert len(privacy.spent_in([halves], 3)[0]) == 3


def test_a_launch_on_text_tells_epsilon_and_what_it_does_not_cover(tmp_path, monkeypatch, capfd):
    model, pairs = write_model(tmp_path / "model"), write_pairs(tmp_path / "pairs.jsonl")
    words = {"model": model, "data": pairs, "max_length": 64, "nodes": 2, "batch_size": 4}
    words |= {"lora_rank": 2, "packing": "false", "dp_clip": 0.1, "dp_noise": 1.5}
    flags = [f"--{name}={value}" for name, value in words.items()]
    ended = Launcher(monkeypatch, capfd, "finetune")(*flags, f"--workdir={tmp_path / 'run'}")
    assert ended.code == 0, ended.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["epsilon"] == pytest.approx(by_hand(1.5, 2), abs=1e-4)
    assert summary["dp_unit"] == "row of text"
    assert f"differential privacy: epsilon {summary['epsilon']:.4g} at delta 1e-05" in ended.stdout
    assert "not covered: losses" in ended.stdout
    assert f"epsilon {by_hand(1.5, 1):.4g}" in ended.stdout  # in the line of a visit


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (ImageConfig(dp_noise=1.0), "set --dp_clip too, as 1"),
        (
            ImageConfig(dp_clip=1.0, algorithm="split"),
            "sends activations of examples over its cuts",
        ),
        (ImageConfig(dp_clip=1.0, early_stop=0.1), "leave --early_stop out"),
        (ImageConfig(dp_clip=1.0, leave_gain=0.1), "leave --leave_loss and --leave_gain out"),
        (ImageConfig(dp_clip=1.0, outliers=0.1), "leave --outliers out"),
        (TextConfig(dp_clip=1.0), "say --packing=false"),
        (TextConfig(dp_clip=1.0, packing=False, mesh="fsdp:2"), "leave --mesh out"),
        (
            TextConfig(dp_clip=1.0, packing=False, frozen_matmul="fused"),
            "say --frozen_matmul=dequantize",
        ),
    ],
)
def test_what_privacy_cannot_stand_beside_is_refused_in_one_line(config, reason):
    with pytest.raises(UserError) as error:
        chosen_algorithm(config)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_accountant_is_said_with_what_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'snake-jax\[private\]'"):
        chosen_algorithm(ImageConfig(dp_clip=1.0, dp_noise=1.0))
    chosen_algorithm(ImageConfig(dp_clip=1.0))
