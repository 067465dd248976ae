"""Services that share nodes: real processes on a real cluster, and what is killed on the way."""

import json
import os
import re
import signal
import sys
import time

import numpy as np
import pytest

from snake_jax.engines import leases
from snake_jax.engines.leases import Wish
from snake_jax.errors import UserError
from snake_jax.pids import started
from snake_jax.services import admission, children, client
from snake_jax.services.pool import Machines, Pool
from snake_jax.services.provider import Provider
from snake_jax.services.terms import Offer
from tests.launches import Launcher, json_lines, results, write_images
from tests.service_provider import TOKEN, asked, wait_until, words
from tests.services.test_serve import SMALL, keepers, kill_session, serving, states

SLEEPS = [sys.executable, "-c", "import time; time.sleep(600)"]
SENT = ("serialized_to_nodes_bytes", "serialized_to_controller_bytes")


def pool_process(root, attempt):
    return children.of_attempt(root / "pool", attempt)


def without_sent(folder):
    """The results of a run but for what was serialized, which the engine of one process has not."""
    found = results(folder)
    for line in (found["summary"], *found["metrics"]):
        for name in SENT:
            assert line.pop(name) > 0
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_three_services_on_four_nodes_with_service_provider_and_pool_killed(
    tmp_path, monkeypatch, capfd
):
    """One fails, one is cancelled; the third ends with the bits that it has alone."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'snake-jax[ray]'")
    token_file, root, data = tmp_path / "token", tmp_path / "provider", tmp_path / "data"
    token_file.write_text(TOKEN)
    data.mkdir()
    write_images(data / "images.npz")
    np.savez(data / "wrong.npz", x=np.zeros(3))
    flags = (f"--data_folders={data}", "--slots=3", "--pool=4", "--grace_s=2")
    good = SMALL | {"dataset": "npz:images.npz", "local_epochs": 20, "nodes": 2}
    endless = {"cycles": 5000, "lr_decay": 1.0, "seed": 1, "algorithm": "fedavg"}
    pids = {}
    try:
        with serving(root, token_file, *flags) as (process, url):
            provider = client.server(url, TOKEN)
            for owner, settings in (
                ("ann", good | {"dataset": "npz:wrong.npz"}),
                ("ann", good | endless),
                ("bob", good | {"cycles": 40}),
            ):
                asked_for = {"task": "classify", "settings": settings, "owner": owner}
                client.submit(provider, asked_for)
            assert client.nodes(provider) == [] or len(client.nodes(provider)) == 4
            # Both train on the same nodes, one visit at a time on each.
            seen = set()

            def both_were_seen():
                nodes = client.nodes(provider)
                seen.update(node["service"] for node in nodes)
                return {2, 3} <= seen and client.show(provider, 3)["rounds"] >= 2

            wait_until(both_were_seen, 300)
            assert [node["alive"] for node in client.nodes(provider)] == [True] * 4
            assert sum(node["visits"] for node in client.nodes(provider)) >= 2
            pids = keepers(root)
            # It is to be on its way still when the pool is killed, however slow the machine is.
            os.killpg(pids[3], signal.SIGSTOP)
            process.kill()
            process.wait()
        pool = pool_process(root, 1)
        assert pool.pid, "the pool goes on without the Service Provider"

        with serving(root, token_file, *flags) as (process, url):
            provider = client.server(url, TOKEN)
            assert states(provider) == ["failed", "running", "running"]
            assert "wrong.npz" in client.show(provider, 1)["cause"]
            assert keepers(root) == {1: 0, 2: pids[2], 3: pids[3]}, "both went on"
            assert pool_process(root, 1) == pool
            assert client.cancel(provider, 2)["state"] == "ending"
            wait_until(lambda: client.show(provider, 2)["state"] == "cancelled", 200)

            # All nodes are gone at once: a new pool, and the service goes on in it.
            kill_session(pool.pid)
            done = len(json_lines(root / "services/3/run/metrics.jsonl"))
            assert done < 80, "it was on its way"
            wait_until(lambda: client.show(provider, 3)["state"] == "finished", 300)
            assert client.show(provider, 3)["attempt"] == 2
            causes = [one["cause"] for one in client.events(provider, 3) if one["event"] == "lost"]
            assert causes == ["its process was lost; it goes on from its last round"]
            assert not any(node["service"] for node in client.nodes(provider))
            assert client.fetch(provider, 3, tmp_path / "fetched") > 5
    finally:
        if (root / "services.sqlite").exists():
            for pid in filter(None, keepers(root).values()):
                kill_session(pid)
        for file in (root / "pool").glob("keeper_?"):
            kill_session(pool_process(root, int(file.name[7:])).pid or 2**22)

    alone = [f"--{name}={value}" for name, value in good.items() if name != "dataset"]
    dataset = f"--dataset=npz:{(data / 'images.npz').resolve()}"
    launch = Launcher(monkeypatch, capfd)
    ended = launch(*alone, dataset, "--cycles=40", f"--workdir={tmp_path / 'alone'}")
    assert ended.code == 0
    assert without_sent(tmp_path / "fetched") == results(tmp_path / "alone")


@pytest.fixture
def idle(tmp_path, monkeypatch):
    """A Service Provider with a pool whose process is a program that does nothing."""
    monkeypatch.setattr(
        "snake_jax.services.pool.program",
        lambda: SLEEPS,
    )
    allowed = admission.Allowed(flags={"classify": frozenset({"engine"})}, pooled=True)
    offer = Offer(allowed=allowed, machines=Machines(nodes=2))
    provider = Provider(tmp_path / "provider", offer, words)
    yield provider
    # By its number: it may not have said yet that it has begun.
    kill_session(provider._pool._process.pid or 2**22)
    for service in provider.services():
        kill_session(service.pid or 2**22)
    provider.close()


def test_services_wait_until_the_pool_is_up_and_are_told_where_it_is(idle, tmp_path):
    idle.register(asked("sleeps", owner="ann"))
    idle.step()
    assert idle.find(1).state == "waiting", "there is no cluster yet"
    pool = tmp_path / "provider" / "pool"
    (pool / "address_1").write_text("127.0.0.1:6379")
    wait_until(lambda: idle.step() or idle.find(1).state == "running")
    share = json.loads((tmp_path / "provider/services/1/pool.json").read_text())
    wanted = {"file": str(pool / "leases.sqlite"), "service": 1, "owner": "ann", "attempt": 1}
    assert share == wanted
    command = _command_of(idle.find(1).pid)
    assert "--engine=ray" in command
    assert "--ray_address=127.0.0.1:6379" in command
    assert f"--ray_pool={tmp_path}/provider/services/1/pool.json" in command


def _command_of(keeper):
    with open(f"/proc/{keeper}/cmdline", encoding="utf-8") as stream:
        return stream.read().split("\0")


def test_what_asks_for_one_process_waits_for_no_pool(idle):
    settings = {"model": "mlp", "nodes": 2, "dataset": "digits", "engine": "local"}
    idle.register(asked("sleeps", settings=settings))
    idle.step()
    assert idle.find(1).state == "running"
    assert not any(word.startswith("--ray") for word in _command_of(idle.find(1).pid))


def test_a_method_that_processes_cannot_carry_out_is_refused_at_its_registration(idle):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'snake-jax[ray]'")
    settings = {"model": "cnn", "nodes": 2, "dataset": "digits", "algorithm": "split"}
    with pytest.raises(UserError, match="say --engine=local"):
        idle.register(asked("sleeps", settings=settings))
    idle.register(asked("sleeps", settings=settings | {"engine": "local"}))


def test_a_pool_is_found_again_and_one_that_ended_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "snake_jax.services.pool.program",
        lambda: SLEEPS,
    )
    monkeypatch.setattr("snake_jax.services.pool._STARTED_AGAIN_S", 0.0)
    root = tmp_path
    first = Pool(root, Machines(nodes=2))
    try:
        first.step(dict(os.environ))
        wait_until((root / "pool/keeper_1").exists)
        second = Pool(root, Machines(nodes=2))
        second.step(dict(os.environ))
        assert not (root / "pool/keeper_2").exists(), "it runs"
        process = pool_process(root, 1)
        kill_session(process.pid)
        wait_until(lambda: not children.is_alive(process))
        second.step(dict(os.environ))
        wait_until((root / "pool/keeper_2").exists)
        assert pool_process(root, 2).pid not in (0, process.pid)
    finally:
        for file in (root / "pool").glob("keeper_?"):
            kill_session(pool_process(root, int(file.name[7:])).pid or 2**22)


def test_the_pool_is_told_of_with_who_has_and_who_waits(idle):
    table = leases.opened(idle._pool._file)
    leases.note(table, {0: "a", 1: "b"}, "started")
    leases.note(table, {0: "a"}, "gone")
    now, own = time.time(), (os.getpid(), started(os.getpid()))
    for service in (4, 5):
        leases.ask(table, Wish(0, service, "ann", *own, 9, '["fc2"]', now, now))
    table.close()
    from snake_jax.services import messages

    shown = messages.pool_shown(idle.pool()).model_dump()
    first, second = shown["nodes"]
    assert (first["service"], first["turn"], first["layers"]) == (4, 9, ["fc2"])
    assert first["waiting"] == [5]
    assert first["leased_s"] == pytest.approx(now)
    assert (second["alive"], second["service"], second["waiting"]) == (False, None, [])
    assert [one["event"] for one in shown["events"]] == ["joined", "joined", "gone"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--pool=2", "--ray_address=auto"), "leave one of the two out"),
        (("--ray_resources=GPU=1",), "--ray_resources is for a pool"),
        (("--pool=2", "--ray_resources=GPU"), "want NAME=NUMBER"),
        (("--ray_address=192.0.2.77:6379",), "192.0.2.77 is another machine"),
    ],
)
def test_flags_of_a_pool_that_cannot_be_are_refused(flags, said, tmp_path, monkeypatch, capfd):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'snake-jax[ray]'")
    (tmp_path / "token").write_text(TOKEN)
    serve = Launcher(monkeypatch, capfd, "serve")
    ended = serve(f"--root={tmp_path / 'r'}", f"--token_file={tmp_path / 'token'}", *flags)
    assert (ended.code, ended.stdout) == (2, "")
    assert re.match("error: .*" + re.escape(said), ended.stderr)
    assert ended.stderr.count("\n") == 1
