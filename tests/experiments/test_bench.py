"""Benchmarks: rows and tables, what is a regression, and that contestants do the same work."""

import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.bench import (
    compile,
    document,
    finetune,
    llama,
    memory,
    results,
    rounds_memory,
    rows,
    scct,
    start,
    step,
    table,
    vgg,
    visit,
)
from experiments.bench.rows import HIGHER, LOWER, SUITES, Request, Row
from snake_jax.costs.memory import state_bytes
from snake_jax.costs.timing import Sample
from snake_jax.errors import UserError
from snake_jax.report.stages import Stage
from snake_jax.training.text_step import own_items
from tests.launches import ROOT, strict_json

QUIET = Request(1, True, sys.executable, sys.executable, 1, lambda _: None)
MACHINE = {
    "processor": "P",
    "cores": 2,
    "architecture": "A",
    "backend": "cpu",
    "jax": "1",
    "load_1min": 0.1,
}


@pytest.fixture
def _quick_compilation():
    """The compiler without its optimisations: this is about values."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def benchmark(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "experiments.bench", *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},  # this is not about speed
        capture_output=True,
        text=True,
    )


def row(value: float = 1.0, **changes) -> Row:
    return Row("T", "s", "n", value)._replace(**({"better": LOWER, "repeats": 5} | changes))


def result(*found: Row, **machine) -> dict:
    return {
        "suite": "s",
        "quick": False,
        "machine": MACHINE | machine,
        "peers": {"torch": "2"},
        "rows": list(found),
    }


@pytest.mark.parametrize(
    ("before", "now", "regressed"),
    [
        (row(1.0), row(1.0001), True),  # counted: nothing explains it
        (row(1.0), row(0.9), False),
        (row(1.0, spread=0.1), row(1.19, spread=0.1), False),
        (row(1.0, spread=0.1), row(1.21, spread=0.1), True),
        (row(3.0, better=HIGHER, spread=0.1), row(2.95, better=HIGHER), False),
        (row(3.0, better=HIGHER, spread=0.1), row(2.85, better=HIGHER), True),
        (row(3.0, better=HIGHER), row(4.0, better=HIGHER), False),
        (row(1.0, better=""), row(9.0, better=""), False),
        (row(1.0, name="another"), row(9.0), False),
    ],
)
def test_a_regression_is_worse_by_more_than_both_spreads(before, now, regressed):
    assert [change.row for change in results.regressions(result(now), result(before))] == (
        [now] if regressed else []
    )


def test_what_cannot_be_compared_is_said():
    now = result(row(9.0))
    assert results.comparison(now, None) == (["no committed result to compare with"], [])
    ((line,), found) = results.comparison(now, result(row(1.0), processor="Q"))
    assert (line, found) == (
        "not compared: the committed result is of another machine (Q, 2, A, cpu)",
        [],
    )
    ((line,), found) = results.comparison(now, result(row(1.0)) | {"quick": True})
    assert (line, found) == ("not compared: the committed result is of other sizes", [])


def test_a_comparison_names_versions_missing_rows_and_regressions():
    before = result(row(1.0), row(1.0, subject="gone"), jax="0", load_1min=3.0)
    lines, found = results.comparison(result(row(2.0)), before)
    assert lines == [
        "machine.jax was 0 when committed",
        "not measured now: gone: n",
        "REGRESSION T, s, n: 1 before, 2 now, 0 is spread",
    ]
    assert len(found) == 1
    assert results.comparison(before, before) == (["no regression"], [])


def test_a_result_comes_back_from_its_file(tmp_path):
    made = result(row(1.5, spread=0.2, limit=2.0), row(2.0, better=HIGHER))
    file = results.write(tmp_path / "new", made)
    assert file == tmp_path / "new" / "s.json"
    assert results.read(file) == made
    strict_json(file.read_text())


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": [{"table": "T"}]}'])
def test_a_broken_result_is_one_line_with_the_way_out(tmp_path, text):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(UserError, match=r"s\.json: no result of a benchmark .*--update"):
        results.read(tmp_path / "s.json")


def test_load_that_all_feel_cancels_in_paired_ratios():
    load = [1.0, 5.0, 2.0]
    ours = [Sample(3.0 * x, 0.0) for x in load]
    base = [Sample(2.0 * x, 0.0) for x in load]
    assert rows.paired(ours, base, scale=0.5) == pytest.approx([0.75] * 3)
    assert rows.measured("T", "s", "n", rows.paired(ours, base)).spread == pytest.approx(0)
    assert rows.walls_ms(base, steps=4) == [500.0, 2500.0, 1000.0]


TABLED = [
    row(12345.6, subject="a", name="time", unit="ms", better="", spread=7.5),
    row(0.5, subject="b", name="ratio", limit=1.0),
    row(1.25, subject="a", name="ratio", limit=1.0),
    row(3.5, subject="a", name="gain", limit=3.0, better=HIGHER),
]


def test_rows_are_a_table_and_goals():
    assert table.markdown(TABLED) == (
        "T:\n\n"
        "|  | time, ms | ratio | gain |\n"
        "| :-- | --: | --: | --: |\n"
        "| a | 12,346 (7.5) | 1.25 | 3.5 |\n"
        "| b |  | 0.5 |  |\n\n"
        "- ratio, at most 1: missed by a (1.25); 1 of 2\n"
        "- gain, at least 3: met; 1 of 1"
    )
    lines = table.text(TABLED).splitlines()
    assert lines[0] == "T"
    assert lines[1].split("  ")[-1] == "gain"
    assert len({len(line) for line in lines[1:4]}) == 1


def test_the_page_holds_every_committed_result():
    page = document.PAGE.read_text()
    assert document.filled(page) == page
    blocks = re.findall(r"<!-- bench (\w+): begin -->", page)
    assert sorted(blocks) == sorted([*SUITES, document.LIMITS])


def test_an_unmeasured_suite_says_how_to_measure_it(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "COMMITTED", tmp_path)
    page = "a\n<!-- bench step: begin -->\nold\n<!-- bench step: end -->\nb\n"
    text = "Not measured yet: `python -m experiments.bench step --update`."
    assert document.filled(page) == page.replace("old", f"\n{text}\n")


@pytest.mark.parametrize("suite", SUITES)
def test_committed_results_say_how_they_were_made(suite):
    file = results.COMMITTED / f"{suite}.json"
    if not file.exists():
        pytest.skip("not measured yet")
    found = results.read(file)
    assert found["command"].startswith(f"python -m experiments.bench {suite}")
    assert (found["suite"], found["quick"]) == (suite, False)
    assert "/" not in found["command"].replace("_VENV/bin/python", "")
    assert found["rows"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["steps"],
            "error: steps: not one of step, visit, memory, rounds_memory, conv, round, many, "
            "emulation, finetune, hops, nodes, scct, compile, start, all",
        ),
        ([], "error: say which: step, visit"),
        (
            ["step", "--quick", "--update"],
            "--update --quick: the smallest sizes are not to be committed",
        ),
        (["step", "--repeats=-1"], "flag --repeats=-1"),
    ],
)
def test_wrong_input_is_one_line(arguments, said):
    done = benchmark(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_suites_run_apart_and_write_their_files(tmp_path):
    done = benchmark("visit", "memory", "--quick", "--repeats=1", f"--output={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert {file.name for file in tmp_path.iterdir()} == {"visit.json", "memory.json"}
    found = json.loads((tmp_path / "memory.json").read_text())
    assert found["command"] == "python -m experiments.bench memory --repeats=1 --quick"
    assert "suite memory" in done.stderr.splitlines()
    assert "Memory of a step, MB" in done.stdout
    assert results.RULE in done.stdout


def test_a_report_names_regressions(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "COMMITTED", tmp_path)
    rest = {"command": "c", "took_s": 1, "notes": ["a note"]}
    results.write(tmp_path, result(row(1.0)) | rest)
    text, (found,) = document.report(result(row(2.0)) | rest)
    assert (found.row.value, found.before) == (2.0, 1.0)
    assert "REGRESSION T, s, n: 1 before, 2 now" in text
    assert "a note" in text
    assert document.report(result(row(1.0)) | rest)[1] == []


class TestVgg:
    @pytest.mark.usefixtures("_quick_compilation")
    def test_a_loop_of_steps_is_as_many_lone_ones(self):
        trained = ("conv1", "fc4", "fc5")
        loop, lone = (
            vgg.Step(vgg.QUICK, trained, steps=4),
            vgg.Step(vgg.QUICK, trained, looped=False),
        )
        losses = [float(lone().loss_sum) for _ in range(4)]
        assert loop().loss_sum == pytest.approx(sum(losses), rel=1e-5)
        assert losses[-1] < losses[0]
        for ours, theirs in zip(
            *(jax.tree.leaves(one.state[0]) for one in (loop, lone)), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())

    @pytest.mark.parametrize(
        "trained",
        [
            ("conv1", "conv2", "conv3", "fc4", "fc5"),
            ("conv1", "conv3", "fc5"),
            ("conv2",),
            ("fc4",),
        ],
    )
    def test_the_compiled_step_has_no_product_that_the_assignment_does_not_need(self, trained):
        names = vgg.QUICK.build(vgg.OURS).layer_names
        lowest = names.index(trained[0])
        products = (
            len(names) + (len(names) - 1 - lowest) + len(trained)
        )  # forward, input gradients, weight gradients
        network = vgg.QUICK._replace(
            batch=8, side=16, width=1.0
        )  # in the smallest, products become plain sums
        text = vgg.Step(network, trained).program.as_text()
        own_convolutions = len(re.findall(r"= \S+ convolution\(", text))
        assert len(re.findall(r"= \S+ dot\(", text)) + own_convolutions == products
        # conv3 has 4x4 pixels left: forward all but conv1, of three channels, are the compiler's
        # own, and the weight gradients of those that train.
        convolutions = [name for name in names if name.startswith("conv")]
        trained_too = [name for name in trained if name in convolutions]
        assert own_convolutions == len(convolutions) - 1 + len(trained_too)

    @pytest.mark.usefixtures("_quick_compilation")
    @pytest.mark.parametrize("trained", [(), ("conv1", "conv3", "fc5"), ("conv2",)])
    @pytest.mark.parametrize("channels_last", [False, True])
    def test_pytorch_trains_the_same_layers_to_the_same_losses(self, trained, channels_last):
        pytest.importorskip("torch")
        from experiments.bench import vgg_torch

        trained = trained or vgg.QUICK.build(vgg.OURS).layer_names
        ours, theirs = (
            vgg.Step(vgg.QUICK, trained, steps=3),
            vgg_torch.step(vgg.QUICK, trained, 1, channels_last),
        )
        losses = [theirs() for _ in range(3)]
        stats = ours()
        assert stats.loss_sum / stats.examples == pytest.approx(np.mean(losses), rel=1e-5)
        assert losses[-1] < losses[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("llama")
    llama.save(llama.QUICK, made)
    return made


class TestLlama:
    @pytest.mark.usefixtures("_quick_compilation")
    @pytest.mark.parametrize("way", ["full", "block 0", "block 1"])
    def test_transformers_trains_the_same_layers_to_the_same_losses(self, folder, way):
        pytest.importorskip("torch")
        from experiments.bench import llama_torch

        ours, theirs = llama.Step(llama.QUICK, way), llama_torch.step(folder, llama.QUICK, way, 1)
        for _ in range(4):
            stats = ours()
            assert stats.loss_sum / stats.examples == pytest.approx(theirs(), rel=1e-5)

    @pytest.mark.usefixtures("_quick_compilation")
    def test_ways_train_what_they_say(self):
        names = {
            "full": {"embed", "head", "block_0", "block_1"},
            "block 1": {"block_0"},
            "LoRA": {"block_0", "block_1"},
        }
        for way, roles in names.items():
            made = llama.Step(llama.QUICK, way)
            assert set(made.state[0]) == roles
            before = jax.device_get(made.state[0])
            made()
            changed = jax.tree.map(
                lambda a, b: not np.array_equal(a, b), before, jax.device_get(made.state[0])
            )
            assert any(jax.tree.leaves(changed))

    def test_a_block_costs_less_than_all_and_the_more_the_lower_it_is(self):
        flops = [llama.flops(llama.QUICK, way) for way in ("block 1", "block 0", "full")]
        assert flops == sorted(set(flops))


def test_a_case_has_its_ratios_and_goals():
    full = step.TimedStep("full", lambda: None, 300)
    part = step.TimedStep("part", lambda: None, 150, peer=lambda: None)
    product = step.Product(lambda: None, 10)
    found = {r.name: r for r in step.case_rows("T", part, full, product, 3, greatest_off=0.1)}
    assert found["FLOPs / full"].value == 0.5
    assert found["time off FLOPs"].value >= 0
    assert (found["time off FLOPs"].limit, found["ours / PyTorch"].limit) == (0.1, 1.0)
    assert {r.name for r in step.case_rows("T", full, full, product, 1)} == {
        "ours",
        "ours / product",
    }


@pytest.mark.usefixtures("_quick_compilation")
def test_a_visit_trains_on_as_many_batches_as_the_bare_steps():
    trained = ("conv1", "conv2", "fc5")
    assert vgg.Step(vgg.QUICK, trained, visit.BATCHES)().examples == visit.BATCHES * vgg.QUICK.batch
    assert set(visit.vision_visit(vgg.QUICK, trained)()) == set(trained)
    items = own_items(llama.model_of(llama.QUICK), False)
    assert set(visit.language_visit(llama.QUICK)()) == {items[1]}


@pytest.mark.usefixtures("_quick_compilation")
def test_what_is_done_around_a_visit_is_timed_beside_its_training():
    seconds = visit.around(visit.QUICK_DEMO, left_out=1)
    # Two middle layers a cycle, two cycles, without the first visit.
    assert {len(values) for values in seconds.values()} == {3}
    assert min(min(values) for values in seconds.values()) > 0
    made = {"training": [2.0, 4.0], "evaluation": [1.0, 1.0], "checkpoint": [1.0, 5.0]}
    found = {(one.subject, one.name): one for one in visit.around_rows(made)}
    assert found["all around it", "over training"].value == 1.25
    assert found["evaluation", "over training"].met
    assert found["checkpoint", "a visit"].value == 3000
    assert ("training", "over training") not in found


@pytest.mark.slow
def test_memory_of_a_part_is_less_than_of_all():
    found = {(r.subject, r.name): r.value for r in memory.run(QUIET).rows}
    for network, part in (("VGG-11", "conv3"), ("Llama", "block 1"), ("Llama", "LoRA")):
        for name in ("state", "arguments", "compiled peak"):
            assert found[f"{network}, {part}", name] < found[f"{network}, full", name]
    names = vgg.QUICK.build(vgg.OURS).layer_names
    state = state_bytes(vgg.local_step(vgg.QUICK), names)
    assert found["VGG-11, full", "state"] == pytest.approx(state.total / 1e6)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_process_grows_by_what_a_call_takes():
    size = 64 * 2**20
    grown = memory.grown_bytes(lambda: np.ones(size, np.uint8))
    assert grown is None or size - 2**20 < grown < 1.5 * size  # the kernel counts in lots of pages


@pytest.mark.slow
def test_rounds_are_measured_in_processes_of_their_own_for_each_number_of_nodes():
    found = rounds_memory.run(QUIET)
    grown = {(r.subject, r.name): r for r in found.rows}
    for nodes in rounds_memory.QUICK.nodes:
        for kind in rounds_memory.MOMENTUM:
            value = grown[f"{nodes} nodes", kind]
            assert (value.unit, value.repeats) == ("MB", QUIET.repeats)
            assert value.value >= 0
            in_models = grown[f"{nodes} nodes", f"{kind}, in models"]
            # 64 inputs, three times 64 units, ten classes; weights and biases in float32.
            model_bytes = 4 * (3 * (64 * 64 + 64) + 64 * 10 + 10)
            assert in_models.value == pytest.approx(1e6 * value.value / model_bytes)
    assert f"mlp of {model_bytes / 1e6:.1f} MB" in found.notes[0]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
@pytest.mark.slow
def test_a_round_of_a_large_model_is_seen_to_take_at_least_its_result(tmp_path):
    file = tmp_path / "noise.npz"
    rounds_memory.write_noise(file, 10)
    asked = rounds_memory.Asked(str(file), 2, 16.0, 5, 0.9, rounds=1)
    told = rounds_memory.in_own_process(asked)
    assert told.model_bytes == 4 * (64 * 1024 + 2 * 1024**2 + 3 * 1024 + 1024 * 10 + 10)
    assert told.grown_bytes[0] > told.model_bytes  # the mean is new, beside what began the round


def test_the_ratio_to_the_fewest_nodes_has_a_goal():
    fewest: dict[str, float] = {}
    rows = rounds_memory._rows("momentum", 16, rounds_memory.Told(10, [40, 20]), fewest)
    assert [r.name for r in rows] == ["momentum", "momentum, in models"]
    *_, ratio = rounds_memory._rows("momentum", 48, rounds_memory.Told(10, [60]), fewest)
    assert ratio.name == "momentum, over the fewest nodes"
    assert ratio.value == pytest.approx(2)
    assert (ratio.limit, ratio.met) == (rounds_memory.FLAT, False)


def test_a_round_that_fails_says_why(tmp_path):
    asked = rounds_memory.Asked(str(tmp_path / "missing.npz"), 2, 1.0, 4, 0.0, 1)
    with pytest.raises(RuntimeError, match=r"2 nodes: .*missing\.npz"):
        rounds_memory.in_own_process(asked)


def test_losses_are_apart_by_what_training_lowered_them_by():
    reference = [4.0, 3.5, 3.0]
    assert finetune.difference(reference, reference) == 0
    assert finetune.difference([4.0, 3.6, 3.0], reference) == pytest.approx(0.1)


def test_a_turn_takes_every_row_once_and_each_turn_in_its_own_order():
    turns = [finetune.tokens(llama.QUICK, turn) for turn in range(2)]
    assert turns[0].shape == (finetune.STEPS, llama.QUICK.batch, llama.QUICK.length)
    flat = [turn.reshape(-1, llama.QUICK.length) for turn in turns]
    assert sorted(map(tuple, flat[0])) == sorted(map(tuple, flat[1]))
    assert not np.array_equal(*flat)


@pytest.mark.slow
def test_fine_tuning_in_pytorch_ends_with_our_losses():
    pytest.importorskip("torch")
    found = finetune.run(
        QUIET._replace(repeats=2)
    )  # it compares them, and raises where they differ
    assert found.peers["PyTorch, requires_grad off"].startswith("torch ")
    assert {r.subject for r in found.rows} >= {"snake_jax", "PyTorch, requires_grad off"}


def test_scct_compares_the_compiled_search_with_numpy_on_the_same_problem():
    found = scct.run(QUIET)
    subjects = list(dict.fromkeys(row.subject for row in found.rows))
    assert subjects == [
        "6 layers on each device",
        "1 layer on each device",
        "as many layers as fit",
    ]
    for subject in subjects:
        numpy, ours, ratio, cpu, worst = (row for row in found.rows if row.subject == subject)
        assert (numpy.unit, ours.unit, ratio.unit) == ("ms", "ms", "")
        assert (ratio.better, ratio.limit) == (HIGHER, scct.FASTER)
        assert (cpu.better, cpu.limit) == (HIGHER, None)
        assert worst.met


def test_scct_takes_no_time_of_answers_that_differ(monkeypatch):
    wrong = scct.reference.BestAllocation(1.0, np.ones(3, int))
    monkeypatch.setattr(scct.reference, "exact", lambda problem: wrong)
    with pytest.raises(RuntimeError, match="6 layers on each device: the two differ by"):
        scct.run(QUIET)


def test_compile_takes_apart_tracing_compiling_and_reading():
    found = compile.run(QUIET)
    assert {row.name for row in found.rows} == {
        "trace",
        "compile",
        "read",
        "compile, clock",
        "fusions",
    }
    subjects = [row.subject for row in found.rows if row.name == "fusions"]
    assert subjects[-1] == "evaluation"
    assert len(subjects) >= 2
    assert all(row.value > 0 for row in found.rows if row.name in ("trace", "compile"))


def test_start_adds_up_the_stages_of_launches(monkeypatch):
    def launched(words, folder, name):
        seconds = 3.0 if name == "first" else 1.0
        return [
            Stage("imports", seconds, 1.0, 0.5, "jax"),
            Stage("first round", 2.0, 1.0, 0.25, "a copy"),
            Stage("closing", 4.0, 1.0, 0.0, "nothing"),
        ]

    def demo_s(folder):
        return [1.0, 2.0, 4.0]

    monkeypatch.setattr(start, "_launched", launched)
    monkeypatch.setattr(start, "_demo_s", demo_s)
    monkeypatch.setattr(start, "_write_byte_code", lambda: None)
    found = {row.key: row.value for row in start.run(QUIET).rows}
    assert found["classify, first launch", "all", "clock"] == 5.0
    assert found["classify, programs kept", "all", "clock"] == 3.0
    assert found["classify, programs kept", "all", "floor"] == 0.75
    assert found["classify, first launch", "imports", "cores"] == 1.0
    assert found["classify, first launch", "process", "clock"] == 9.0
    assert found["make demo", "all three", "first, programs not kept"] == 7.0
    assert found["make demo", "compare", "second, programs kept"] == 4.0


def test_the_demo_that_is_timed_is_the_makefile_s():
    lines = (ROOT / "Makefile").read_text().replace("$(RUNS)", "RUNS").splitlines()
    begun = lines.index(next(line for line in lines if line.startswith("demo:")))
    _, *typed = lines[begun + 1 : begun + 5]
    program = "\t$(BIN)/snake-jax "
    assert [line.removeprefix(program).split() for line in typed] == [
        [word.replace("{folder}", "RUNS") for word in command] for command in start.DEMO.values()
    ]
    assert f"IMPORTED := {start.BYTE_CODE}" in lines
