"""The process of a pool: `python -m snake_jax.services.pool_process ROOT ATTEMPT MACHINES`.

Starts or joins the pool's cluster, writes its address to `ROOT/pool/address_ATTEMPT`, and notes
which nodes it has, every second, in the file of the leases. It ends when neither a Service Provider
nor a service of the root folder is there any more. MACHINES is a JSON object of `pool.Machines`.
"""

import json
import signal
import sys
import time
from pathlib import Path

import ray

from snake_jax.engines import leases
from snake_jax.engines.choice import Choice
from snake_jax.engines.leases import RESOURCE
from snake_jax.engines.ray_cluster import cluster
from snake_jax.errors import UserError
from snake_jax.pids import Process, is_alive
from snake_jax.services import store
from snake_jax.services.pool import Machines, provider_of

_LOOK_S = 1.0
_ALONE_S = 20.0
"""A Service Provider that is started again within this finds the pool as it was."""


def main() -> None:
    """Until it is told to end, or nobody is left."""
    root, attempt, machines = Path(sys.argv[1]), sys.argv[2], Machines(**json.loads(sys.argv[3]))
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    offers = {f"{RESOURCE}{node}": 1.0 for node in range(machines.nodes)}
    choice = Choice("ray", machines.address, without_tls=machines.without_tls)
    try:
        with cluster(choice, offers):
            table = leases.opened(root / "pool" / "leases.sqlite")
            leases.note(table, _hosts(), f"the pool was started (attempt {attempt})")
            address = root / "pool" / f"address_{attempt}"
            part = address.with_suffix(".part")
            part.write_text(machines.address or ray.get_runtime_context().gcs_address)
            part.replace(address)
            alone_since = time.monotonic()
            while not told and time.monotonic() - alone_since < _ALONE_S:
                time.sleep(_LOOK_S)
                leases.note(table, _hosts(), "the cluster says so")
                if _is_needed(root):
                    alone_since = time.monotonic()
            leases.note(table, {}, "the pool has ended")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _hosts() -> dict[int, str]:
    """The machines of the pool's nodes, by number."""
    hosts = {}
    for machine in ray.nodes():
        if machine["Alive"]:
            for node in leases.present(machine["Resources"]):
                hosts[node] = machine["NodeManagerHostname"]
    return hosts


def _is_needed(root: Path) -> bool:
    """Whether a Service Provider has the root folder, or a service runs in it."""
    if is_alive(provider_of(root)):
        return True
    known = store.opened(root / "services.sqlite")
    try:
        active = store.active(known)
    finally:
        store.close(known)
    return any(is_alive(Process(service.pid, service.process)) for service in active)


if __name__ == "__main__":
    main()
