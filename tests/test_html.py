"""The report page: what goes into it, and what a reader can click in it, in a real browser where one is installed."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from snake_jax.errors import UserError
from snake_jax.report.html import find_runs, page, page_data, write_page

ROOT = Path(__file__).parents[1]
LAYERS = ["conv1", "conv2", "conv3", "conv10", "fc"]
NASTY = "</script><script>document.title = 'owned'</script><b>&amp;{{data}}"
SENT_BACK, MODEL = 1000, 5000
EVENTS = {4: "interrupted", 5: "takeover"}


def line(visit, **changes):
    """A visit of a snake over three nodes and three middle layers."""
    return {
        "visit": visit,
        "cycle": visit // 3,
        "node": visit % 3,
        "layers": ["conv1", LAYERS[1 + visit % 3], "fc"],
        "iterations": 10,
        "examples": 320,
        "bytes_up": SENT_BACK,
        "bytes_down": MODEL,
        "train_flops": 2e9,
        "train_s": 0.5,
        "loss": 2.0 / (visit + 1),
        "accuracy": [0.2, None, 0.6][visit % 3],
        "test_loss": None,
        "event": EVENTS.get(visit, ""),
        "node_flops": [1, 2],
        **changes,
    }


def transfers(record):
    """The ledger's rows of one line: the model to each node, its update back."""
    nodes = record["node"] if isinstance(record["node"], list) else [record["node"]]
    for node in nodes:
        why = "initial" if record["visit"] < 3 else "catch-up"
        sent = {"visit": record["visit"], "layers": LAYERS}
        yield sent | {"source": "server", "destination": f"node{node}", "bytes": MODEL, "why": why}
        yield sent | {"source": f"node{node}", "destination": "server", "bytes": SENT_BACK, "why": "update"}


def lines_of(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def write_run(path, records, config=None, summary=None, kept=True):
    path.mkdir(parents=True)
    (path / "metrics.jsonl").write_text(lines_of(records))
    if kept:
        (path / "ledger.jsonl").write_text(lines_of(row for record in records for row in transfers(record)))
    if config:
        (path / "config.json").write_text(json.dumps(config))
    if summary:
        (path / "summary.json").write_text(json.dumps(summary))


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A finished snake, a finished fedavg one folder deeper, an unfinished run without a ledger, and what is no run."""
    root = tmp_path_factory.mktemp("all") / "runs"
    config = {"algorithm": "snake", "nodes": 3, "cycles": 2, "learning_rate": 0.1, "partition": "iid", "dataset": NASTY}
    summary = {"final_accuracy": 0.61, "best_accuracy": 0.61, "peak_train_bytes": 5e7}
    write_run(root / "a_snake", [line(visit, clock_s=2.0) for visit in range(6)], config, summary)
    rounds = [
        line(n, cycle=n, node=[0, 1, 2], layers=LAYERS, iterations=30, bytes_up=3 * SENT_BACK, bytes_down=3 * MODEL)
        for n in range(2)
    ]
    fedavg = config | {"algorithm": "fedavg", "learning_rate": 0.2}
    write_run(root / "deep" / "er" / "b_fedavg", rounds, fedavg, summary | {"final_accuracy": 0.7})
    del config["partition"]
    write_run(root / "c <script>alert(1)</script>", [line(0, loss=float("nan"))], config, kept=False)
    write_run(root / "no_visit_yet", [], config)
    write_run(root / "a_snake" / "checkpoints" / "0", [line(0)], config)
    return root


@pytest.fixture(scope="session")
def data(folder):
    return page_data(find_runs(folder), "Runs & more")


def texts(run):
    return {key: cell["text"] for key, cell in run["cells"].items()}


def test_runs_are_found_at_any_depth_and_named_by_their_path(data):
    names = ["a_snake", "c <script>alert(1)</script>", "deep/er/b_fedavg"]
    assert [run["name"] for run in data["runs"]] == names


def test_a_run_can_be_given_itself(folder):
    (run,) = find_runs(folder / "a_snake")
    assert run.name == "a_snake"


def test_the_runs_table(data):
    snake, unfinished, fedavg = map(texts, data["runs"])
    assert snake["status"] == "finished"
    assert unfinished["status"] == "1 of 2 cycles"
    assert (snake["iterations"], snake["bytes_up"], snake["bytes_down"]) == ("60", "6.00 kB", "30.0 kB")
    assert (snake["flops"], snake["seconds"], snake["clock"]) == ("12.0 GFLOP", "3.00 s", "12.0 s")
    assert (snake["final_accuracy"], fedavg["final_accuracy"]) == ("61.0 %", "70.0 %")
    assert (snake["peak_train_bytes"], unfinished["peak_train_bytes"]) == ("50.0 MB", "–")
    assert (snake["partition"], unfinished["partition"], fedavg["clock"]) == ("iid", "–", "–")
    assert {column["key"] for column in data["columns"]} == set(snake)


def test_axes_add_up_and_are_there_where_something_was_measured(data):
    snake, unfinished, fedavg = (run["x"] for run in data["runs"])
    assert snake["bytes"] == [6000, 12000, 18000, 24000, 30000, 36000]
    assert snake["clock"] == [2, 4, 6, 8, 10, 12]
    assert "clock" not in fedavg
    assert fedavg["iterations_per_node"] == [10, 20]
    assert unfinished["number"] == [1]
    assert {axis["key"] for axis in data["axes"]} == set(snake)
    assert data["runs"][0]["y"]["accuracy"] == [0.2, None, 0.6] * 2
    assert data["runs"][1]["y"]["loss"] == [None], "JSON has no NaN"


def test_axes_that_no_run_measured_are_left_out(folder):
    keys = {axis["key"] for axis in page_data(find_runs(folder / "deep"), "deep")["axes"]}
    assert "clock" not in keys
    assert "iterations" in keys


def test_the_ledger_adds_up_to_the_metrics(data):
    snake, unfinished, fedavg = (run["ledger"] for run in data["runs"])
    assert unfinished is None
    assert snake["reasons"] == ["initial", "catch-up", "update"]
    server, *nodes = snake["places"]
    assert server == {"name": "server", "sent": [15000, 15000, 0], "received": [0, 0, 6000]}
    assert nodes == [{"name": f"node{n}", "sent": [0, 0, 2000], "received": [5000, 5000, 0]} for n in range(3)]
    assert (fedavg["bytes_up"], fedavg["bytes_down"]) == (fedavg["metrics_up"], fedavg["metrics_down"]) == (6000, 30000)


def test_ledgers_of_committed_runs_add_up_to_their_summaries():
    for run in find_runs(ROOT / "experiments" / "results" / "demo"):
        (found,) = page_data([run], "")["runs"]
        totals = found["ledger"]["bytes_up"], found["ledger"]["bytes_down"]
        assert totals == (run.summary["bytes_up"], run.summary["bytes_down"])
        assert sum(sum(place["sent"]) for place in found["ledger"]["places"]) == sum(totals)
        assert sum(sum(place["received"]) for place in found["ledger"]["places"]) == sum(totals)


def test_unknown_reasons_and_places_come_last_and_in_order(tmp_path):
    write_run(tmp_path / "run", [line(0)], kept=False)
    rows = [("node10", "node9", "update", 1), ("server", "node9", "gossip", 2), ("node9", "aux", "activations", 4)]
    ledger = [dict(zip(("source", "destination", "why", "bytes"), row, strict=True)) for row in rows]
    (tmp_path / "run" / "ledger.jsonl").write_text(lines_of(ledger) + '{"visit": 9, "sour')
    (found,) = page_data(find_runs(tmp_path), "")["runs"]
    assert found["ledger"]["reasons"] == ["update", "activations", "gossip"]
    assert [place["name"] for place in found["ledger"]["places"]] == ["server", "aux", "node9", "node10"]
    assert (found["ledger"]["bytes_up"], found["ledger"]["bytes_down"]) == (5, 2)


def test_the_schedule_is_in_model_order(data):
    snake, _, fedavg = data["runs"]
    assert snake["layers"] == LAYERS
    assert snake["visits"][4] == {"visit": 4, "cycle": 1, "nodes": [1], "layers": [0, 2, 4], "event": "interrupted"}
    assert fedavg["visits"][0]["nodes"] == [0, 1, 2]


def test_bare_lines_are_enough(tmp_path):
    write_run(tmp_path / "run", [{"iterations": 1}], kept=False)
    (run,) = page_data(find_runs(tmp_path), "")["runs"]
    assert texts(run)["status"] == "unfinished, 1 cycles"
    assert run["visits"] == [{"visit": 0, "cycle": None, "nodes": [], "layers": [], "event": ""}]


def test_without_config_the_summary_s_copy_serves(tmp_path):
    write_run(tmp_path / "run", [line(0)], summary={"final_accuracy": 0.5, "config": {"algorithm": "split"}})
    (run,) = page_data(find_runs(tmp_path), "")["runs"]
    assert (run["config"], texts(run)["algorithm"]) == ({"algorithm": "split"}, "split")


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text of the data script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.data, self._inside = [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = dict(attrs).get("id") == "data"

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        self.data += data if self._inside else ""


def test_nothing_from_a_run_becomes_markup(data):
    text = page(data)
    found = Elements(text)
    assert json.loads(found.data) == json.loads(json.dumps(data))
    assert found.data.count("<") == 0
    assert [tag for tag, _ in found.tags].count("script") == 2
    assert "<title>Runs &amp; more</title>" in text
    assert not re.search(r"\{\{\w+\}\}", text.replace(found.data, ""))


def test_the_page_refers_to_nothing_outside(data):
    text = page(data)
    assert set(re.findall(r"\w+://[^\s\"'<]+", text)) == {"http://www.w3.org/2000/svg"}
    links = [value for _, attrs in Elements(text).tags for key, value in attrs.items() if key in ("src", "href")]
    assert [link for link in links if not link.startswith("#")] == ["data:,"]
    assert not re.search(r"@import|url\(|\beval\(|innerHTML|insertAdjacentHTML|document\.write|new Function", text)


def test_the_same_runs_give_the_same_page(folder, tmp_path):
    first, second = (write_page(folder, tmp_path / name)[0].read_bytes() for name in ("one.html", "two.html"))
    assert first == second


def damage(file, text):
    return lambda root: (root / "run" / file).write_text(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: shutil.rmtree(root), "no such folder"),
        (lambda root: shutil.rmtree(root / "run"), "no runs in it"),
        (damage("metrics.jsonl", ""), "no runs in it"),
        (damage("metrics.jsonl", "{\n"), "metrics.jsonl, line 1: broken JSON"),
        (damage("ledger.jsonl", '\n{"source": "server"}\n'), "ledger.jsonl, line 2: no row of a ledger"),
        (damage("ledger.jsonl", "[]\n"), "ledger.jsonl, line 1: no row of a ledger"),
        (lambda root: (root / "page").mkdir(), "cannot write the page"),
    ],
)
def test_wrong_input_is_named(tmp_path, change, message):
    write_run(tmp_path / "runs" / "run", [line(0)])
    change(tmp_path / "runs")
    with pytest.raises(UserError, match=message) as error:
        write_page(tmp_path / "runs", tmp_path / "runs" / "page")
    assert "\n" not in str(error.value)


def report(*arguments):
    command = [sys.executable, "-W", "error", "-m", "experiments.report", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_launch_says_what_it_wrote(tmp_path):
    write_run(tmp_path / "runs" / "run", [line(0)])
    done = report(tmp_path / "runs")
    path = tmp_path / "runs" / "report.html"
    size = f"{path.stat().st_size / 1e3:.0f} kB"
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}: 1 run, {size}\n", "")


def test_the_launch_teaches_and_refuses(tmp_path):
    taught = report("--help")
    assert (taught.returncode, taught.stderr) == (0, "")
    assert "python -m experiments.report RUNS_DIR [--output=report.html]" in taught.stdout
    for arguments, message in (((), "one folder of runs"), ((tmp_path,), "no runs in it")):
        done = report(*arguments)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
        assert message in done.stderr


# ---- in a browser

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --force-prefers-reduced-motion --window-size=1280,900"
)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Headless Chromium, started once; skips where it, its driver or selenium is not installed."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: make test installs it")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("chromium and chromedriver are not installed: .ci/run installs them as root")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # The path is given: without it selenium looks for a driver to download.
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    chrome.get("about:blank")  # off the browser's own first page, which loads things of its own
    yield chrome
    chrome.quit()


@pytest.fixture
def opened(browser, folder, tmp_path):
    """The page in the browser, with ways to look at it; afterwards nothing was complained of and nothing fetched."""
    path, _ = write_page(folder, tmp_path / "report.html")
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(path.as_uri())
    look = SimpleNamespace(
        driver=browser,
        all=lambda css: browser.find_elements("css selector", css),
        one=lambda css: browser.find_element("css selector", css),
        texts=lambda css: [element.text for element in browser.find_elements("css selector", css)],
        choose=lambda css, word: browser.find_element("xpath", f"//select[@id='{css}']/option[.='{word}']").click(),
    )
    yield look
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert {url for url in sent if not url.startswith("data:")} == {path.as_uri()}


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
        return [float(line.get_attribute("points").split()[-1].split(",")[0]) for line in opened.all("#plot polyline")]

    start, end = 54, ends()[0]  # fedavg was evaluated at 30 of 60 iterations alone
    assert ends()[2] == pytest.approx((start + end) / 2, abs=0.2)
    for value, points in (("test accuracy", 4), ("training loss", 6)):
        opened.choose("value", value)
        assert len(opened.all("#plot g[data-run='0'] circle")) == points
    opened.choose("axis", "iterations per node")
    assert opened.texts("#axis option")[-3:] == ["simulated time", "iterations per node", "visits or rounds"]
    opened.choose("axis", "simulated time")
    assert opened.one("#plot [role=img]").get_attribute("aria-label") == "training loss against simulated time"
    assert opened.texts("#legend small") == ["last 0.3333", "not measured on these axes", "not measured on these axes"]
    assert not opened.one("#tip").is_displayed()
    for _ in range(3):
        opened.one("#plot").send_keys("\ue014")  # the right arrow
    said = ["a_snake", "training loss 0.6667", "simulated time 6.00 s", "visit 2, cycle 0, node 2"]
    assert opened.one("#tip").text.splitlines() == said


def test_the_pointer_finds_the_nearest_point(opened):
    from selenium.webdriver import ActionChains

    dot = opened.all("#plot g[data-run='2'] circle")[0]
    opened.driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", dot)
    ActionChains(opened.driver).move_to_element_with_offset(dot, 4, 4).perform()
    said = ["deep/er/b_fedavg", "test accuracy 20.0 %", "iterations 30", "visit 0, cycle 0, nodes 0, 1, 2"]
    assert opened.one("#tip").text.splitlines() == said
    ActionChains(opened.driver).move_to_element(opened.one("h1")).perform()
    assert not opened.one("#tip").is_displayed()


def test_the_ledger_of_another_run(opened):
    def cells(row):
        return [int(cell.get_attribute("data-bytes")) for cell in opened.all(f"#ledger-table {row} td")]

    assert cells("tbody tr:first-child") == [15000, 0, 15000, 0, 0, 6000, 30000, 6000]
    assert "nodes sent 6,000 B (up), the server 30,000 B (down). metrics.jsonl has the same totals." in (
        opened.one("#ledger-totals").text
    )
    opened.choose("ledger-run", "deep/er/b_fedavg")
    assert opened.texts("#ledger-table thead tr:first-child th") == ["place", "initial", "update", "total"]
    assert cells("tfoot tr") == [30000, 30000, 6000, 6000, 36000, 36000]
    opened.choose("ledger-run", "c <script>alert(1)</script>")
    assert opened.one("#ledger-totals").text == "No ledger kept: the run folder has no ledger.jsonl."
    assert opened.all("#ledger-table *") == []


def test_the_snake_is_drawn(opened):
    cells = [(c.get_attribute("data-visit"), c.get_attribute("data-layer")) for c in opened.all("#schedule .cell")]
    middle = [LAYERS[1 + visit % 3] for visit in range(6)]
    assert set(cells) == {(str(v), name) for v in range(6) for name in ("conv1", middle[v], "fc")}
    assert len(cells) == 18
    assert opened.texts("#schedule-layers text") == [*LAYERS, "visit"]
    assert len(opened.all("#schedule .bead")) == 6
    solid, jumps = (opened.one(css).get_attribute("d").count("C") for css in (".snake", ".snake-jump"))
    assert (solid, jumps) == (4, 1)
    assert len(opened.all("#schedule .cycle-line")) == 1
    assert [badge.get_attribute("data-event") for badge in opened.all("g.badge")] == ["interrupted", "takeover"]
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
        return {row.text.split(" ", 1)[0]: row.text.split(" ", 1)[1] for row in opened.all("#differences tbody tr")}

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
        widths = opened.driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert widths == [360, 360]
        shade = opened.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        channels = [int(number) for number in re.findall(r"\d+", shade)]
        assert (max(channels) < 64) == (scheme == "dark")
    finally:
        command("clearDeviceMetricsOverride")
        command("setEmulatedMedia", features=[])
