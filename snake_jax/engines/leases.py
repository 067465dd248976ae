"""Leases of a pool's nodes: which run may have a node carry out a visit now.

Runs of one machine share the nodes of a Ray cluster. Each asks for a node before a visit and gives
it back after it, so a node serves one visit at a time, of whichever run. What they agree on is one
SQLite file. A lease is a process's: it ends with it, however that ends.
"""

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from snake_jax import pids
from snake_jax.errors import UserError
from snake_jax.pids import Process

RESOURCE = "pool_node_"
"""Of Ray: node 3 of the pool is where the resource `pool_node_3` is."""
STALE_S = 10.0
"""A run that has not asked for so long is passed over until it asks again."""
_RENEWED_S = 1.0
_PATIENCE_S = 60.0
_TABLES = """
CREATE TABLE IF NOT EXISTS wishes (
  node INTEGER NOT NULL, service INTEGER NOT NULL, owner TEXT NOT NULL, pid INTEGER NOT NULL,
  process TEXT NOT NULL, turn INTEGER NOT NULL, layers TEXT NOT NULL, since_s REAL NOT NULL,
  seen_s REAL NOT NULL, granted_s REAL NOT NULL, PRIMARY KEY (node, service));
CREATE TABLE IF NOT EXISTS served (
  node INTEGER NOT NULL, owner TEXT NOT NULL, last_s REAL NOT NULL, PRIMARY KEY (node, owner));
CREATE TABLE IF NOT EXISTS nodes (
  node INTEGER PRIMARY KEY, host TEXT NOT NULL, alive INTEGER NOT NULL, since_s REAL NOT NULL,
  visits INTEGER NOT NULL DEFAULT 0, busy_s REAL NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS events (
  id INTEGER PRIMARY KEY, time_s REAL NOT NULL, node INTEGER NOT NULL, event TEXT NOT NULL,
  cause TEXT NOT NULL);
"""


class Share(NamedTuple):
    """A run's part in a pool, as a JSON file tells it.

    Attributes:
      file: of the leases.
      service: the number of the run.
      owner: whose it is: owners take turns.
      attempt: of the pool: how often it was started.
    """

    file: str
    service: int
    owner: str
    attempt: int


class Wish(NamedTuple):
    """For a node, of a run's visit; with a lease once it is granted. Times: seconds since 1970.

    Attributes:
      node: of the pool.
      service: the number of the run.
      owner: whose run it is.
      pid: of the run's process.
      process: tells that process from a later one of the same pid.
      turn: of the visit.
      layers: that it trains, a JSON list.
      since_s: when the node was first asked for.
      seen_s: when it was last asked for.
      granted_s: when it was given; 0: not yet.
    """

    node: int
    service: int
    owner: str
    pid: int
    process: str
    turn: int
    layers: str
    since_s: float
    seen_s: float
    granted_s: float = 0.0


class PoolNode(NamedTuple):
    """A node of the pool.

    Attributes:
      node: its number.
      host: of the machine that it is on.
      alive: whether it is there; 0 or 1.
      since_s: when it was last found to have come or gone, in seconds since 1970.
      visits: that it served.
      busy_s: seconds that it was leased for.
    """

    node: int
    host: str
    alive: int
    since_s: float
    visits: int
    busy_s: float


class PoolEvent(NamedTuple):
    """Something that happened to a node of the pool: when, what, and why."""

    time_s: float
    node: int
    event: str
    cause: str


def read_share(file: str) -> Share:
    """A run's part in a pool.

    Raises:
      UserError: the file is not there, or is none.
    """
    try:
        return Share(**json.loads(Path(file).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"--ray_pool={file}: no file of a Service Provider's ({error}); snake-jax serve writes "
            "it, leave the flag out"
        ) from error


def opened(file: Path) -> sqlite3.Connection:
    """Opens the file of the leases, and makes it where it is not there.

    Nothing in it needs to outlive the machine, so writes wait for no disk.
    """
    connection = sqlite3.connect(
        file, timeout=_PATIENCE_S, check_same_thread=False, isolation_level=None
    )
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=OFF")
    connection.executescript(_TABLES)
    return connection


def first(wishes: Sequence[Wish], served: Mapping[str, float], now: float) -> Wish | None:
    """Who gets a free node: of the owner who had it least lately, and of those the run that has
    waited longest. So owners take turns at every node, and no run waits for ever.

    Args:
      wishes: for that node.
      served: when each owner last had it.
      now: seconds since 1970.
    """
    asking = [wish for wish in wishes if now - wish.seen_s < STALE_S]
    return min(
        asking,
        key=lambda wish: (served.get(wish.owner, 0.0), wish.since_s, wish.service),
        default=None,
    )


def ask(connection: sqlite3.Connection, wish: Wish) -> bool:
    """Asks for a node, once more where it was asked for before; whether it is this run's now.

    Args:
      connection: to the leases.
      wish: since when it is asked for is noted at the first time.
    """
    with _transaction(connection):
        wishes = _living(connection, wish.node)
        own = [one for one in wishes if one.service == wish.service]
        if not own:
            _insert(connection, wish)
            wishes.append(wish)
        elif wish.seen_s - own[0].seen_s > _RENEWED_S:
            connection.execute(
                "UPDATE wishes SET seen_s = ? WHERE node = ? AND service = ?",
                (wish.seen_s, wish.node, wish.service),
            )
        if any(one.granted_s for one in wishes):
            return False
        rows = connection.execute("SELECT owner, last_s FROM served WHERE node = ?", (wish.node,))
        # What this very call says is news to the list.
        asking = [one for one in wishes if one.service != wish.service]
        since_s = own[0].since_s if own else wish.since_s
        chosen = first([*asking, wish._replace(since_s=since_s)], dict(rows), wish.seen_s)
        if chosen is None or chosen.service != wish.service:
            return False
        connection.execute(
            "UPDATE wishes SET granted_s = ?, turn = ?, layers = ? WHERE node = ? AND service = ?",
            (wish.seen_s, wish.turn, wish.layers, wish.node, wish.service),
        )
        connection.execute(
            "INSERT OR REPLACE INTO served (node, owner, last_s) VALUES (?, ?, ?)",
            (wish.node, wish.owner, wish.seen_s),
        )
    return True


def give_back(connection: sqlite3.Connection, service: int, node: int) -> None:
    """Ends a run's lease of a node, or its wish for it."""
    condition, values = "WHERE node = ? AND service = ?", (node, service)
    with _transaction(connection):
        found = connection.execute(f"SELECT granted_s FROM wishes {condition}", values).fetchone()
        if found is not None and found[0]:
            connection.execute(
                "UPDATE nodes SET visits = visits + 1, busy_s = busy_s + ? WHERE node = ?",
                (time.time() - found[0], node),
            )
        connection.execute(f"DELETE FROM wishes {condition}", values)


def wishes_of(connection: sqlite3.Connection) -> list[Wish]:
    """All leases and wishes of processes that run, those that came first first."""
    columns = ", ".join(Wish._fields)
    rows = connection.execute(f"SELECT {columns} FROM wishes ORDER BY since_s, service").fetchall()
    return [wish for wish in map(Wish._make, rows) if _is_alive(wish)]


def nodes_of(connection: sqlite3.Connection) -> list[PoolNode]:
    """The nodes of the pool that there were since the file was made, by number."""
    columns = ", ".join(PoolNode._fields)
    rows = connection.execute(f"SELECT {columns} FROM nodes ORDER BY node").fetchall()
    return [PoolNode(*row) for row in rows]


def events_of(connection: sqlite3.Connection) -> list[PoolEvent]:
    """What happened to the nodes of the pool, in order."""
    rows = connection.execute("SELECT time_s, node, event, cause FROM events ORDER BY id")
    return [PoolEvent(*row) for row in rows.fetchall()]


def note(connection: sqlite3.Connection, hosts: Mapping[int, str], cause: str) -> None:
    """Notes which nodes there are, and tells of those that came and went.

    Args:
      connection: to the leases.
      hosts: of the nodes that are there.
      cause: of a change.
    """
    now = time.time()
    with _transaction(connection):
        known = {one.node: one for one in nodes_of(connection)}
        for node in sorted(set(hosts) | set(known)):
            before, host = known.get(node), hosts.get(node)
            was = before.host if before is not None and before.alive else None
            if host == was:
                continue
            connection.execute(
                "INSERT INTO nodes (node, host, alive, since_s) VALUES (?, ?, ?, ?) ON CONFLICT "
                "(node) DO UPDATE SET host = excluded.host, alive = excluded.alive, "
                "since_s = excluded.since_s",
                (node, host or was, int(host is not None), now),
            )
            event = "gone" if host is None else "joined"
            connection.execute(
                "INSERT INTO events (time_s, node, event, cause) VALUES (?, ?, ?, ?)",
                (now, node, event, f"{cause}: {host or was}"),
            )


def present(resources: Mapping[str, float]) -> list[int]:
    """The nodes of the pool that a cluster has, by what it offers."""
    found = []
    for name, number in resources.items():
        text = name.removeprefix(RESOURCE)
        if text != name and text.isdecimal() and number > 0:
            found.append(int(text))
    return sorted(found)


def _is_alive(wish: Wish) -> bool:
    return pids.is_alive(Process(wish.pid, wish.process))


def _living(connection: sqlite3.Connection, node: int) -> list[Wish]:
    """The wishes for a node; those of processes that ended are forgotten."""
    columns = ", ".join(Wish._fields)
    rows = connection.execute(f"SELECT {columns} FROM wishes WHERE node = ?", (node,)).fetchall()
    living = []
    for wish in map(Wish._make, rows):
        if _is_alive(wish):
            living.append(wish)
        else:
            connection.execute(
                "DELETE FROM wishes WHERE node = ? AND service = ?", (node, wish.service)
            )
    return living


def _insert(connection: sqlite3.Connection, wish: Wish) -> None:
    marks = ", ".join("?" for _ in wish)
    columns = ", ".join(Wish._fields)
    connection.execute(f"INSERT INTO wishes ({columns}) VALUES ({marks})", wish)


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """What happens in here happens at once, and beside no other's."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
