"""Who has a pool's nodes: one run a node, owners in turn, and nothing is left of processes that
ended.
"""

import json
import os
import subprocess
import sys
import time

import pytest

from snake_jax import pids
from snake_jax.engines import leases
from snake_jax.engines.leases import Share, Wish
from snake_jax.errors import UserError

OWN = os.getpid(), pids.started(os.getpid())


@pytest.fixture
def table(tmp_path):
    made = leases.opened(tmp_path / "leases.sqlite")
    leases.note(made, {0: "here", 1: "here"}, "started")
    yield made
    made.close()


def wish(node, service, owner="ann", now=None, process=OWN, turn=7):
    now = time.time() if now is None else now
    return Wish(node, service, owner, *process, turn, '["fc1"]', now, now)


def leased(table):
    return {one.node: one.service for one in leases.wishes_of(table) if one.granted_s}


def test_a_node_is_one_run_s_until_it_is_given_back(table):
    assert leases.ask(table, wish(0, 1))
    assert not leases.ask(table, wish(0, 2))
    assert leases.ask(table, wish(1, 2)), "another node is free"
    assert leased(table) == {0: 1, 1: 2}
    leases.give_back(table, 1, 0)
    assert leased(table) == {1: 2}
    assert leases.ask(table, wish(0, 2))
    assert leased(table) == {0: 2, 1: 2}
    first, second = leases.nodes_of(table)
    assert (first.visits, second.visits) == (1, 0)
    assert first.busy_s > 0


def test_giving_back_what_one_has_not_changes_nothing(table):
    assert leases.ask(table, wish(0, 1))
    leases.give_back(table, 2, 0)
    assert leased(table) == {0: 1}
    assert [node.visits for node in leases.nodes_of(table)] == [0, 0]


def test_owners_take_turns_and_an_owner_s_runs_come_in_their_order():
    now = 1000.0
    asking = [wish(0, 1, "ann", 990), wish(0, 2, "ann", 980), wish(0, 3, "bob", 995)]
    asking = [one._replace(seen_s=now) for one in asking]
    assert leases.first(asking, {"ann": 900, "bob": 800}, now).service == 3
    assert leases.first(asking, {"ann": 800, "bob": 900}, now).service == 2
    assert leases.first(asking, {"ann": 800}, now).service == 3, "who never had it comes first"
    assert leases.first([], {}, now) is None


def test_no_run_waits_for_ever_beside_an_owner_of_many(table):
    """Three runs of ann's and one of bob's ask again as soon as they have had their visit."""
    owners = {1: "ann", 2: "ann", 3: "ann", 4: "bob"}
    order = []
    now = time.time()
    for step in range(16):
        for service, owner in owners.items():
            if leases.ask(table, wish(0, service, owner, now + step)):
                order.append(service)
        leases.give_back(table, order[-1], 0)
    assert order.count(4) in (7, 8), "half of it is bob's"
    assert {order.count(1), order.count(2), order.count(3)} <= {2, 3}


def test_who_does_not_ask_any_more_is_passed_over(table):
    now = time.time()
    assert leases.ask(table, wish(0, 1, now=now))
    assert not leases.ask(table, wish(0, 2, now=now + 1))
    leases.give_back(table, 1, 0)
    assert not leases.ask(table, wish(0, 3, now=now + 2)), "the second was first"
    assert leases.ask(table, wish(0, 3, now=now + 2 + leases.STALE_S))


def test_a_lease_ends_with_its_process(table):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        process = other.pid, pids.started(other.pid)
        assert leases.ask(table, wish(0, 1, process=process))
        assert not leases.ask(table, wish(0, 2))
        assert leased(table) == {0: 1}
        other.kill()
    assert leased(table) == {}
    assert leases.ask(table, wish(0, 2))


def test_of_many_processes_that_ask_at_once_one_has_it(tmp_path, table):
    script = f"""
import os, sys, time
sys.path[:0] = {sys.path!r}
from pathlib import Path
from snake_jax import pids
from snake_jax.engines import leases
table = leases.opened(Path({str(tmp_path / "leases.sqlite")!r}))
own, service, done, log = (os.getpid(), pids.started(os.getpid())), int(sys.argv[1]), 0, []
while done < 20:
    now = time.time()
    wish = leases.Wish(0, service, "ann", *own, done, "[]", now, now)
    if leases.ask(table, wish):
        begun = time.monotonic()
        time.sleep(0.002)
        log.append((begun, time.monotonic()))
        leases.give_back(table, service, 0)
        done += 1
    time.sleep(0.003)
print(log)
"""
    command = [sys.executable, "-c", script]
    pipe = {"stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([*command, str(number)], **pipe) for number in (1, 2)]
    spans = sorted(span for one in started for span in json.loads(_list(one.communicate()[0])))
    assert len(spans) == 40
    ends = [end for _, end in spans]
    assert all(end <= begin for end, (begin, _) in zip(ends, spans[1:], strict=False))
    assert leases.nodes_of(table)[0].visits == 40


def _list(text):
    return text.replace("(", "[").replace(")", "]")


def test_nodes_that_come_and_go_are_told_of(table):
    leases.note(table, {0: "here", 1: "here"}, "the same")
    leases.note(table, {1: "here", 2: "there"}, "changed")
    told = [(event.node, event.event, event.cause) for event in leases.events_of(table)]
    assert told == [
        (0, "joined", "started: here"),
        (1, "joined", "started: here"),
        (0, "gone", "changed: here"),
        (2, "joined", "changed: there"),
    ]
    alive = {node.node: (node.host, node.alive) for node in leases.nodes_of(table)}
    assert alive == {0: ("here", 0), 1: ("here", 1), 2: ("there", 1)}


def test_the_nodes_of_a_cluster_are_its_resources_of_that_name():
    offered = {"CPU": 4.0, "pool_node_10": 1.0, "pool_node_2": 1.0, "pool_node_x": 1.0}
    assert leases.present(offered | {"pool_node_3": 0.0}) == [2, 10]


def test_a_share_is_read_as_it_was_written(tmp_path):
    share = Share("leases.sqlite", 3, "ann", 1)
    (tmp_path / "pool.json").write_text(json.dumps(share._asdict()))
    assert leases.read_share(str(tmp_path / "pool.json")) == share
    (tmp_path / "wrong.json").write_text('{"file": 1}')
    for name in ("wrong.json", "none.json"):
        with pytest.raises(UserError, match="snake-jax serve writes it") as error:
            leases.read_share(str(tmp_path / name))
        assert "\n" not in str(error.value)


def placed(monkeypatch, offered, service=3, taken=None):
    """Where the first three actors of a service are, on a cluster that offers this."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'snake-jax[ray]'")
    from snake_jax.engines.ray_pool import PooledEngine

    monkeypatch.setattr(ray, "cluster_resources", lambda: offered)
    engine = PooledEngine.__new__(PooledEngine)
    engine._share = Share("leases.sqlite", service, "ann", 1)
    engine._taken, engine._pool_nodes = taken or {}, {}
    engine._options = {"num_gpus": 0.25, "resources": {"arm": 1.0}}
    return [engine._placed(number) for number in range(3)]


def test_actors_are_on_nodes_in_turn_and_services_begin_at_unlike_ones(monkeypatch):
    offered = {"CPU": 8.0, "pool_node_0": 1.0, "pool_node_1": 1.0, "pool_node_4": 1.0}
    options = placed(monkeypatch, offered)
    assert [set(one["resources"]) for one in options] == [
        {"arm", "pool_node_0"},
        {"arm", "pool_node_1"},
        {"arm", "pool_node_4"},
    ]
    assert options[0]["num_gpus"] == 0.25
    # A thousand services have room at a node.
    assert options[0]["resources"]["pool_node_0"] <= 0.001
    (first, *_) = placed(monkeypatch, offered, service=4)
    assert "pool_node_1" in first["resources"]


def test_a_cluster_without_shared_nodes_or_with_undivided_accelerators_is_refused(monkeypatch):
    with pytest.raises(UserError, match="pool_node_0, pool_node_1"):
        placed(monkeypatch, {"CPU": 8.0})
    offered = {"GPU": 4.0, "pool_node_0": 1.0}
    with pytest.raises(UserError, match="a service takes, as GPU"):
        placed(monkeypatch, offered)
    assert len(placed(monkeypatch, offered, taken={"GPU": 0.25})) == 3
