"""Claims that no figure tests: pairs differ in one thing, and verdicts follow from their runs."""

import contextlib
import json

import pytest

from experiments.reproduction import cases, claims, convergence, figures, kept, runs, tested
from experiments.reproduction.cases import Case
from experiments.reproduction.runs import Clock, Study
from experiments.reproduction.tested import Claim
from experiments.reproduction.verdict import CANNOT_TELL, DOES_NOT_HOLD, HOLDS
from snake_jax.runs import loop, storage
from tests.experiments.test_reproduce import launch
from tests.launches import write_images
from tests.sweeps import sweep

OPTIMIZERS = ("sgd", "adam", "rmsprop")
TEXT_SOURCES = {"model": "tiny-llama", "data": "pydoc"}


def test_every_side_of_a_claim_is_run_once_with_a_rate_of_its_own():
    for topic in claims.TOPICS:
        scale = topic.scales["cpu"]
        found = topic.of_figure(topic.name, scale)
        names = {cases.name(case, scale.rates[case.method]) for case in found}
        assert len(names) == len(found)
        assert {case.method for case in found} == set(topic.methods)
        assert {case.seed for case in found} == {0, 1, 2}
    assert len(claims.of_figure(claims.IMAGES, claims.IMAGE_SCALES["cpu"])) == 75


DIFFERING = {
    ("snake", "falling"): {"lr_schedule"},
    ("snake", "unclipped"): {"clip_norm"},
    ("int8", "snake"): {"frozen_dtype"},
    # As many examples are passed in half the visits.
    ("two_nodes", "snake"): {"parallel", "cycles", "eval_every"},
    ("three_snakes", "one_snake"): {"snakes", "eval_every"},
    ("blocks_distilled", "blocks"): {"distill"},
    ("lora_distilled", "lora"): {"distill"},
    ("unlike_ranks", "lora"): {"rank"},
}


def test_the_two_runs_of_a_pair_differ_in_one_thing():
    compared = set()
    for topic in claims.TOPICS:
        scale = topic.scales["cpu"]
        sources = {"data": "cifar10"} if topic.name == claims.IMAGES else TEXT_SOURCES
        for claim in claims.CLAIMS[topic.name]:
            case = Case("", claim.partitions[0])
            configs = []
            for method in (claim.side[0], claim.rival[0]):
                named = case._replace(method=method)
                configs.append(vars(topic.config(named, scale, sources, scale.rates[method])))
            differing = {name for name in configs[0] if configs[0][name] != configs[1][name]}
            pair = claim.side[0], claim.rival[0]
            if pair in DIFFERING:
                assert differing == DIFFERING[pair]
                compared.add(pair)
            else:
                assert differing <= {"optimizer", "learning_rate"}
    assert compared == set(DIFFERING)


def test_methods_that_stand_for_one_another_differ_in_their_rate_alone():
    scale = claims.IMAGE_SCALES["cpu"]
    for claim in claims.IMAGE_CLAIMS:
        for side in (claim.side, claim.rival):
            rates = [scale.rates[method] for method in side]
            assert rates == sorted(rates)
            configs = set()
            for method in side:
                case = Case(method, "iid")
                configs.add(claims.image_config(case, scale, {"data": "cifar10"}, 0.1))
            assert len(configs) == 1


def test_ranks_go_round_the_nodes():
    assert claims.ranks(16, 5) == "4,8,16,4,8"
    assert claims.ranks(1, 2) == "1,1"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "images.npz")


@pytest.mark.parametrize("method", sweep(claims.IMAGE_METHODS, quick=["two_nodes", "three_snakes"]))
def test_a_run_is_planned_to_pass_all_examples_as_often_as_the_others(method, images):
    scale = claims.IMAGE_SCALES["cpu"]._replace(train_examples=0)
    scale = scale._replace(settings={**scale.settings, "model": "mlp"})
    config = claims.image_config(Case(method, "iid"), scale, {"data": f"npz:{images}"}, 0.1)
    setup = loop.prepare(config)
    rounds = loop.planned(setup)
    passed = 0.0
    for visits in rounds:
        for visit in visits:
            begin, end = visit.share
            passed += end - begin
    assert passed / config.nodes == pytest.approx(scale.cycles[1])
    assert len(rounds) == 6 * config.eval_every


def rows_of(merits, partition="iid", **changes):
    rows = []
    for method, values in merits.items():
        for seed, value in enumerate(values):
            row = {"method": method, "partition": partition, "epochs": 1, "seed": seed}
            row |= {"finished": True, "learning_rate": 0.02, "merit": value, "reached": value / 100}
            rows.append(row | {"train_flops": 1e9, "skipped_visits": 0} | changes)
    return rows


def verdict_of(claim, merits):
    (line,) = tested.told([claim], rows_of(merits))
    return line


def test_a_claim_that_something_costs_little_holds_above_its_margin():
    claim = Claim("costs less than a point", ("a",), ("b",), ("iid",), margin=-1.0)
    b = (40.0, 41.0, 42.0)
    near = verdict_of(claim, {"a": (39.9, 41.0, 41.9), "b": b})
    assert (near.verdict, near.found.seeds) == (HOLDS, 3)
    assert near.found.mean == pytest.approx(-0.2 / 3)
    far = verdict_of(claim, {"a": (37.0, 38.1, 38.9), "b": b})
    assert far.verdict == DOES_NOT_HOLD
    few = verdict_of(claim, {"a": (39.9, 41.0), "b": b})
    assert (few.verdict, few.found.seeds) == (CANNOT_TELL, 2)


def test_a_claim_on_a_share_is_counted_from_that_share_of_the_rival():
    claim = Claim("ends above 95 %", ("a",), ("b",), ("iid",), share=0.95)
    b = (60.0, 61.0, 62.0)
    above = verdict_of(claim, {"a": (59.0, 60.0, 61.1), "b": b})
    assert above.verdict == HOLDS
    assert above.found.mean == pytest.approx(180.1 / 3 - 0.95 * 61)
    below = verdict_of(claim, {"a": (56.0, 57.0, 57.9), "b": b})
    assert below.verdict == DOES_NOT_HOLD


def test_the_best_rate_speaks_for_a_side_and_at_an_edge_it_cannot_tell():
    claim = Claim("a beats b", ("a1", "a2", "a3"), ("b1", "b2", "b3"), ("iid",))
    low, high = (30.0, 31.0, 32.0), (50.0, 51.2, 52.1)
    merits = {"a1": low, "a2": high, "a3": low, "b1": (29.0, 30.0, 31.0)}
    merits |= {"b2": (35.0, 36.0, 37.0), "b3": low}
    inner = verdict_of(claim, merits)
    assert (inner.side, inner.rival, inner.verdict, inner.at_edge) == ("a2", "b2", HOLDS, ())
    rival_at_edge = verdict_of(claim, merits | {"b3": (40.0, 41.0, 42.0)})
    assert (rival_at_edge.verdict, rival_at_edge.at_edge) == (CANNOT_TELL, ("b3",))

    # Neither does a loss say anything while the side's own rate lies at an edge.
    swapped = claim._replace(side=claim.rival, rival=claim.side)
    assert verdict_of(swapped, merits).verdict == DOES_NOT_HOLD
    own_at_edge = verdict_of(swapped, merits | {"b3": (40.0, 41.0, 42.0)})
    assert (own_at_edge.verdict, own_at_edge.at_edge) == (CANNOT_TELL, ("b3",))


def test_runs_that_are_not_finished_say_nothing():
    claim = Claim("a beats b", ("a",), ("b",), ("iid",))
    rows = [*rows_of({"a": (1.0,)}), *rows_of({"b": (2.0,)}, finished=False)]
    assert tested.told([claim], rows) == []


PAIR = [Case("snake", "iid"), Case("two_nodes", "iid")]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The study with a pair of runs that have ended."""
    place = tmp_path_factory.mktemp("claims")
    topic = claims.IMAGE_TOPIC
    scale = topic.scales["smoke"]._replace(cycles={1: 3})
    folders = place / "runs", place / "results"
    study = Study(topic, "smoke", scale, {"data": "digits"}, *folders, {})
    runs.carry_out(study, PAIR, Clock(0), lambda line: None)
    return study


def test_a_pair_that_ran_is_told_and_drawn_and_the_others_are_missing(ran):
    study, topic = ran, ran.topic
    files = figures.write(study, claims.IMAGES)
    assert [file.name for file in files] == ["claims.png", "claims.md", "claims.json"]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    found = json.loads(files[2].read_text())
    one, other = found["rows"]
    (line,) = found["claims"]
    assert (line["side"], line["rival"], line["partition"]) == ("two_nodes", "snake", "iid")
    assert line["mean"] == pytest.approx(other["merit"] - one["merit"])
    assert (line["seeds"], line["verdict"]) == (1, CANNOT_TELL)
    assert len(found["missing"]) == len(topic.of_figure(topic.name, study.scale)) - 2
    text = files[1].read_text()
    assert text.startswith("# Claims that no figure tests, on images\n")
    assert "| IID | two nodes a visit against Snake | " in text

    # A single node at a time takes as many steps as two side by side.
    assert one["iterations"] == pytest.approx(other["iterations"], rel=0.1)


def test_kept_runs_of_the_same_flags_are_taken_and_no_others(ran, tmp_path):
    images = write_images(tmp_path / "images.npz")
    results = tmp_path / "results"
    runs.keep(ran._replace(results=results), PAIR)

    elsewhere = ran._replace(workdir=tmp_path / "runs", results=results)
    other = elsewhere._replace(scale=ran.scale._replace(cycles={1: 4}))
    assert runs.take_kept(other, PAIR) == 0
    assert runs.take_kept(elsewhere._replace(sources={"data": f"npz:{images}"}), PAIR) == 0
    assert not elsewhere.finished(PAIR[0])
    assert runs.take_kept(elsewhere, [PAIR[0], Case("falling", "iid")]) == 1
    assert [elsewhere.finished(case) for case in PAIR] == [True, False]
    assert elsewhere.read(PAIR[0]).metrics == ran.read(PAIR[0]).metrics
    assert runs.take_kept(elsewhere, PAIR) == 1
    said = []
    runs.carry_out(elsewhere, PAIR, Clock(0), said.append)
    assert said == ["2 of 2 runs were finished before"]


def test_a_run_that_another_process_has_is_waited_for_and_taken_over_where_it_stops(ran, tmp_path):
    study = ran._replace(workdir=tmp_path)
    first, second = PAIR
    other = contextlib.ExitStack()
    study.folder(first).mkdir()
    other.enter_context(storage.locked(study.folder(first)))
    said = []

    def say(line):
        said.append(line)
        # The other process is killed once this one has ended what is left.
        if line.startswith(f"  {study.name(second)}: "):
            other.close()

    runs.carry_out(study, PAIR, Clock(0), say)
    begun = [line.split(": ")[1].split(";")[0] for line in said if line.startswith("run ")]
    assert begun == [study.name(second), study.name(first)]
    assert all(study.finished(case) for case in PAIR)


def test_a_study_given_more_passes_goes_on_with_the_runs_that_have_ended(tmp_path):
    topic, case = convergence.TOPIC, Case("fedavg", "iid")
    scale = topic.scales["smoke"]._replace(cycles={1: 2})
    short = Study(topic, "smoke", scale, {"data": "digits"}, tmp_path, tmp_path, {})
    runs.carry_out(short, [case], Clock(0), lambda line: None)
    before = short.read(case).metrics
    assert short.finished(case)

    longer = short._replace(scale=scale._replace(cycles={1: 3}))
    assert not longer.finished(case)
    runs.carry_out(longer, [case], Clock(0), lambda line: None)
    assert longer.finished(case)
    assert longer.read(case).metrics[:2] == before
    assert len(longer.read(case).metrics) == 3


def test_a_kept_run_is_taken_under_the_public_name_of_its_data(tmp_path):
    images = write_images(tmp_path / "images.npz")
    topic = claims.IMAGE_TOPIC
    scale = topic.scales["smoke"]._replace(cycles={1: 3}, train_examples=0)
    folders = tmp_path / "runs", tmp_path / "results"
    study = Study(topic, "smoke", scale, {"data": f"npz:{images}"}, *folders, {})
    runs.carry_out(study, PAIR[:1], Clock(0), lambda line: None)
    runs.keep(study, PAIR[:1])
    assert str(images) not in (tmp_path / "results" / "runs.jsonl.gz").read_bytes().decode("latin1")
    elsewhere = study._replace(workdir=tmp_path / "elsewhere")
    assert runs.take_kept(elsewhere, PAIR[:1]) == 1
    assert elsewhere.finished(PAIR[0])


def test_a_kept_run_of_a_program_without_a_flag_had_its_default(tmp_path):
    topic = claims.IMAGE_TOPIC
    scale = topic.scales["smoke"]._replace(cycles={1: 3})
    folders = tmp_path / "runs", tmp_path / "results"
    study = Study(topic, "smoke", scale, {"data": "digits"}, *folders, {})
    runs.carry_out(study, PAIR[:1], Clock(0), lambda line: None)
    runs.keep(study, PAIR[:1])
    file = study.results / kept.FILE
    line = json.loads(kept.read_lines(file)[0])
    del line["config"]["pixel_mean"]
    kept.write_lines(file, [json.dumps(line)])
    elsewhere = study._replace(workdir=tmp_path / "elsewhere")
    assert runs.take_kept(elsewhere, PAIR[:1]) == 1
    assert elsewhere.finished(PAIR[0])

    # One that had another value than today's is another run.
    line["config"]["pixel_std"] = "0.5"
    kept.write_lines(file, [json.dumps(line)])
    assert runs.take_kept(study._replace(workdir=tmp_path / "third"), PAIR[:1]) == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_claims_from_one_launch(tmp_path):
    flags = ("--figure=claims,claims_text", "--scale=smoke", f"--results={tmp_path / 'results'}")
    flags += (f"--workdir={tmp_path / 'runs'}",)
    ((code, out, errors), again, redrawn) = launch(flags, flags, [*flags, "--redraw"])
    assert (code, errors) == (0, "")
    assert "run 1 of 25: " in out
    assert "25 of 25 runs were finished before" in again[1]
    assert redrawn[0] == 0
    for topic in claims.TOPICS:
        folder = tmp_path / f"results/smoke_{topic.name}"
        found = json.loads((folder / f"{topic.name}.json").read_text())
        assert found["missing"] == []
        pairs = sum(len(claim.partitions) for claim in claims.CLAIMS[topic.name])
        assert len(found["claims"]) == pairs
        assert {line["verdict"] for line in found["claims"]} == {CANNOT_TELL}
        text = (folder / f"{topic.name}.md").read_text()
        for method in topic.methods.values():
            assert f"| {method.label}" in text
