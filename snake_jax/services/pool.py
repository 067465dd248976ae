"""The nodes that services share: a Ray cluster in a process beside the Service Provider.

That process (`pool_process`) starts the cluster or joins it, and notes which nodes it has. Like the
services it outlives the Service Provider and is found again; one that ended is replaced.
"""

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from snake_jax import pids
from snake_jax.engines import leases
from snake_jax.engines.leases import PoolEvent, PoolNode, Share, Wish
from snake_jax.pids import Process
from snake_jax.services import children
from snake_jax.services.admission import settings_of
from snake_jax.services.store import Service

_STARTED_AGAIN_S = 5.0
_ATTEMPT = re.compile(r"keeper_(\d+)")
_PROVIDER = "provider.json"
SHARE = "pool.json"
"""The file of a service's folder with its part in the pool."""


class Machines(NamedTuple):
    """Which nodes there are.

    Attributes:
      nodes: of a cluster that is started on this machine.
      address: of a cluster that is there; its nodes are where it has resources `pool_node_0`, ...
      resources: what a service takes of each node, as `--ray_resources` has it.
      without_tls: see `Choice`.
    """

    nodes: int = 0
    address: str = ""
    resources: str = ""
    without_tls: bool = False


class PoolState(NamedTuple):
    """The pool at a moment: its nodes, who has or wants them, and what happened."""

    nodes: list[PoolNode]
    wishes: list[Wish]
    events: list[PoolEvent]


class Pool:
    """The pool of a root folder. One thread at a time uses it, but for `state`."""

    def __init__(self, root: Path, machines: Machines) -> None:
        """Finds the pool's process, if it runs; starts none."""
        self._root, self._machines = root.resolve(), machines
        self._folder = self._root / "pool"
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._file = self._folder / "leases.sqlite"
        own = Process(os.getpid(), pids.started(os.getpid()))
        part = self._folder / "provider.part"
        part.write_text(json.dumps(own._asdict()))
        part.replace(self._folder / _PROVIDER)
        self._started_s = 0.0
        numbers = [_ATTEMPT.fullmatch(path.name) for path in self._folder.glob("keeper_*")]
        self._attempt = max((int(found[1]) for found in numbers if found), default=0)
        self._process = Process(0, "")
        if self._attempt:
            self._process = children.of_attempt(self._folder, self._attempt)

    def step(self, environment: Mapping[str, str]) -> None:
        """Starts the pool's process where there is none."""
        now = time.time()
        if children.is_alive(self._process) or now - self._started_s < _STARTED_AGAIN_S:
            return
        self._attempt, self._started_s = self._attempt + 1, now
        asked = json.dumps(self._machines._asdict())
        words = [*program(), os.fspath(self._root), str(self._attempt), asked]
        self._process = children.start(self._folder, self._attempt, words, environment)

    def is_up(self) -> bool:
        """Whether services can join it."""
        return children.is_alive(self._process) and self._address_file().exists()

    def admit(self, service: Service, folder: Path) -> list[str]:
        """Notes a service's part; gives the flags that make its command use it.

        Args:
          service: that is about to start.
          folder: of it.
        """
        share = Share(os.fspath(self._file), service.number, service.owner, self._attempt)
        (folder / SHARE).write_text(json.dumps(share._asdict()))
        words = [
            "--engine=ray",
            f"--ray_address={self._address_file().read_text()}",
            f"--ray_pool={folder.resolve() / SHARE}",
        ]
        if self._machines.resources:
            words.append(f"--ray_resources={self._machines.resources}")
        if self._machines.without_tls:
            words.append("--ray_without_tls")
        return words

    def is_lost(self, folder: Path) -> bool:
        """Whether a service's part is in a pool that has ended since."""
        with contextlib.suppress(FileNotFoundError):
            share = Share(**json.loads((folder / SHARE).read_text()))
            return share.attempt != self._attempt or not children.is_alive(self._process)
        return False

    def state(self) -> PoolState:
        """Nodes, leases and events."""
        table = leases.opened(self._file)
        try:
            return PoolState(
                leases.nodes_of(table), leases.wishes_of(table), leases.events_of(table)
            )
        finally:
            table.close()

    def _address_file(self) -> Path:
        return self._folder / f"address_{self._attempt}"


def program() -> list[str]:
    """The program of the pool's process."""
    return [sys.executable, "-m", "snake_jax.services.pool_process"]


def provider_of(root: Path) -> Process:
    """The Service Provider that last had a root folder's pool."""
    return Process(**json.loads((root / "pool" / _PROVIDER).read_text()))


def is_for(service: Service) -> bool:
    """Whether a service's nodes are the pool's: it did not ask for the engine of one process."""
    return settings_of(service.settings).get("engine", "ray") == "ray"
