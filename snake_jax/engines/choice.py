"""Which engine carries out a run: how a launch names it, and what it cannot do.

Engines are found by name, and what they need is imported when they are asked for. Which one it is
decides where nodes are, and no number of a run.
"""

import contextlib
import importlib
import importlib.util
from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple

import jax

from snake_jax.algorithms.base import Algorithm, all_on_node
from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.config import RunConfig, TextConfig
from snake_jax.errors import UserError

LOCAL, RAY = "local", "ray"
ENGINES = (LOCAL, RAY)
# Flags of what only processes have, by the attribute of `Choice`.
_OF_RAY = {
    "address": "ray_address",
    "actors": "ray_actors",
    "resources": "ray_resources",
    "stall_s": "ray_stall_s",
    "visit_deadline_s": "visit_deadline_s",
    "pool": "ray_pool",
    "without_tls": "ray_without_tls",
}
_MODULES = {RAY: "snake_jax.engines.ray_engine"}
_POOLED = "snake_jax.engines.ray_pool"


class Choice(NamedTuple):
    """An engine, and where its nodes are.

    Attributes:
      name: one of `ENGINES`.
      address: of a Ray cluster that is there, `auto` or HOST:PORT; empty: one is started on this
        machine, and ended with the run.
      actors: how many processes the nodes share; 0: as many as the cluster has cores, a node each
        at most.
      resources: what each of them takes of the cluster, by Ray's names; empty: a GPU each where
        there are some.
      deadline_s: seconds without a heart-beat after which a node that works counts as lost.
      stall_s: seconds in which a node that works does no further step, after which it counts as
        lost; 0: however long.
      visit_deadline_s: seconds that a visit may take; 0: any.
      pool: a file of a Service Provider's: the run's part in nodes that it shares with others;
        empty: they are its own.
      without_tls: whether a cluster of several machines may speak without TLS and a token.
    """

    name: str = LOCAL
    address: str = ""
    actors: int = 0
    resources: Mapping[str, float] = {}
    deadline_s: float = 5.0
    stall_s: float = 0.0
    visit_deadline_s: float = 0.0
    pool: str = ""
    without_tls: bool = False


HERE = Choice()


def resources(text: str) -> dict[str, float]:
    """`GPU=1,NAME=0.5` as numbers by name.

    Raises:
      UserError: it is not of that form.
    """
    found: dict[str, float] = {}
    for word in filter(None, text.split(",")):
        name, _, number = word.partition("=")
        try:
            found[name.strip()] = float(number)
        except ValueError:
            found[name.strip()] = -1.0
        if not name.strip() or found[name.strip()] < 0:
            raise UserError(
                f"--ray_resources={text}: want NAME=NUMBER, comma-separated, as CPU=1,GPU=0.5"
            )
    return found


def check(choice: Choice, config: RunConfig, algorithm: Algorithm | None = None) -> None:
    """Refuses what the engine cannot do, before anything is read or started.

    Args:
      choice: of the engine.
      config: of the run.
      algorithm: its method; None: the one that the configuration names.

    Raises:
      UserError: there is something.
    """
    if choice.name == LOCAL:
        for name, flag in _OF_RAY.items():
            if getattr(choice, name):
                raise UserError(f"--{flag} is for --engine={RAY}; say that too")
        return
    flag, algorithm = f"--engine={choice.name}", algorithm or ALGORITHMS.get(config.algorithm)
    if algorithm is not None and algorithm.chain is not all_on_node:
        whole = [name for name, other in ALGORITHMS.items() if other.chain is all_on_node]
        raise UserError(
            f"{flag}: --algorithm={algorithm.name} trains all sides of its cuts in one program, "
            f"which lies in one process; say --engine={LOCAL}, or one of {', '.join(whole)}"
        )
    if config.executor != "loop":
        raise UserError(
            f"{flag}: its nodes train side by side in processes; leave "
            f"--executor={config.executor} out"
        )
    if config.evaluate_nodes:
        raise UserError(
            f"{flag}: what nodes hold out stays with them, and they train only; leave "
            f"--evaluate_nodes={config.evaluate_nodes} out"
        )
    if isinstance(config, TextConfig) and config.mesh:
        raise UserError(f"{flag}: a node has the devices of its process; leave --mesh out")
    if jax.distributed.is_initialized():
        raise UserError(
            f"{flag}: one process runs the rounds and Ray starts the others; leave "
            "--distributed and --coordinator_address out"
        )
    if importlib.util.find_spec(choice.name) is None:
        raise UserError(f"{flag} needs Ray, which is not installed: pip install 'snake-jax[ray]'")


def room(choice: Choice) -> ModuleType:
    """The module of an engine that is not this process's own."""
    return importlib.import_module(_MODULES[choice.name])


def pooled_room() -> ModuleType:
    """The module of the engine whose nodes several runs share."""
    return importlib.import_module(_POOLED)


def around(choice: Choice) -> contextlib.AbstractContextManager[None]:
    """Around all that a launch does: joins the engine's cluster, or starts one and ends it.

    Comes before the first use of jax, since processes are forked.

    Raises:
      UserError: no cluster answers.
    """
    if choice.name == LOCAL:
        return contextlib.nullcontext()
    return room(choice).cluster(choice)
