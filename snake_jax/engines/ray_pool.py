"""The engine of processes on nodes that several runs share.

Every run has actors of its own at the nodes of a pool, so that its data, layers and programs stay
warm there. Before a visit it takes a lease of the node (`leases`), and it gives it back when the
outcome is here or the visit is lost: so a node carries out one visit at a time, of whichever run.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ray

from snake_jax import pids
from snake_jax.algorithms.visits import Lost, Order, Outcome, Visit
from snake_jax.engines import leases
from snake_jax.engines.choice import Choice
from snake_jax.engines.compiled_ahead import StandIn
from snake_jax.engines.contract import Engine, Holdings
from snake_jax.engines.leases import RESOURCE, Wish
from snake_jax.engines.ray_engine import RayEngine
from snake_jax.engines.ray_node import Build
from snake_jax.engines.ray_values import Sending
from snake_jax.errors import UserError

_LOOK_S = 0.02  # between two questions for a node that another run has
_PRESENCE = 0.001  # of a node's resource: what an actor takes of it, to be where it is


class _Waiting(NamedTuple):
    """An order that was submitted and has no lease yet, and what it names versions of."""

    order: Order
    holdings: Holdings


class PooledEngine(RayEngine):
    """See `contract.Engine`. Actor a is on a node of the pool, and so are its visits."""

    def __init__(
        self,
        nodes: int,
        build: Callable[[Sequence[int]], Build],
        scorer: Engine,
        sending: Sending,
        choice: Choice,
        stand_in: StandIn,
    ) -> None:
        """See `RayEngine`.

        Raises:
          UserError: the cluster has no nodes of a pool, or it is not said what a run takes of them.
        """
        self._share = leases.read_share(choice.pool)
        self._table = leases.opened(Path(self._share.file))
        self._process = os.getpid(), pids.started(os.getpid())
        self._pool_nodes: dict[int, int] = {}
        self._leased: dict[int, Visit] = {}
        self._waiting: list[_Waiting] = []
        self._taken = choice.resources
        self._named, self._told = Holdings({}), Holdings({})
        there = sum(1 for node in leases.nodes_of(self._table) if node.alive)
        choice = choice._replace(actors=min(nodes, max(there, 1)))
        super().__init__(nodes, build, scorer, sending, choice, stand_in)

    def _placed(self, number: int) -> dict[str, Any]:
        """The options of an actor that is on a node of the pool; services begin at unlike ones."""
        offered = ray.cluster_resources()
        there = leases.present(offered)
        if not there:
            raise UserError(
                f"--ray_pool={self._share.file}: the cluster has no nodes of a pool, which are the "
                f"resources {RESOURCE}0, {RESOURCE}1, ...; start them with `ray start --resources`"
            )
        if offered.get("GPU") and not self._taken:
            raise UserError(
                "--ray_resources: say what share of a node's accelerator a service takes, as "
                "GPU=0.25: others have their processes there too"
            )
        node = there[(number + self._share.service) % len(there)]
        self._pool_nodes[number] = node
        resources = {**self._options["resources"], f"{RESOURCE}{node}": _PRESENCE}
        return {**self._options, "resources": resources}

    def hold(self, holdings: Holdings) -> None:
        """See `contract.Engine`; orders that wait keep what they named."""
        self._named = holdings

    def submit(self, order: Order) -> None:
        """Takes an order; it is sent once its node is this run's. Never waits."""
        self._waiting.append(_Waiting(order, self._named))
        self._send()

    def next(self, timeout_s: float | None = None) -> Outcome | Lost | None:
        """The next outcome; see `contract.Engine`."""
        end_s = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._send()
            left_s = max(end_s - time.monotonic(), 0.0)
            if self._waiting:
                left_s = min(left_s, _LOOK_S)
            found = super().next(None if left_s == float("inf") else left_s)
            if isinstance(found, Outcome | Lost):
                self._give_back(found.visit)
            if found is not None or not self._waiting or time.monotonic() >= end_s:
                return found
            if not self._leased:
                # Nothing is under way, so nothing waited for it.
                time.sleep(left_s)

    def close(self) -> None:
        """Gives back all nodes, and ends the actors."""
        for node in {*self._leased, *self._pool_nodes.values()}:
            leases.give_back(self._table, self._share.service, node)
        self._leased.clear()
        self._waiting.clear()
        super().close()
        self._table.close()

    def _send(self) -> None:
        """Sends the orders whose nodes are this run's now: at each node those that came first."""
        self._fill()
        asked = set(self._leased)
        for waiting in list(self._waiting):
            node = self._pool_nodes[waiting.order.visit.node % len(self._workers)]
            if node in asked:
                continue
            asked.add(node)
            if not leases.ask(self._table, self._wish(node, waiting.order.visit)):
                continue
            self._waiting.remove(waiting)
            self._leased[node] = waiting.order.visit
            if self._told is not waiting.holdings:
                self._told = waiting.holdings
                super().hold(waiting.holdings)
            super().submit(waiting.order)

    def _wish(self, node: int, visit: Visit) -> Wish:
        now, layers = time.time(), json.dumps(list(visit.layers))
        share = self._share
        return Wish(node, share.service, share.owner, *self._process, visit.turn, layers, now, now)

    def _give_back(self, visit: Visit) -> None:
        """Ends the lease for a visit that is over."""
        for node, leased in list(self._leased.items()):
            if leased is visit or leased == visit:
                del self._leased[node]
                leases.give_back(self._table, self._share.service, node)
