"""What is remembered of services, in a file."""

import sqlite3

import pytest

from snake_jax.errors import UserError
from snake_jax.services import store
from snake_jax.services.store import Service, ServiceEvent

NEW = Service(0, "näme", "ann", "classify", '{"nodes": 2}', slots=1, run_s=2.5, restarts=3)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "services.sqlite"


@pytest.fixture
def opened(file):
    kept = store.opened(file)
    yield kept
    store.close(kept)


def test_a_service_comes_back_as_it_was_stored(opened, file):
    added = store.add(opened, NEW)
    assert added == NEW._replace(number=1)
    changed = store.change(opened, added, state="running", pid=77, started_s=1.5)
    assert changed == added._replace(state="running", pid=77, started_s=1.5)
    # By another connection, while the first is open: it is on disk.
    other = store.opened(file)
    assert store.every(other) == [changed]
    assert store.find(other, 1) == changed
    assert store.find(other, 2) is None
    store.close(other)


def test_the_log_is_written_ahead_and_synchronously(opened, file):
    assert opened.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert opened.connection.execute("PRAGMA synchronous").fetchone() == (2,)
    store.add(opened, NEW)
    assert file.with_name(file.name + "-wal").stat().st_size > 0


def test_events_come_back_in_order_and_go_with_their_service(opened):
    one, two = store.add(opened, NEW), store.add(opened, NEW)
    for number, name in ((1, "a"), (2, "b"), (1, "c")):
        store.tell(opened, ServiceEvent(number, 1.0, name, ""))
    assert [event.event for event in store.events(opened, 1)] == ["a", "c"]
    store.remove(opened, one.number)
    assert store.every(opened) == [two]
    assert store.events(opened, 1) == []
    assert len(store.events(opened, 2)) == 1


def test_a_number_is_not_given_twice(opened):
    for expected in (1, 2, 3):
        added = store.add(opened, NEW)
        assert added.number == expected
        store.remove(opened, expected)


def test_those_that_are_over_are_not_active(opened):
    for state in store.STATES:
        store.add(opened, NEW._replace(state=state))
    assert [one.state for one in store.active(opened)] == ["waiting", "running", "ending"]


def test_what_is_no_store_is_refused_in_one_line(file, tmp_path):
    file.write_bytes(b"no database at all, and long enough to be none" * 100)
    with pytest.raises(UserError, match=r"services\.sqlite is damaged"):
        store.opened(file)
    other = tmp_path / "later.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(UserError, match=r"another version of snake_jax \(99, here 1\)"):
        store.opened(other)
    with pytest.raises(UserError, match="give a --root that can be written"):
        store.opened(tmp_path / "nowhere" / "services.sqlite")
