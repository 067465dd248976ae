"""What a reader can click on the report page, in a real browser where one is installed."""

import re
from contextlib import contextmanager

import numpy as np
import pytest

from snake_jax.report.html import write_page
from tests.browsers import chromium
from tests.browsers import opened as page_in
from tests.page_runs import LAYERS, NASTY, write_runs
from tests.run_folders import (
    image_line,
    language_line,
    write_language_fedavg,
    write_language_snake,
    write_run,
)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Headless Chromium, started once; skips where it is not installed."""
    with chromium(tmp_path_factory.mktemp("profile")) as chrome:
        yield chrome


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("all") / "runs")


@pytest.fixture
def opened(browser, folder, tmp_path):
    with page_of(browser, folder, tmp_path) as look:
        yield look


@pytest.fixture
def both_kinds(browser, tmp_path):
    """The page about two language runs, one unfinished, and one of images."""
    write_language_fedavg(tmp_path / "runs" / "fedavg")
    write_language_snake(tmp_path / "runs" / "snake", 12, finished=False)
    write_run(
        tmp_path / "runs" / "vgg",
        [image_line(visit) for visit in range(4)],
        summary={"final_accuracy": 0.5},
    )
    with page_of(browser, tmp_path / "runs", tmp_path) as look:
        yield look


@contextmanager
def page_of(browser, folder, tmp_path):
    """The page in the browser, with ways to look at it; afterwards nothing was complained of and
    nothing fetched.
    """
    path, _ = write_page(folder, tmp_path / "report.html")
    with page_in(browser, path.as_uri()) as look:
        yield look
        assert look.urls() == {path.as_uri()}


def names_in_table(opened):
    return opened.texts("#runs-table tbody th")


def heading(opened, column):
    return opened.one(f"#runs-table [data-column={column}]")


def test_a_click_on_a_heading_sorts(opened):
    snake, unfinished, fedavg = names_in_table(opened)
    assert unfinished == "c <script>alert(1)</script>"
    heading(opened, "final_accuracy").click()
    assert names_in_table(opened) == [unfinished, snake, fedavg]
    assert opened.one("th[aria-sort=ascending]").text == "final accuracy"
    heading(opened, "final_accuracy").send_keys("\n")  # by keyboard, and the focus stays
    assert names_in_table(opened) == [fedavg, snake, unfinished]
    assert opened.one("th[aria-sort=descending]").text == "final accuracy"
    assert opened.driver.switch_to.active_element == heading(opened, "final_accuracy")
    heading(opened, "peak_train_bytes").click()
    assert names_in_table(opened)[2] == unfinished, "what is not known comes last"
    assert len(opened.all("th[aria-sort=ascending], th[aria-sort=descending]")) == 1


def test_ticks_show_and_hide_runs(opened):
    def curves():
        return [group.get_attribute("data-run") for group in opened.all("#plot g[data-run]")]

    assert curves() == ["0", "1", "2"]
    opened.one("tr[data-run='1'] input").click()
    assert curves() == ["0", "2"]
    assert opened.texts("#legend span") == ["a_snake", "deep/er/b_fedavg"]
    everything = opened.one("th.pick input")
    assert everything.get_property("indeterminate")
    everything.click()
    assert curves() == ["0", "1", "2"]
    opened.one("th.pick input").click()
    assert curves() == []
    assert opened.one("#plot-drawing").text == "Nothing to draw."


def test_axes_can_be_chosen_and_values_read(opened):
    def ends():
        return [
            float(line.get_attribute("points").split()[-1].split(",")[0])
            for line in opened.all("#plot polyline")
        ]

    start, end = 54, ends()[0]  # fedavg was evaluated at 30 of 60 iterations alone
    assert ends()[2] == pytest.approx((start + end) / 2, abs=0.2)
    for value, points in (("test accuracy", 4), ("training loss", 6)):
        opened.choose("value", value)
        assert len(opened.all("#plot g[data-run='0'] circle")) == points
    opened.choose("axis", "iterations per node")
    assert opened.texts("#axis option")[-3:] == [
        "simulated time",
        "iterations per node",
        "visits or rounds",
    ]
    opened.choose("axis", "simulated time")
    assert (
        opened.one("#plot [role=img]").get_attribute("aria-label")
        == "training loss against simulated time"
    )
    assert opened.texts("#legend small") == [
        "last 0.3333",
        "not measured on these axes",
        "not measured on these axes",
    ]
    assert not opened.one("#tip").is_displayed()
    for _ in range(3):
        opened.one("#plot").send_keys("\ue014")  # the right arrow
    said = ["a_snake", "training loss 0.6667", "simulated time 6.00 s", "visit 2, cycle 0, node 2"]
    assert opened.one("#tip").text.splitlines() == said


def test_the_pointer_finds_the_nearest_point(opened):
    from selenium.webdriver import ActionChains

    dot = opened.all("#plot g[data-run='2'] circle")[0]
    opened.driver.execute_script(
        "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", dot
    )
    ActionChains(opened.driver).move_to_element_with_offset(dot, 4, 4).perform()
    said = [
        "deep/er/b_fedavg",
        "test accuracy 20.0 %",
        "iterations 30",
        "visit 0, cycle 0, nodes 0, 1, 2",
    ]
    assert opened.one("#tip").text.splitlines() == said
    ActionChains(opened.driver).move_to_element(opened.one("h1")).perform()
    assert not opened.one("#tip").is_displayed()


def test_each_kind_of_run_has_measures_of_its_own(both_kinds):
    opened = both_kinds
    assert opened.texts("#value option") == [
        "test accuracy",
        "test loss",
        "training loss",
        "held-out perplexity",
        "next-token accuracy",
        "exact match",
        "held-out loss a token",
        "training loss a token",
    ]
    drawn = {"test accuracy": ["2"], "next-token accuracy": ["0", "1"], "training loss": ["2"]}
    for value, runs in drawn.items():
        opened.choose("value", value)
        assert [
            group.get_attribute("data-run") for group in opened.all("#plot g[data-run]")
        ] == runs
    assert opened.texts("#legend small") == ["not measured on these axes"] * 2 + ["last 0.5"]
    opened.choose("value", "held-out perplexity")
    opened.choose("axis", "tokens seen")
    assert opened.texts("#legend small") == ["last 7", "last 12.59", "not measured on these axes"]
    assert len(opened.all("#plot g[data-run='0'] circle")) == 4, (
        "three rounds and the model before training"
    )
    opened.one("#plot").send_keys("\ue014")
    said = ["fedavg", "held-out perplexity 18", "tokens seen 0", "before training"]
    assert opened.one("#tip").text.splitlines() == said


def test_perplexity_that_spans_much_is_drawn_in_factors(browser, tmp_path):
    lines = [
        language_line(visit, perplexity)
        for visit, perplexity in enumerate((80.0, 40.0, 20.0, 10.0))
    ]
    write_run(tmp_path / "runs" / "run", lines)
    with page_of(browser, tmp_path / "runs", tmp_path) as opened:
        heights = [float(dot.get_attribute("cy")) for dot in opened.all("#plot circle.dot")]
        np.testing.assert_allclose(np.diff(heights), np.diff(heights)[0], atol=0.2)
        axis = [text.text for text in opened.all("#plot text[text-anchor=end]")]
        assert axis == ["10", "15", "20", "30", "40", "60", "80"]
        opened.choose("value", "held-out loss a token")
        assert opened.one("#plot text[text-anchor=end]").text == "2"


def test_language_runs_sort_by_perplexity(both_kinds):
    heading(both_kinds, "perplexity_after").click()
    assert names_in_table(both_kinds) == ["fedavg", "snake", "vgg"]
    heading(both_kinds, "trainable_params").click()
    assert names_in_table(both_kinds)[0] == "fedavg"


def test_the_ledger_of_another_run(opened):
    def cells(row):
        return [
            int(cell.get_attribute("data-bytes")) for cell in opened.all(f"#ledger-table {row} td")
        ]

    assert cells("tbody tr:first-child") == [15000, 0, 15000, 0, 0, 6000, 30000, 6000]
    assert (
        "nodes sent 6,000 B (up), the server 30,000 B (down). metrics.jsonl has the same totals."
        in (opened.one("#ledger-totals").text)
    )
    opened.choose("ledger-run", "deep/er/b_fedavg")
    assert opened.texts("#ledger-table thead tr:first-child th") == [
        "place",
        "initial",
        "update",
        "total",
    ]
    assert cells("tfoot tr") == [30000, 30000, 6000, 6000, 36000, 36000]
    opened.choose("ledger-run", "c <script>alert(1)</script>")
    assert (
        opened.one("#ledger-totals").text == "No ledger kept: the run folder has no ledger.jsonl."
    )
    assert opened.all("#ledger-table *") == []


def test_events_of_a_run_stand_in_a_table_with_their_cause(opened):
    assert opened.one("#events-note").text.startswith("1 admitted, 1 lost, 1 taken over.")
    heads = ["time", "round", "visit", "node", "event", "cause"]
    assert opened.texts("#events-table thead th") == heads
    lost = opened.texts("#events-table tr[data-event=lost] td")
    assert lost == ["90.5 s", "4", "4", "1", "lost", NASTY]
    opened.choose("events-run", "deep/er/b_fedavg")
    assert opened.one("#events-note").text == "No events.jsonl in this run."
    assert opened.all("#events-table *") == []


def test_the_snake_is_drawn(opened):
    cells = []
    for cell in opened.all("#schedule .cell"):
        cells.append((cell.get_attribute("data-visit"), cell.get_attribute("data-layer")))
    expected = set()
    for visit in range(6):
        for name in ("conv1", LAYERS[1 + visit % 3], "fc"):
            expected.add((str(visit), name))
    assert set(cells) == expected
    assert len(cells) == 18
    assert opened.texts("#schedule-layers text") == [*LAYERS, "visit"]
    assert len(opened.all("#schedule .bead")) == 6
    solid, jumps = (
        opened.one(css).get_attribute("d").count("C") for css in (".snake", ".snake-jump")
    )
    assert (solid, jumps) == (4, 1)
    assert len(opened.all("#schedule .cycle-line")) == 1
    assert [badge.get_attribute("data-event") for badge in opened.all("g.badge")] == [
        "interrupted",
        "takeover",
    ]
    fills = {cell.get_attribute("fill") for cell in opened.all("#schedule .cell")}
    assert len(fills) == 3, "one a node"
    assert "visit 4, cycle 1, node 1\ntrained conv1, conv3, fc\ninterrupted" in (
        opened.all("#schedule .whole-visit title")[4].get_property("textContent")
    )


def test_a_run_that_trains_everything_has_no_snake(opened):
    opened.choose("schedule-run", "deep/er/b_fedavg")
    assert (len(opened.all("#schedule .cell")), len(opened.all("#schedule .bead"))) == (10, 0)
    assert "All layers train in every visit" in opened.one("#schedule-legend").text
    assert opened.texts("#schedule-drawing .label")[0] == "3×"


def test_configurations_are_compared_among_ticked_runs(opened):
    def rows():
        return {
            row.text.split(" ", 1)[0]: row.text.split(" ", 1)[1]
            for row in opened.all("#differences tbody tr")
        }

    assert rows() == {
        "algorithm": "snake snake fedavg",
        "learning_rate": "0.1 0.1 0.2",
        "partition": "iid not recorded iid",
    }
    opened.one("tr[data-run='1'] input").click()
    assert set(rows()) == {"algorithm", "learning_rate"}
    assert opened.one("#same-summary").text == "4 fields that are the same"
    opened.one("#same-summary").click()
    assert NASTY in opened.one("#same").text
    assert opened.driver.title == "Runs in runs"
    opened.one("tr[data-run='2'] input").click()
    assert rows() == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_tables_and_not_the_page(opened, scheme):
    def command(name, **values):
        opened.driver.execute_cdp_cmd(f"Emulation.{name}", values)

    command("setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    command("setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=True)
    try:
        opened.driver.refresh()
        widths = opened.driver.execute_script(
            "return [document.documentElement.scrollWidth, window.innerWidth]"
        )
        assert widths == [360, 360]
        shade = opened.driver.execute_script(
            "return getComputedStyle(document.body).backgroundColor"
        )
        channels = [int(number) for number in re.findall(r"\d+", shade)]
        assert (max(channels) < 64) == (scheme == "dark")
    finally:
        command("clearDeviceMetricsOverride")
        command("setEmulatedMedia", features=[])
