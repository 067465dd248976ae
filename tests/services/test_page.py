"""The live page, clicked in a real browser where one is installed."""

import contextlib
import json
import threading

import pytest
import uvicorn

from snake_jax.engines.leases import PoolEvent, PoolNode, Wish
from snake_jax.services import api
from snake_jax.services.pool import PoolState
from tests.browsers import chromium, opened
from tests.service_provider import SETTINGS, TOKEN, asked, provider_of, stepped, wait_until

NASTY = "</script><b>bold"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium, started once; skips where it is not installed."""
    with chromium(tmp_path_factory.mktemp("profile")) as chrome:
        yield chrome


@contextlib.contextmanager
def listening(provider):
    """The page's URL, while a Service Provider steps and answers in threads."""
    config = uvicorn.Config(
        api.make_app(provider, TOKEN),
        port=0,
        log_config=None,
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    server, stopped = uvicorn.Server(config), threading.Event()
    threads = [
        threading.Thread(target=server.run),
        threading.Thread(target=provider.go_on, args=(stopped,)),
    ]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        stopped.set()
        for thread in threads:
            thread.join()


@pytest.fixture
def provider(tmp_path):
    """One service that is finished, one that failed, and one that goes on."""
    with provider_of(tmp_path) as made:
        made.register(asked("few rounds", owner="ann"))
        made.register(asked("wrong"))
        stepped(made, lambda: all(one.state in ("finished", "failed") for one in made.services()))
        made.register(asked("many rounds", owner=NASTY))
        yield made


@pytest.fixture
def page(provider, browser):
    with listening(provider) as url, opened(browser, url) as look:
        yield look
        look.driver.execute_script("sessionStorage.clear()")
        # Nothing but the Service Provider was asked, and the token was in no address.
        asked_for = look.urls()
        assert all(one.startswith((url, f"blob:{url}")) for one in asked_for), asked_for
        assert all(TOKEN not in one for one in asked_for)
        look.driver.get("about:blank")  # streams end, so that the server can


def sign_in(page, token=TOKEN):
    page.one("#token").send_keys(f"{token}\n")


def rows(page):
    """Number, state and rounds of the services that are shown, the newest first."""
    cells = page.driver.execute_script(
        "return [...document.querySelectorAll('#services tbody tr')].map("
        "(row) => [row.dataset.service, row.cells[1].innerText, row.cells[5].innerText])"
    )
    return [(int(number), state, int(rounds)) for number, state, rounds in cells]


def in_page(page, script):
    return page.driver.execute_script(f"return {script}")


def click(page, number, word):
    """A button in a service's row, which may be drawn anew at any moment."""
    in_page(
        page,
        f"[...document.querySelectorAll('tr[data-service=\"{number}\"] button')]"
        f".find((one) => one.innerText.startsWith({json.dumps(word)})).click()",
    )


def test_nothing_is_shown_without_the_token(page):
    assert not page.one("#content").is_displayed()
    sign_in(page, "a-wrong-token-of-somebody")
    wait_until(lambda: page.one("#trouble").is_displayed())
    assert page.one("#trouble").text == ("a bearer token is needed: Authorization: Bearer TOKEN")
    assert not page.one("#content").is_displayed()
    assert in_page(page, "sessionStorage.length") == 0
    # The browser itself complains of the answer 401.
    (complaint,) = page.driver.get_log("browser")
    assert "401" in complaint["message"]


def test_services_and_their_states_are_shown_and_the_token_is_kept_in_the_tab_alone(page):
    sign_in(page)
    wait_until(lambda: rows(page))
    assert [row[:2] for row in rows(page)][1:] == [(2, "failed"), (1, "finished")]
    wait_until(lambda: rows(page)[0][2] > 3)
    assert rows(page)[0][:2] == (3, "running")
    assert page.one("#counts").text == "3 services; 1 of 2 slots in use"
    assert NASTY in page.one("#services").text
    assert not page.one("#token").is_displayed()
    assert in_page(page, "Object.values(sessionStorage)") == [TOKEN]
    assert in_page(page, "localStorage.length") == 0
    assert in_page(page, "document.cookie") == ""
    assert TOKEN not in in_page(page, "document.documentElement.outerHTML")
    page.one("#sign-out").click()
    assert not page.one("#content").is_displayed()
    assert in_page(page, "sessionStorage.length") == 0


def test_the_snake_of_a_finished_service_can_be_gone_through(page):
    sign_in(page)
    wait_until(lambda: rows(page))
    click(page, 1, "1 few rounds")
    wait_until(lambda: page.one("#at-text").text == "6 of 6: node 0")
    assert page.one("#one-heading").text == "Service 1: few rounds, finished"
    assert page.texts("#snake-layers text") == ["fc1", "fc2", "fc3", "fc4", "fc5"]
    assert page.texts("#snake-drawing text") == ["0", "1"]

    def ringed():
        return [
            (ring.get_attribute("data-layer"), ring.get_attribute("data-node"))
            for ring in page.all("#snake-drawing .now")
        ]

    assert ringed() == [("fc1", "0"), ("fc2", "0"), ("fc5", "0")]
    assert len(page.all("#snake-drawing .bead")) == 6
    # fc1 and fc5 train at every visit; of the middle layers node 0 had fc2, fc4, fc3 and fc2.
    assert len(page.all("#snake-drawing .cell")) == 10
    twice = page.one(".cell[data-layer=fc2][data-node='0'] title").get_property("textContent")
    assert twice == "fc2 on node 0: trained 2 times"
    page.one("#at").send_keys("\ue012")  # the left arrow: a visit before
    assert page.one("#at-text").text == "5 of 6: node 1"
    assert ringed() == [("fc1", "1"), ("fc4", "1"), ("fc5", "1")]
    assert page.one("#live").get_attribute("aria-pressed") == "false"
    page.one("#live").click()
    assert page.one("#at-text").text == "6 of 6: node 0"
    captions = page.texts("#curves figcaption")
    assert captions == ["accuracy, last 60 %", "training loss, last 0.143"]
    points = page.one("[data-curve=accuracy] .curve").get_attribute("points").split()
    assert len(points) == 7
    assert page.texts("#nodes tbody td") == (
        ["0", "4", "fc1, fc2, fc5", "0 B", "400 B", "1", "3", "fc1, fc4, fc5", "0 B", "300 B"]
    )
    assert page.texts("#events b") == ["finished", "started", "registered"]


def test_the_snake_of_a_running_service_moves_by_itself_until_it_is_cancelled(page):
    sign_in(page)
    wait_until(lambda: rows(page))
    click(page, 3, "3 many rounds")
    wait_until(lambda: page.one("#at-text").text[:1].isdigit())
    first = int(in_page(page, "document.getElementById('at').value"))
    wait_until(lambda: int(in_page(page, "document.getElementById('at').value")) > first + 2)
    click(page, 3, "Cancel")
    wait_until(lambda: rows(page)[0][1] == "cancelled")
    wait_until(lambda: "cancelled" in page.one("#one-heading").text)
    total = rows(page)[0][2]
    wait_until(lambda: page.one("#at-text").text.startswith(f"{total - 1} of {total - 1}"))


def test_nodes_that_services_share_are_shown_with_who_has_them(page, provider):
    sign_in(page)
    wait_until(lambda: rows(page))
    assert not page.one("#pool").is_displayed(), "each plays its own"
    nodes = [PoolNode(0, "a", 1, 5.0, 12, 3.5), PoolNode(1, "b", 1, 5.0, 0, 0.0)]
    nodes.append(PoolNode(2, NASTY, 0, 9.0, 4, 400.0))
    lease = Wish(0, 3, "ann", 1, "", 17, '["fc1", "fc3"]', 6.0, 6.0, 7.0)
    wishes = [lease, lease._replace(service=2, granted_s=0.0)]
    events = [PoolEvent(5.0, 0, "joined", "started: a"), PoolEvent(9.0, 2, "gone", "it ended")]
    provider.pool = lambda: PoolState(nodes, wishes, events)
    wait_until(lambda: page.one("#pool").is_displayed())
    assert page.texts("#pool-nodes tbody td") == (
        ["0", "a", "service 3", "17", "fc1, fc3", "service 2", "12", "4 s"]
        + ["1", "b", "free", "", "", "", "0", "0 s"]
        + ["2", NASTY, "gone", "", "", "", "4", "6.7 min"]
    )
    assert page.texts("#pool-events b") == ["gone", "joined"]
    assert page.texts("#pool-events span") == ["node 2: it ended", "node 0: started: a"]
    click(page, 3, "3 many rounds")
    wait_until(lambda: page.all("#pool-nodes tr.chosen[data-pool-node='0']"))


def test_events_of_a_run_are_shown_with_visit_and_node(page, provider):
    row = {"time_s": 1.0, "round": 3, "visit": 3, "node": 1, "event": "lost", "cause": "it ended"}
    (provider.run_folder(1) / "events.jsonl").write_text(json.dumps(row) + "\n")
    sign_in(page)
    wait_until(lambda: rows(page))
    click(page, 1, "1 few rounds")
    wait_until(lambda: page.texts("#events b") == ["finished", "started", "registered", "lost"])
    assert page.texts("#events span")[3] == "visit 3, node 1: it ended"


def test_a_service_is_registered_and_removed_by_clicks(page):
    sign_in(page)
    wait_until(lambda: rows(page))
    page.one("#content summary").click()
    box = page.one("#registration")
    assert json.loads(box.get_property("value"))["task"] == "classify"
    box.clear()
    body = {"task": "classify", "settings": {**SETTINGS, "workdir": "../x"}, "name": "nothing"}
    box.send_keys(json.dumps(body))
    page.one("#register button").click()
    wait_until(lambda: page.one("#trouble").is_displayed())
    assert page.one("#trouble").text.startswith("--workdir: each service has a folder")
    del body["settings"]["workdir"]
    box.clear()
    box.send_keys(json.dumps(body))
    page.one("#register button").click()
    wait_until(lambda: rows(page)[0][:2] == (4, "finished"))
    assert not page.one("#trouble").is_displayed()
    click(page, 4, "Remove")
    wait_until(lambda: rows(page)[0][0] == 3)
    # The browser itself complains of the answer 422.
    (complaint,) = page.driver.get_log("browser")
    assert "422" in complaint["message"]


def test_every_operation_of_the_api_is_told_of(page):
    sign_in(page)
    wait_until(lambda: rows(page))
    page.one("#api-details summary").click()
    wait_until(lambda: len(page.all("#api h3")) == 14)
    assert "POST /services/{number}/cancel" in page.texts("#api h3")
    assert any(text.startswith("limits.run_s: seconds") for text in page.texts("#api .hint"))


def test_a_failed_service_says_why_and_shows_its_log(page):
    sign_in(page)
    wait_until(lambda: rows(page))
    click(page, 2, "2 wrong")
    wait_until(lambda: page.one("#one-cause").text == "no such data; give some")
    page.one("#log-details summary").click()
    wait_until(lambda: "error: no such data; give some" in page.one("#log").text)
    assert page.one("#snake-drawing").text == "No round is finished yet."


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_tables_and_not_the_page(page, scheme):
    def command(name, **values):
        page.driver.execute_cdp_cmd(f"Emulation.{name}", values)

    command("setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    command("setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=True)
    try:
        sign_in(page)
        wait_until(lambda: rows(page))
        click(page, 1, "1 few rounds")
        wait_until(lambda: page.all("#snake-drawing .now"))
        widths = in_page(page, "[document.documentElement.scrollWidth, window.innerWidth]")
        assert widths == [360, 360]
        shade = in_page(page, "getComputedStyle(document.body).backgroundColor")
        assert (shade == "rgb(16, 19, 24)") == (scheme == "dark")
    finally:
        command("clearDeviceMetricsOverride")
        command("setEmulatedMedia", features=[])
