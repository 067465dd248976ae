"""Reading runs, units, tables and pictures, from run folders written by hand."""

import itertools
import json

import matplotlib
import matplotlib.image
import numpy as np
import pytest

from snake_jax.errors import UserError
from snake_jax.report.plots import layer_order, plot_curves, plot_run
from snake_jax.report.runs import AXES, cost_to_reach, cumulative, curve, read_run, read_runs
from snake_jax.report.table import comparison_table, headline
from snake_jax.report.units import Scale, clock, human, scale_for
from tests.run_folders import image_line


@pytest.fixture
def folder(tmp_path):
    """`folder(name, records, summary, config)` writes a run folder and gives its path."""

    def write(name, records=None, summary=None, config=None):
        path = tmp_path / name
        path.mkdir(parents=True)
        records = [image_line(visit) for visit in range(4)] if records is None else records
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
        (path / "config.json").write_text(
            json.dumps({"algorithm": "snake", "target_accuracy": 0.55} | (config or {}))
        )
        if summary is not None:
            (path / "summary.json").write_text(json.dumps(summary))
        return path

    return write


def test_curve_adds_up_and_leaves_out_what_was_not_measured(folder):
    run = read_run(folder("run"))
    x, y = curve(run, "bytes")
    np.testing.assert_array_equal(x, [4000, 12000, 16000])
    np.testing.assert_array_equal(y, [0.2, 0.6, 0.5])
    np.testing.assert_array_equal(cumulative(run, "train_s"), [0.5, 1.0, 1.5, 2.0])
    assert {axis: curve(run, axis)[0][-1] for axis in AXES} == {
        "iterations": 40,
        "examples": 1280,
        "bytes": 16000,
        "flops": 8e9,
        "seconds": 2.0,
    }


def test_an_unknown_axis_lists_the_known(folder):
    with pytest.raises(UserError, match="axis joules: not one of iterations, examples, bytes"):
        curve(read_run(folder("run")), "joules")


def test_cost_to_reach(folder):
    run = read_run(folder("run"))
    assert cost_to_reach(run, 0.6, "iterations") == 30
    assert cost_to_reach(run, 0.61, "iterations") is None


def test_a_line_being_written_is_left_out(folder):
    path = folder("run")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"visit": 4, "cyc')
    assert len(read_run(path).metrics) == 4


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda path: (path / "metrics.jsonl").write_text('{"visit": 0}\n{"vis\n{"visit": 2}\n'),
            "metrics.jsonl, line 2",
        ),
        (lambda path: (path / "metrics.jsonl").write_text("3\n"), "line 1: a JSON object"),
        (lambda path: (path / "metrics.jsonl").unlink(), "nothing measured"),
        (lambda path: (path / "summary.json").write_text("{"), "summary.json: broken JSON"),
    ],
)
def test_a_damaged_folder_is_named(folder, damage, message):
    path = folder("run")
    damage(path)
    with pytest.raises(UserError, match=message) as error:
        read_run(path)
    assert "\n" not in str(error.value)


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="absent: no such folder"):
        read_run(tmp_path / "absent")


def test_names_tell_runs_apart(folder):
    paths = [folder("a/snake"), folder("b/snake"), folder("b/fedavg")]
    assert [run.name for run in read_runs(paths)] == ["a/snake", "b/snake", "b/fedavg"]
    assert [run.name for run in read_runs(paths[1:])] == ["snake", "fedavg"]
    with pytest.raises(UserError, match="the same run twice"):
        read_runs([paths[0], paths[0]])


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (123_456_789, "B", "123 MB"),
        (999_999, "B", "1.00 MB"),
        (7.36e9, "FLOP", "7.36 GFLOP"),
        (0, "B", "0 B"),
        (42.0, "s", "42.0 s"),
        (600, "s", "10.0 min"),
        (9_750_922, "", "9,750,922"),
        (0.5, "", "0.50"),
    ],
)
def test_human(value, unit, shown):
    assert human(value, unit) == shown


def test_scale_and_clock():
    assert scale_for(0.0, "B") == Scale(1.0, "B")
    assert scale_for(3e12, "FLOP") == Scale(1e12, "TFLOP")
    assert scale_for(7200, "s") == Scale(3600, "h")
    assert (clock(5), clock(95.4), clock(4000)) == ("0:05", "1:35", "1:06:40")


@pytest.fixture
def pair(folder):
    """A snake run with a summary, and a run that costs twice as much in every round and is still
    going.
    """
    snake = {
        "final_accuracy": 0.61,
        "best_accuracy": 0.7,
        "peak_train_bytes": 5e7,
        "num_params": 1000,
    }
    dear = {"node": [0, 1, 2], "layers": ["conv1", "fc"], "train_flops": 4e9, "bytes_up": 5000}
    records = [image_line(visit, **dear) for visit in range(4)]
    return read_runs(
        [folder("snake", summary=snake), folder("fedavg", records, config={"algorithm": "fedavg"})]
    )


def test_headline_says_what_was_saved(pair):
    assert headline(*pair) == (
        "snake against fedavg: final accuracy +11.0 points, 50.0 % fewer training FLOPs, 50.0 % "
        "fewer bytes sent"
    )
    assert "100.0 % more training FLOPs" in headline(*reversed(pair))
    assert "the same training FLOPs" in headline(pair[0], pair[0])


def cells(table, label):
    (line,) = [line for line in table.splitlines() if line.strip().startswith(label)]
    return line.strip().removeprefix(label).split("  ")


def test_text_table(pair):
    table = comparison_table(pair)
    assert table.splitlines()[0] == headline(*pair)
    assert [c.strip() for c in cells(table, "final") if c] == ["61.0 %", "50.0 %", "-11.0 points"]
    assert [c.strip() for c in cells(table, "bytes sent, up and down") if c] == [
        "16.0 kB",
        "32.0 kB",
        "2.00x",
    ]
    assert [c.strip() for c in cells(table, "a cycle or round") if c] == [
        "8.00 kB",
        "16.0 kB",
        "2.00x",
    ]
    assert [c.strip() for c in cells(table, "a visit of a node") if c] == [
        "4.00 kB",
        "2.67 kB",
        "0.67x",
    ]
    assert [c.strip() for c in cells(table, "peak memory at a node") if c] == ["50.0 MB", "-"]
    assert "Cost to reach 55.0 %" in table
    assert len({len(line) for line in table.splitlines() if line.endswith("x")}) == 1, (
        "columns line up"
    )


def test_markdown_table_is_rectangular(pair):
    rows = [
        line for line in comparison_table(pair, "markdown").splitlines() if line.startswith("|")
    ]
    assert {row.count("|") for row in rows} == {5}
    assert rows[0] == "| | snake | fedavg | vs snake |"


def test_json_table_holds_plain_numbers(pair):
    snake, fedavg = json.loads(comparison_table(pair, "json"))["runs"]
    assert (snake["name"], snake["bytes"], snake["bytes_to_target"]) == ("snake", 16000, 12000)
    assert (fedavg["final_accuracy"], fedavg["peak_train_bytes"]) == (0.5, None)


def test_one_run_has_no_ratios(pair):
    assert "vs" not in comparison_table(pair[:1])
    with pytest.raises(UserError, match="--format=html: not one of text, markdown, json"):
        comparison_table(pair, "html")


def test_layer_order_agrees_with_every_image_line():
    serpentine = [{"layers": ["conv1", f"conv{n}", "out"]} for n in (10, 9, 2)]
    assert layer_order(serpentine) == ["conv1", "conv2", "conv9", "conv10", "out"]
    assert layer_order([{"layers": ["z", "a"]}, {"layers": ["a", "m"]}]) == ["z", "a", "m"]


def ink(path):
    """Distinct colours of a picture, which is what tells a drawn panel from an empty one."""
    image = matplotlib.image.imread(path)
    assert image.shape[0] > 300
    assert image.shape[1] > 300
    red, green, blue = np.moveaxis((image[..., :3] * 255).round().astype(int), -1, 0)
    return set(np.unique(red << 16 | green << 8 | blue).tolist())


def holds(colours, shade):
    """Whether one of the colours is `shade` up to the rounding of a channel."""
    red, green, blue = (int(channel) for channel in shade)
    for steps in itertools.product((0, 1), repeat=3):
        near = ((red + steps[0]) << 16) + ((green + steps[1]) << 8) + blue + steps[2]
        if near in colours:
            return True
    return False


def test_pictures_show_each_run_in_its_colour(pair, tmp_path):
    blue, vermillion = 0x0072B2, 0xD55E00
    assert {blue, vermillion} <= ink(plot_curves(pair, tmp_path / "new" / "both.png"))
    alone = ink(plot_curves(pair[:1], tmp_path / "one.png", axes=["bytes"]))
    assert blue in alone
    assert vermillion not in alone


def test_a_run_picture_colours_the_strip_by_node(pair, tmp_path):
    snake, fedavg = (ink(plot_run(run, tmp_path / f"{run.name}.png")) for run in pair)
    three_nodes = (255 * matplotlib.colormaps["viridis"]([0.05, 0.5, 0.95])[:, :3]).astype(int)
    assert all(holds(snake, shade) for shade in three_nodes)
    assert not any(holds(fedavg, shade) for shade in three_nodes)


@pytest.mark.parametrize(
    "changes", [{"accuracy": None, "loss": None}, {"iterations": 0, "bytes_up": 0, "bytes_down": 0}]
)
def test_pictures_of_runs_with_nothing_to_show(folder, tmp_path, changes):
    run = read_run(folder("run", [image_line(visit, **changes) for visit in range(2)]))
    assert len(ink(plot_run(run, tmp_path / "run.png"))) > 2
    assert len(ink(plot_curves([run], tmp_path / "curves.png"))) > 2


def test_a_picture_that_cannot_be_written(pair, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/x.png: cannot write the picture"):
        plot_run(pair[0], tmp_path / "file" / "x.png")
