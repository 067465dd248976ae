"""The HTTP API of a Service Provider of small programs."""

import io
import json
import tarfile
import threading
import time

import pytest
from starlette.testclient import TestClient

from snake_jax.services import api, guard
from tests.service_provider import SETTINGS, TOKEN, provider_of, stepped, wait_until

WITH_TOKEN = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def provider(tmp_path):
    with provider_of(tmp_path) as made:
        yield made


@pytest.fixture
def client(provider):
    """A caller; it sees the errors of the server as they are raised."""
    return TestClient(api.make_app(provider, TOKEN), headers=WITH_TOKEN)


def registered(client, name, **changes):
    body = {"task": "classify", "settings": SETTINGS, "name": name} | changes
    answer = client.post("/services", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


def over(provider, number):
    stepped(provider, lambda: provider.find(number).state in ("finished", "failed", "cancelled"))


def lines(answer):
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def test_a_service_from_its_registration_to_its_end(client, provider):
    service = registered(
        client, "few rounds", owner="ann", requirements={"slots": 2}, limits={"run_s": 60}
    )
    assert service["number"] == 1
    assert (service["state"], service["owner"], service["rounds"]) == ("waiting", "ann", 0)
    assert service["settings"] == SETTINGS
    assert service["requirements"] == {"slots": 2}
    assert service["limits"] == {"run_s": 60.0, "restarts": 3}
    assert service["started_s"] is service["ended_s"] is service["last"] is None
    provider.step()
    listed = client.get("/services").json()
    assert (listed["slots"], listed["slots_in_use"]) == (2, 2)
    assert [one["state"] for one in listed["services"]] == ["running"]
    over(provider, 1)
    service = client.get("/services/1").json()
    assert (service["state"], service["rounds"], service["last"]["visit"]) == ("finished", 7, 6)
    events = client.get("/services/1/events").json()["events"]
    assert [one["event"] for one in events] == ["registered", "started", "finished"]
    assert client.delete("/services/1").status_code == 204
    assert client.get("/services").json()["services"] == []
    assert client.get("/services/1").json() == {
        "error": "service 1: there is none; the list says which there are"
    }


def test_metrics_and_ledger_are_streams_that_begin_where_one_says(client, provider):
    registered(client, "few rounds")
    assert lines(client.get("/services/1/metrics")) == []
    over(provider, 1)
    metrics = lines(client.get("/services/1/metrics"))
    assert [line["visit"] for line in metrics] == list(range(7))
    assert lines(client.get("/services/1/metrics?first=5")) == metrics[5:]
    assert lines(client.get("/services/1/metrics?first=100&wait_s=60")) == []
    assert {line["bytes"] for line in lines(client.get("/services/1/ledger"))} == {100}


def test_a_stream_goes_on_until_the_service_is_over(client, provider):
    registered(client, "few rounds")
    stopped = threading.Event()
    watching = threading.Thread(target=provider.go_on, args=(stopped,))
    watching.start()
    try:
        metrics = lines(client.get("/services/1/metrics?first=1&wait_s=60"))
    finally:
        stopped.set()
        watching.join()
    assert [line["visit"] for line in metrics] == list(range(1, 7))
    assert client.get("/services/1").json()["rounds"] == 7


def test_a_stream_ends_after_the_time_that_it_was_given(client, provider):
    registered(client, "sleeps")
    provider.step()
    start = time.monotonic()
    assert lines(client.get("/services/1/metrics?wait_s=0.5")) == []
    assert time.monotonic() - start >= 0.5


def test_events_of_the_run_come_between_those_of_the_service_provider(client, provider):
    registered(client, "few rounds")
    over(provider, 1)
    file = provider.run_folder(1) / "events.jsonl"
    began, ended = (one.time_s for one in provider.events(1)[1:])
    rows = [
        {"round": 0, "visit": None, "node": None, "event": "restarted", "cause": "it goes on"},
        {"round": 3, "visit": 3, "node": 1, "event": "lost", "cause": "its process ended"},
    ]
    lines = [json.dumps(row | {"time_s": began + (ended - began) / 2}) for row in rows]
    file.write_text("\n".join(lines) + '\n{"half a line')
    events = client.get("/services/1/events").json()["events"]
    names = [one["event"] for one in events]
    assert names == ["registered", "started", "restarted", "lost", "finished"]
    lost = events[3]
    assert (lost["visit"], lost["node"], lost["cause"]) == (3, 1, "its process ended")
    assert events[2]["visit"] is events[0]["visit"] is events[0]["node"] is None


def test_without_a_pool_no_node_is_shared(client):
    assert client.get("/nodes").json() == {"nodes": [], "events": []}


def test_nodes_log_and_files_of_a_service(client, provider):
    registered(client, "few rounds")
    over(provider, 1)
    first, second = client.get("/services/1/nodes").json()["nodes"]
    assert (first["node"], first["visits"], first["last_visit"]) == (0, 4, 6)
    assert first["layers"] == ["fc1", "fc2", "fc5"]
    assert (first["bytes_received"], second["bytes_received"]) == (400, 300)
    assert (first["bytes_sent"], second["bytes_sent"]) == (0, 0)
    registered(client, "wrong")
    over(provider, 2)
    assert client.get("/services/2/log").text.endswith("error: no such data; give some\n")
    files = client.get("/services/1/files").json()["files"]
    names = [one["name"] for one in files]
    assert names == ["ledger.jsonl", "metrics.jsonl", "summary.json"]
    answer = client.get("/services/1/files/summary.json")
    assert answer.content == b"{}"
    assert answer.headers["content-disposition"] == 'attachment; filename="summary.json"'
    assert files[2]["bytes"] == 2


@pytest.mark.parametrize(
    "name",
    [
        "../lock",
        "..%2Flock",
        "%2e%2e/lock",
        "/etc/passwd",
        "summary.json/../../lock",
        "secret",
        "%00",
        "",
    ],
)
def test_no_file_outside_the_result_is_given(name, client, provider, tmp_path):
    registered(client, "few rounds")
    over(provider, 1)
    (tmp_path / "secret").write_text("secret")
    (provider.run_folder(1) / "secret").symlink_to(tmp_path / "secret")
    assert (provider.run_folder(1).parent / "lock").exists()
    answer = client.get(f"/services/1/files/{name}")
    assert answer.status_code == 404
    assert "secret" not in answer.text


def test_the_archive_is_the_whole_result_once_it_is_whole(client, provider):
    registered(client, "few rounds")
    provider.step()
    answer = client.get("/services/1/archive")
    assert (answer.status_code, answer.json()["error"]) == (
        409,
        "service 1 is running: its result is not whole yet",
    )
    over(provider, 1)
    large = provider.run_folder(1) / "model" / "weights"
    large.parent.mkdir()
    large.write_bytes(bytes(range(256)) * 10_001)
    answer = client.get("/services/1/archive")
    with tarfile.open(fileobj=io.BytesIO(answer.content), mode="r:") as packed:
        contents = {one.name: packed.extractfile(one).read() for one in packed.getmembers()}
    names = ("ledger.jsonl", "metrics.jsonl", "model/weights", "summary.json")
    assert contents == {
        f"service_1/{name}": (provider.run_folder(1) / name).read_bytes() for name in names
    }


def test_cancel_answers_what_becomes_of_the_service(client, provider):
    registered(client, "sleeps")
    assert client.post("/services/1/cancel").json()["state"] == "cancelled"
    answer = client.post("/services/1/cancel")
    assert (answer.status_code, answer.json()["error"]) == (
        409,
        "service 1 is cancelled: it needs no cancelling",
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "profile"}, "body.task: "),
        ({"settings": {"workdir": "../x"}}, "--workdir: each service has a folder"),
        ({"settings": {"dataset": "npz:/etc/passwd"}}, "--dataset=/etc/passwd: not in the data"),
        ({"settings": {"model": "os:system"}}, "--model=os:system: code of one's own is off"),
        ({"settings": {"nodes": [1]}}, "body.settings.nodes"),
        ({"settings": {"nodes": 0}}, "--nodes=0: must be at least 1"),
        ({"requirements": {"slots": 3}}, "requirements: 3 slots are wanted, there are 2"),
        ({"requirements": {"slots": 0}}, "body.requirements.slots: "),
        ({"limits": {"run_s": -1}}, "body.limits.run_s: "),
        ({"workdir": "/tmp"}, "body.workdir: "),
        ({"name": "a\nb"}, "body.name: "),
        ({"settings": {"\ud800": 1}}, "--'\\ud800': classify has no such setting"),
    ],
)
def test_what_is_wrong_is_refused_in_a_line_and_not_registered(change, said, client):
    body = json.dumps({"task": "classify", "settings": {}} | change)
    kind = {"Content-Type": "application/json"}
    answer = client.post("/services", content=body, headers=kind)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith(said)
    assert "\n" not in answer.json()["error"]
    assert client.get("/services").json()["services"] == []


def test_a_body_that_is_no_json_or_too_large_is_refused(client):
    assert client.post("/services", content="{").status_code == 422
    large = b" " * (guard.MOST_BODY_BYTES + 1)
    assert client.post("/services", content=large).status_code == 413
    assert client.post("/services", content=iter([b"{}"])).status_code == 413, "of unknown length"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        "Bearer \xe4",
    ],
)
def test_nothing_is_said_without_the_token(header, provider, caplog):
    client = TestClient(api.make_app(provider, TOKEN))
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    for path in ("/services", "/services/1", "/openapi.json", "/nowhere", "/docs"):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json() == {"error": "a bearer token is needed: Authorization: Bearer TOKEN"}
    assert client.post("/services", json={}, headers=headers).status_code == 401
    assert TOKEN not in caplog.text


def test_the_page_is_given_without_a_token_and_runs_its_own_scripts_alone(provider):
    client = TestClient(api.make_app(provider, TOKEN))
    for path, kind in (("/", "html"), ("/page.js", "javascript"), ("/page.css", "css")):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["x-content-type-options"]) == (200, "nosniff")
        assert answer.headers["content-type"] == f"text/{kind}; charset=utf-8"
        assert TOKEN not in answer.text
        rules = answer.headers["content-security-policy"].split("; ")
        assert {"default-src 'none'", "script-src 'self'", "connect-src 'self'"} <= set(rules)
        assert "unsafe" not in "".join(rules)


def test_the_openapi_document_tells_of_every_operation_and_that_it_needs_a_token(client):
    document = client.get("/openapi.json").json()
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    assert len(operations) == 14
    for path, method, operation in operations:
        assert operation["security"] == [{"HTTPBearer": []}], (method, path)
        assert "401" in operation["responses"]
        assert operation["description"]
    assert client.get("/docs").status_code == 404, "FastAPI's pages would load from the network"


def test_a_step_that_fails_is_told_and_the_next_one_is_done(provider, capsys, monkeypatch):
    calls = []

    def step():
        calls.append(len(calls))
        if len(calls) == 1:
            raise OSError("disk full")

    monkeypatch.setattr(provider, "step", step)
    stopped = threading.Event()
    watching = threading.Thread(target=provider.go_on, args=(stopped,))
    watching.start()
    wait_until(lambda: len(calls) > 2)
    stopped.set()
    watching.join()
    assert "OSError: disk full" in capsys.readouterr().err
