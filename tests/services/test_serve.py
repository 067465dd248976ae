"""`snake-jax serve` and `snake-jax services` as they are typed, on real training."""

import contextlib
import io
import json
import os
import re
import signal
import socket
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

import snake_jax.services
from snake_jax.cli import certificates
from snake_jax.cli import services as services_command
from snake_jax.errors import UserError
from snake_jax.services import client
from tests.launches import Launcher, in_new_process, results, write_images
from tests.service_provider import TOKEN, wait_until

SMALL = {"model": "mlp", "width": 0.05, "nodes": 3, "batch_size": 16, "learning_rate": 0.05}


@pytest.fixture
def token_file(tmp_path):
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    return file


@contextlib.contextmanager
def serving(root, token_file, *flags):
    """A Service Provider in a process of its own; killed at the end, if it is there still."""
    words = [f"--root={root}", f"--token_file={token_file}", "--port=0", *flags]
    process = in_new_process(words, "serve")
    try:
        said = process.stdout.readline()
        found = re.match(r"(https?://127\.0\.0\.1:\d+): \d+ slots", said)
        assert found, said + process.stderr.read()
        yield process, found[1]
    finally:
        process.kill()
        stdout, stderr = process.communicate()
    assert (stdout, stderr) == ("", "")


def kill_session(pid):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def states(provider):
    return [one["state"] for one in client.every(provider)["services"]]


def keepers(root):
    """The processes that services were last started as, by number, as the store has them."""
    from snake_jax.services import store

    kept = store.opened(root / "services.sqlite")
    found = {one.number: one.pid for one in store.every(kept)}
    store.close(kept)
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_three_services_with_the_service_provider_killed_between(tmp_path, token_file, launch):
    """One fails, one is cancelled, one finishes as it does alone; its own process is killed too."""
    root, data = tmp_path / "root", tmp_path / "data"
    data.mkdir()
    write_images(data / "images.npz")
    np.savez(data / "wrong.npz", x=np.zeros(3))
    flags = (f"--data_folders={data}", "--slots=2", "--grace_s=2")
    good = SMALL | {"dataset": "npz:images.npz"}
    started = {}
    try:
        with serving(root, token_file, *flags) as (process, url):
            provider = client.server(url, TOKEN)
            for settings in (
                good | {"dataset": "npz:wrong.npz"},
                good | {"cycles": 5000, "lr_decay": 1.0, "seed": 1},
                good | {"cycles": 12},
            ):
                client.submit(provider, {"task": "classify", "settings": settings})
            assert states(provider)[2] == "waiting", "there are two slots"
            wait_until(lambda: client.show(provider, 3)["rounds"] >= 1, 200)
            process.kill()
            process.wait()
            started = keepers(root)
        # While nobody looks, the third is killed as well.
        kill_session(started[3])
        done = len((root / "services/3/run/metrics.jsonl").read_text().splitlines())
        assert done < 24, "it was killed on its way"

        with serving(root, token_file, *flags) as (process, url):
            provider = client.server(url, TOKEN)
            failed, running, lost = client.every(provider)["services"]
            assert failed["state"] == "failed"
            assert "wrong.npz" in failed["cause"]
            assert (running["state"], running["attempt"]) == ("running", 1)
            assert keepers(root)[2] == started[2], "it went on without the Service Provider"
            # It waits, or has been started again already.
            assert lost["state"] in ("waiting", "running")
            assert "lost" in [event["event"] for event in client.events(provider, 3)]
            assert client.cancel(provider, 2)["state"] == "ending"
            wait_until(lambda: client.show(provider, 2)["state"] == "cancelled", 200)
            wait_until(lambda: client.show(provider, 3)["state"] == "finished", 200)
            metrics = list(client.metrics(provider, 3))
            assert [line["visit"] for line in metrics] == list(range(24))
            assert client.show(provider, 3)["attempt"] == 2
            assert client.fetch(provider, 3, tmp_path / "fetched") > 5
            assert TOKEN not in client.log(provider, 3)
    finally:
        if (root / "services.sqlite").exists():
            for pid in filter(None, keepers(root).values()):
                kill_session(pid)

    alone = [f"--{name}={value}" for name, value in good.items() if name != "dataset"]
    dataset = f"--dataset=npz:{(data / 'images.npz').resolve()}"
    ended = launch(*alone, dataset, "--cycles=12", f"--workdir={tmp_path / 'alone'}")
    assert ended.code == 0
    assert results(tmp_path / "fetched") == results(tmp_path / "alone")
    for file in root.rglob("*"):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes()


@pytest.fixture
def launch(monkeypatch, capfd):
    return Launcher(monkeypatch, capfd)


def test_over_tls_with_a_certificate_that_is_checked(tmp_path, token_file, monkeypatch, capfd):
    # As `snake-jax certificates` makes them.
    certificates.make(tmp_path / "keys", ["127.0.0.1"], days=1)
    own = tmp_path / "keys" / "127.0.0.1"
    flags = (f"--certfile={own / 'cert.pem'}", f"--keyfile={own / 'key.pem'}")
    services = Launcher(monkeypatch, capfd, "services")
    with serving(tmp_path / "root", token_file, *flags) as (process, url):
        assert url.startswith("https://")
        to = (f"--url={url}", f"--token_file={token_file}")
        trusting = (*to, f"--cafile={tmp_path / 'keys/ca.pem'}")
        assert services("list", *trusting) == (0, "0 of 2 slots in use\n", "")
        refused = services("list", *to)
        assert refused.code == 2
        assert refused.stderr.startswith(f"error: --url={url}: its certificate is not trusted")
        # The client's words, from submitting to removing; nothing is trained.
        wrong = services("submit", "classify", "nodes=2", "workdir=../x", *trusting)
        assert (wrong.code, wrong.stdout) == (2, "")
        assert "--workdir: each service has a folder of the Service Provider's" in wrong.stderr
        request = tmp_path / "request.json"
        request.write_text(json.dumps({"task": "classify", "settings": {"nodes": 2}}))
        submitted = services("submit", request, "--name=mine", "--owner=ann", *trusting)
        assert submitted == (0, "service 1: waiting\n", "")
        assert services("cancel", 1, *trusting).code == 0
        wait_until(lambda: "1  cancelled" in services("show", 1, *trusting).stdout)
        shown = services("show", 1, *trusting).stdout
        assert re.search(r"1  cancelled  classify  mine  ann  0 rounds", shown)
        assert "  nodes=2\n" in shown
        assert "  registered\n" in shown
        assert services("logs", 1, *trusting).code == 0
        followed = services("logs", 1, "--follow", *trusting)
        assert followed.stdout.startswith("   1  cancelled")
        again = services("cancel", 1, *trusting)
        assert (again.code, again.stderr.count("\n")) == (2, 1)
        output = tmp_path / "fetched"
        assert services("fetch", 1, f"--output={output}", *trusting).stdout.startswith(str(output))
        twice = services("fetch", 1, f"--output={output}", *trusting)
        assert twice.code == 2
        assert "is there already; give a new folder" in twice.stderr
        assert services("remove", 1, *trusting) == (0, "service 1: removed\n", "")
        # Told to end, it ends in good order.
        process.terminate()
        assert process.wait(60) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "--root is needed"),
        (("--root={tmp}/r",), "a token is needed: --token_file=FILE, or SNAKE_JAX_TOKEN"),
        (("--root={tmp}/r", "--token_file={tmp}/none"), "No such file or directory"),
        (("--root={tmp}/r", "--token_file={tmp}/short"), "at least 16 letters"),
        (("--root={tmp}/r", "--token_file={tmp}/token", "--host=0.0.0.0"), "others could read"),
        (("--root={tmp}/r", "--token_file={tmp}/token", "--host=example.org"), "others could"),
        (("--root={tmp}/r", "--token_file={tmp}/token", "--keyfile=k"), "without --certfile"),
        (("--root={tmp}/r", "--token_file={tmp}/token", "--certfile=c"), "--certfile=c: no such"),
        (
            ("--root={tmp}/r", "--token_file={tmp}/token", "--certfile={tmp}/token"),
            "no certificate and key",
        ),
        (("--root={tmp}/r", "--token_file={tmp}/token", "--data_folders={tmp}/no"), "no such"),
        (("--root={tmp}/token", "--token_file={tmp}/token"), "give a folder that can be written"),
        (("--root={tmp}/r", "--token_file={tmp}/token", "--port={port}"), "give others"),
    ],
)
def test_what_serve_refuses_before_it_listens(
    flags, said, tmp_path, token_file, monkeypatch, capfd
):
    monkeypatch.delenv("SNAKE_JAX_TOKEN", raising=False)
    (tmp_path / "short").write_text("short")
    serve = Launcher(monkeypatch, capfd, "serve")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        places = {"tmp": tmp_path, "port": taken.getsockname()[1]}
        ended = serve(*(flag.format(**places) for flag in flags))
    assert (ended.code, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: ")
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_serve_says_what_to_install(tmp_path, token_file, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delattr(snake_jax.services, "listen", raising=False)
    monkeypatch.delitem(sys.modules, "snake_jax.services.listen", raising=False)
    serve = Launcher(monkeypatch, capfd, "serve")
    ended = serve(f"--root={tmp_path / 'r'}", f"--token_file={token_file}")
    wanted = "error: snake-jax serve needs uvicorn: pip install 'snake-jax[serve]'\n"
    assert (ended.code, ended.stderr) == (2, wanted)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "want submit, list, nodes, show"),
        (("frobnicate",), "frobnicate: want submit, list"),
        (("list", "3"), "3: list and nodes take no more words"),
        (("show",), "want the number of one service"),
        (("show", "x"), "x: want the number of one service"),
        (("submit",), "want a task"),
        (("submit", "profile", "nodes=1"), "submit profile: not one of classify, finetune"),
        (("submit", "{tmp}/none.json"), "No such file or directory"),
        (("submit", "{tmp}/token"), "no JSON"),
        (("submit", "classify", "nodes"), "settings are given as NAME=VALUE"),
        (("submit", "classify", "nodes=two"), "nodes=two: want a number"),
        (("submit", "classify", "cached=maybe"), "cached=maybe: want true or false"),
        (("list", "--url=ftp://x"), "want http://HOST:PORT"),
        (("list", "--url=http://example.org"), "others could read the token"),
        (("list", "--cafile={tmp}/none"), "no such file"),
        (("list", "--url=http://127.0.0.1:{port}"), "is snake-jax serve running there?"),
    ],
)
def test_what_the_client_says_of_wrong_words(words, said, tmp_path, token_file, monkeypatch, capfd):
    services = Launcher(monkeypatch, capfd, "services")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    given = [word.format(tmp=tmp_path, port=port) for word in words]
    ended = services(*given, f"--token_file={token_file}")
    assert (ended.code, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: ")
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_settings_are_typed_as_the_flags_are():
    words = ["finetune", "nodes=2", "learning_rate=1e-3", "packing=false", "data=a.jsonl"]
    assert services_command.registration(words) == {
        "task": "finetune",
        "settings": {"nodes": 2, "learning_rate": 0.001, "packing": False, "data": "a.jsonl"},
    }


def test_a_server_that_is_none_is_told_of(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        silent.close()
        with pytest.raises(UserError, match="not reached"):
            client.every(client.server(url, TOKEN))


def test_the_token_goes_to_the_service_provider_and_nowhere_else(tmp_path, monkeypatch):
    """Whatever proxies and passwords the environment has, and whatever address is answered."""
    received = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            received.append((self.path, self.headers["Authorization"]))
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *words):
            pass

    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ann password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        with HTTPServer(("127.0.0.1", 0), Server) as server:
            answering = threading.Thread(target=server.handle_request)
            answering.start()
            url = f"http://127.0.0.1:{server.server_port}"
            with pytest.raises(UserError, match="answered 302; is it a snake-jax serve"):
                client.every(client.server(url, TOKEN))
            answering.join()
    assert received == [("/services", f"Bearer {TOKEN}")]


def test_an_archive_writes_nothing_outside_its_folder(tmp_path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo("service_1/../../outside")
        archive.addfile(entry, io.BytesIO(b""))
    packed.seek(0)
    with pytest.raises(UserError, match="would write outside its folder"):
        client._unpacked(packed, tmp_path / "fetched")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_an_archive_holds_files_alone(kind, tmp_path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo("service_1/link")
        entry.type, entry.linkname = kind, "/etc/passwd"
        archive.addfile(entry)
    packed.seek(0)
    with pytest.raises(UserError, match="service_1/link"):
        client._unpacked(packed, tmp_path / "fetched")
    assert not any(tmp_path.iterdir())
