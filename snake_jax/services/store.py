"""What the Service Provider remembers: its services and what happened to them, in one SQLite file.

Every change is on disk (write-ahead log, synchronous) before the caller goes on, so a Service
Provider that is killed at any moment finds all services again.
"""

import contextlib
import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from snake_jax.errors import UserError

# How a service can stand.
WAITING, RUNNING, ENDING = "waiting", "running", "ending"
FINISHED, FAILED, CANCELLED = "finished", "failed", "cancelled"
OVER = (FINISHED, FAILED, CANCELLED)
STATES = (WAITING, RUNNING, ENDING, *OVER)

_VERSION = 1
_SQL_TYPES = {int: "INTEGER", str: "TEXT", float: "REAL"}
Value: TypeAlias = int | str | float


class Service(NamedTuple):
    """A training service. Times are seconds since 1970; 0: not yet.

    Attributes:
      number: counted from 1, never used twice.
      name: what its owner calls it.
      owner: whose it is, for fair use.
      task: the command that it runs: classify or finetune.
      settings: that command's flags, a JSON object.
      slots: how many it takes while it runs.
      run_s: the most seconds that it may run in all; 0: no limit.
      restarts: how often it is started again after it was killed.
      state: one of `STATES`.
      wanted: in state `ending`, the state that it is to have once its process has ended.
      cause: why it is in this state, in a line.
      attempt: how often it was started.
      crashes: how often it was killed by something else than the Service Provider.
      pid: of its process; 0: none.
      process: tells that process from another one that has its pid later.
      registered_s: when it was registered.
      waiting_s: since when it waits, which is its place in the queue.
      started_s: when it was last started.
      told_s: when it was told to end.
      ended_s: when it ended for good.
      used_s: how long it ran in earlier turns.
      rounds: how many rounds were finished when it was last started.
    """

    number: int
    name: str
    owner: str
    task: str
    settings: str
    slots: int
    run_s: float
    restarts: int
    state: str = WAITING
    wanted: str = ""
    cause: str = ""
    attempt: int = 0
    crashes: int = 0
    pid: int = 0
    process: str = ""
    registered_s: float = 0.0
    waiting_s: float = 0.0
    started_s: float = 0.0
    told_s: float = 0.0
    ended_s: float = 0.0
    used_s: float = 0.0
    rounds: int = 0


class ServiceEvent(NamedTuple):
    """Something that happened to a service: when, what, and why."""

    number: int
    time_s: float
    event: str
    cause: str


class Store(NamedTuple):
    """The open file; one thread at a time uses it."""

    connection: sqlite3.Connection
    lock: threading.RLock


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Keeps a second Service Provider out of a root folder.

    Raises:
      UserError: another one has it.
    """
    descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"--root={root}: another Service Provider has it; give another folder, or end that"
            ) from error
        yield
    finally:
        os.close(descriptor)


def opened(file: Path) -> Store:
    """Opens the file, and makes it where it is not there.

    Raises:
      UserError: it is no such file, is damaged, or was written by another version.
    """
    try:
        connection = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
    except sqlite3.Error as error:
        raise UserError(f"{file}: {error}; give a --root that can be written") from error
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise UserError(
                f"{file} was written by another version of snake_jax ({version}, here {_VERSION}); "
                f"give another --root"
            )
        if version == 0:
            _make_tables(connection)
    except sqlite3.Error as error:
        connection.close()
        raise UserError(f"{file} is damaged ({error}); give another --root") from error
    except UserError:
        connection.close()
        raise
    return Store(connection, threading.RLock())


def close(store: Store) -> None:
    """Closes the file."""
    with store.lock:
        store.connection.close()


def add(store: Store, service: Service) -> Service:
    """Stores a new service; gives it back with its number, which its own is overwritten by."""
    columns = Service._fields[1:]
    marks = ", ".join("?" for _ in columns)
    statement = f"INSERT INTO services ({', '.join(columns)}) VALUES ({marks})"
    with store.lock:
        number = store.connection.execute(statement, service[1:]).lastrowid
    assert number is not None
    return service._replace(number=number)


def change(store: Store, service: Service, **values: Any) -> Service:
    """Stores new values of a service; gives it with them."""
    marks = ", ".join(f"{column} = ?" for column in values)
    statement = f"UPDATE services SET {marks} WHERE number = ?"
    with store.lock:
        store.connection.execute(statement, (*values.values(), service.number))
    return service._replace(**values)


def remove(store: Store, number: int) -> None:
    """Forgets a service and its events."""
    with store.lock:
        store.connection.execute("BEGIN")
        store.connection.execute("DELETE FROM events WHERE number = ?", (number,))
        store.connection.execute("DELETE FROM services WHERE number = ?", (number,))
        store.connection.execute("COMMIT")


def find(store: Store, number: int) -> Service | None:
    """The service of that number; None where there is none."""
    found = _services(store, "WHERE number = ?", (number,))
    return found[0] if found else None


def every(store: Store) -> list[Service]:
    """All services, by number."""
    return _services(store, "", ())


def active(store: Store) -> list[Service]:
    """Those that are not over, by number."""
    marks = ", ".join("?" for _ in OVER)
    return _services(store, f"WHERE state NOT IN ({marks})", OVER)


def tell(store: Store, event: ServiceEvent) -> None:
    """Stores an event."""
    with store.lock:
        store.connection.execute(
            "INSERT INTO events (number, time_s, event, cause) VALUES (?, ?, ?, ?)", event
        )


def events(store: Store, number: int) -> list[ServiceEvent]:
    """What happened to a service, in order."""
    statement = "SELECT number, time_s, event, cause FROM events WHERE number = ? ORDER BY id"
    with store.lock:
        rows = store.connection.execute(statement, (number,)).fetchall()
    return [ServiceEvent(*row) for row in rows]


def _services(store: Store, condition: str, values: Iterable[Value]) -> list[Service]:
    columns = ", ".join(Service._fields)
    statement = f"SELECT {columns} FROM services {condition} ORDER BY number"
    with store.lock:
        rows = store.connection.execute(statement, tuple(values)).fetchall()
    return [Service(*row) for row in rows]


def _make_tables(connection: sqlite3.Connection) -> None:
    columns = []
    for name, kind in Service.__annotations__.items():
        if name != "number":
            columns.append(f"{name} {_SQL_TYPES[kind]} NOT NULL")
    connection.execute("BEGIN")
    # AUTOINCREMENT: the number of a service that is gone is not given to another.
    connection.execute(
        f"CREATE TABLE services (number INTEGER PRIMARY KEY AUTOINCREMENT, {', '.join(columns)})"
    )
    connection.execute(
        "CREATE TABLE events (id INTEGER PRIMARY KEY, number INTEGER NOT NULL, "
        "time_s REAL NOT NULL, event TEXT NOT NULL, cause TEXT NOT NULL)"
    )
    connection.execute("CREATE INDEX events_of ON events (number)")
    connection.execute(f"PRAGMA user_version = {_VERSION}")
    connection.execute("COMMIT")
