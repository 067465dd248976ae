"""Reports of fine-tuning runs: perplexity leads where it was measured, and less of it is better."""

import json
import math

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from snake_jax.errors import UserError
from snake_jax.report.figures import band, panels_of
from snake_jax.report.merits import ACCURACY, PERPLEXITY
from snake_jax.report.progress import progress_text
from snake_jax.report.runs import (
    best,
    common_merit,
    cost_to_reach,
    curve,
    curve_from_start,
    final,
    merit_of,
    read_run,
    read_runs,
)
from snake_jax.report.spread import spread, spread_table
from snake_jax.report.table import comparison_table, headline
from snake_jax.report.tensorboard import tensorboard
from snake_jax.report.units import short, significant
from tests.run_folders import (
    image_line,
    language_line,
    language_summary,
    write_language_fedavg,
    write_language_snake,
    write_run,
)


@pytest.fixture
def pair(tmp_path):
    """A finished snake with adapters and a finished fedavg of the whole model."""
    return read_runs(
        [write_language_snake(tmp_path / "snake"), write_language_fedavg(tmp_path / "fedavg")]
    )


def run_of(path, perplexities, **changes):
    return read_run(
        write_run(path, [language_line(i, p) for i, p in enumerate(perplexities)], **changes)
    )


def images(path):
    return read_run(write_run(path, [image_line(visit) for visit in range(4)]))


def test_the_lines_say_what_a_run_is_measured_by(tmp_path, pair):
    assert merit_of(pair[0]) == PERPLEXITY
    assert merit_of(run_of(tmp_path / "not evaluated yet", [None])) == PERPLEXITY
    assert merit_of(images(tmp_path / "images")) == ACCURACY


def test_runs_of_both_kinds_have_no_common_measure(tmp_path, pair):
    with pytest.raises(
        UserError, match="snake is measured by its perplexity and images by its accuracy"
    ) as error:
        common_merit([*pair, images(tmp_path / "images")])
    assert "\n" not in str(error.value)


def test_less_perplexity_is_better(tmp_path):
    run = run_of(tmp_path / "run", [9.0, None, 7.0, 7.5])
    assert (final(run), best(run)) == (7.5, 7.0)
    assert [cost_to_reach(run, target, "tokens") for target in (9.0, 7.2, 6.0)] == [
        60_000,
        180_000,
        None,
    ]


def test_the_summary_s_numbers_are_the_finished_model_s(tmp_path):
    summary = {"perplexity_after": 5.0, "best_perplexity": 4.0}
    run = run_of(tmp_path / "run", [9.0], summary=summary)
    assert (final(run), best(run)) == (5.0, 4.0)


def test_nothing_evaluated(tmp_path):
    run = run_of(tmp_path / "run", [None])
    assert (final(run), best(run), cost_to_reach(run, 9.0, "bytes")) == (None, None, None)
    assert headline(run, run) == "run against run: the same training FLOPs, the same bytes sent"


def test_curves_begin_with_the_model_before_training(pair, tmp_path):
    x, y = curve_from_start(pair[1], "tokens")
    np.testing.assert_array_equal(x, [0, 1_440_000, 2_880_000, 4_320_000])
    np.testing.assert_array_equal(y, [18.0, 9.0, 7.5, 7.0])
    going = run_of(tmp_path / "going", [9.0])
    np.testing.assert_array_equal(curve_from_start(going, "tokens")[0], [60_000])
    np.testing.assert_array_equal(curve(pair[1], "examples")[0], [2880, 5760, 8640])


def test_tokens_are_an_axis_of_language_runs_alone(tmp_path):
    with pytest.raises(UserError, match="axis tokens: not one of iterations"):
        curve(images(tmp_path / "run"), "tokens")


def test_a_band_begins_with_the_model_before_training_where_all_seeds_have_it(tmp_path, pair):
    other = write_language_fedavg(tmp_path / "other", (11.0, 8.5))
    found = band([pair[1], read_run(other)], "iterations_per_node")
    np.testing.assert_array_equal(found.x, [0, 20, 40])
    np.testing.assert_array_equal(found.mean, [18.0, 10.0, 8.0])
    (other / "summary.json").unlink()
    np.testing.assert_array_equal(band([pair[1], read_run(other)], "tokens").low, [9.0, 7.5])
    kinds = (images(tmp_path / "images"), pair[1])
    assert [list(panels_of(run))[1:] for run in kinds] == [
        ["examples", "bytes", "flops"],
        ["bytes", "flops", "seconds"],
    ]


def test_headline(pair):
    assert headline(*pair) == (
        "snake against fedavg: final perplexity 6.33 against 7.00 (0.90x), the same training "
        "FLOPs, "
        "90.0 % less memory at a node, 99.3 % fewer bytes sent"
    )


def cells(table, label):
    (line,) = [line for line in table.splitlines() if line.strip().startswith(f"{label} ")]
    return line.strip().removeprefix(label).split()


def test_text_table(pair):
    table = comparison_table(pair)
    assert table.splitlines()[0] == headline(*pair)
    assert table.splitlines()[3] == "Perplexity on held-out text"
    assert cells(table, "before training") == ["18.0", "18.0", "1.00x"]
    assert cells(table, "final") == ["6.33", "7.00", "1.11x"]
    assert cells(table, "best") == ["6.33", "7.00", "1.11x"]
    assert cells(table, "trainable parameters") == ["4,718,592", "1,315,758,080", "278.85x"]
    assert cells(table, "state at a node") == ["1.45", "GB", "21.0", "GB", "14.48x"]
    assert cells(table, "with a loss") == ["1,728,000", "1,728,000", "1.00x"]
    assert cells(table, "a second of training") == ["4,000", "4,000", "1.00x"]
    assert cells(table, "lora_rank") == ["128", "0"]
    assert cells(table, "data") == ["Dahoas/rm-static", "Dahoas/rm-static"]
    assert "alpha" not in table
    assert "dataset" not in table


def test_cost_to_reach_a_perplexity(pair):
    table = comparison_table(pair)
    reached = table.split("Cost to reach perplexity 8.00\n")[1].splitlines()
    assert [line.split() for line in reached[:2]] == [
        ["iterations", "720", "960", "1.33x"],
        ["tokens", "2,160,000", "2,880,000", "1.33x"],
    ]


def test_a_target_of_nothing_is_none(tmp_path):
    run = run_of(tmp_path / "run", [9.0], config={"target_perplexity": 0.0})
    assert "Cost to reach" not in comparison_table([run])


def test_json_and_markdown_tables(pair):
    snake, fedavg = json.loads(comparison_table(pair, "json"))["runs"]
    assert (snake["perplexity_before"], fedavg["perplexity_after"], fedavg["tokens"]) == (
        18.0,
        7.0,
        4_320_000,
    )
    assert (snake["tokens_to_target"], snake["model"]) == (2_160_000, "facebook/opt-1.3b")
    rows = [
        line for line in comparison_table(pair, "markdown").splitlines() if line.startswith("|")
    ]
    assert {row.count("|") for row in rows} == {5}


@pytest.mark.parametrize("make", [comparison_table, lambda runs: headline(*runs), spread])
def test_a_mixed_comparison_is_refused(pair, tmp_path, make):
    with pytest.raises(UserError, match="they have no common measure"):
        make([pair[0], images(tmp_path / "images")])


def test_spread_over_seeds(pair, tmp_path):
    lines = [language_line(0, 12.0)]
    other = read_run(
        write_run(
            tmp_path / "seed", lines, summary=language_summary(lines, perplexity_after=8.0, seed=1)
        )
    )
    found = spread([pair[1], other])
    assert found["seeds"] == [0, 1]
    assert found["fields"]["perplexity_after"] == {
        "mean": 7.5,
        "std": math.sqrt(0.5),
        "values": [7.0, 8.0],
    }
    assert found["fields"]["tokens"]["values"] == [4_320_000, 60_000]
    assert "final_accuracy" not in found["fields"]
    table = spread_table(found)
    assert cells(table, "divergence") == ["0.250", "0.000", "0.250", "0.250"]
    assert cells(table, "perplexity_after") == ["7.50", "0.707", "7.00", "8.00"]
    assert len({len(line) for line in table.splitlines()}) == 1, "columns line up"


def test_progress():
    line = language_line(3, 12.345)
    assert (
        progress_text(line) == "loss 2.661  perplexity 12.3  node 3  block_03.lora  4,000 tokens/s"
    )
    unmeasured = line | {"perplexity": None, "tokens_per_s": None}
    assert progress_text(unmeasured) == "loss 2.661  node 3  block_03.lora", (
        "no accuracy in the place of perplexity"
    )


def test_tensorboard_has_perplexity_and_tokens(tmp_path):
    with tensorboard(tmp_path) as write:
        write(language_line(0))
        write(language_line(1, 12.0))
    (path,) = tmp_path.glob("events.*")
    data, found = path.read_bytes(), {}
    while data:  # length, checksum, message, checksum, and so on
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        found |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
        data = data[16 + length :]
    assert found[40, "perplexity"] == 12.0
    assert (20, "perplexity") not in found, "null is not drawn"
    assert (found[20, "tokens"], found[20, "tokens_per_s"], found[20, "target_tokens"]) == (
        60_000,
        4_000,
        24_000,
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [(12.345, "12.3"), (9.999, "10.0"), (99.96, "100"), (1234.6, "1,235"), (0.012, "0.0120")],
)
def test_significant(value, shown):
    assert significant(value) == shown


def test_short_names():
    assert short("/data/llama/") == "llama"
    assert short("a/b.jsonl,pydoc") == "b.jsonl,pydoc"
