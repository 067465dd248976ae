"""A Ray cluster, as a run uses it: joined or started, what actors take of it, and their end."""

import contextlib
import importlib
import logging
import os
import signal
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ray

from snake_jax.engines import ray_tls
from snake_jax.engines.choice import Choice
from snake_jax.engines.ray_node import Opened, Surroundings, surroundings
from snake_jax.errors import UserError

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    # A host that is gone is seen after about 3 s, not after 15.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
}


@contextlib.contextmanager
def cluster(choice: Choice, offers: Mapping[str, float] | None = None) -> Iterator[None]:
    """Joins the cluster, or starts one on this machine; leaves or ends it afterwards.

    Within another of these it does nothing.

    Args:
      choice: of the engine.
      offers: resources by name of a cluster that is started here, beside those of the machine.

    Raises:
      UserError: no cluster answers, Ray does not start, or others could listen.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    ray_tls.check_address(choice)
    if ray_tls.has_token():
        _use_token()
    if ":" in choice.address:
        ray_tls.check_server(choice.address)
    own: dict[str, Any] = {}
    if not choice.address:
        own = {"include_dashboard": False, "resources": dict(offers or {})}
    try:
        with warnings.catch_warnings():
            # Ray forks to start its services; where jax has threads by then it says so.
            warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")
            ray.init(
                address=choice.address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                **own,
            )
    except (ConnectionError, ValueError) as error:
        raise UserError(
            f"--ray_address={choice.address}: no Ray cluster answers there ({error}); start one "
            "with `ray start --head`, or leave --ray_address out"
        ) from error
    # Ray has no class of its own for a start that fails: a daemon of its that does not come up is a
    # bare Exception, with the reason in its logs alone.
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--engine=ray: Ray did not start ({reason}); why is in /tmp/ray/session_latest/logs"
        ) from error
    # Ray prints a paragraph about every process that ends, which has no switch. What is lost is
    # said in a line of ours.
    logs: Any = importlib.import_module("ray._private.worker")
    before, logs._worker_logs_enabled = logs._worker_logs_enabled, False
    try:
        # `auto` names no machine, and a cluster here may have nodes elsewhere.
        ray_tls.check_machines(choice, _machines())
        yield
    finally:
        logs._worker_logs_enabled = before
        ray.shutdown()


def _use_token() -> None:
    """Has Ray show its token to a cluster that is named by its address, too."""
    os.environ["RAY_AUTH_MODE"] = "token"
    # Ray has read its settings when it was imported.
    importlib.import_module("ray._raylet").Config.initialize("")


def _machines() -> list[str]:
    """The addresses of the cluster's machines."""
    return [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]


def placed(nodes: int, choice: Choice) -> tuple[int, dict[str, Any]]:
    """How many actors, and Ray's options for each: what they take of the cluster.

    Args:
      nodes: that they play.
      choice: of the engine.

    Raises:
      UserError: the cluster has not that.
    """
    there = ray.cluster_resources()
    taken = {name: number for name, number in choice.resources.items() if number}
    if not taken and there.get("GPU"):
        taken = {"GPU": 1.0}

    # What can never be had would be waited for without end.
    fit = max(nodes, choice.actors)
    for name, number in taken.items():
        fit = min(fit, int(there.get(name, 0.0) // number))
    if fit < max(choice.actors, 1):
        asked = ",".join(f"{name}={number:g}" for name, number in taken.items())
        offers = ", ".join(f"{name} {number:g}" for name, number in sorted(there.items()))
        raise UserError(
            f"--ray_resources={asked}: the cluster has that {fit} times, for "
            f"{max(choice.actors, 1)} processes; ask for less, or for fewer with --ray_actors. It "
            f"offers {offers}"
        )
    count = choice.actors
    if not count:
        count = fit if taken else max(int(there.get("CPU", 1.0)), 1)

    options: dict[str, Any] = {"scheduling_strategy": "SPREAD", "resources": {}}
    named = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    for name, number in taken.items():
        if name in named:
            options[named[name]] = number
        else:
            options["resources"][name] = number
    return min(nodes, count), options


@contextlib.contextmanager
def kept_programs() -> Iterator[Surroundings]:
    """What actors take over; those of one machine share compiled programs, so that the one that
    takes over for another need not compile.
    """
    kept = jax.config.values["jax_compilation_cache_dir"]
    if kept or len(ray.nodes()) > 1:
        yield surroundings()
        return
    with tempfile.TemporaryDirectory(prefix="snake_jax-", ignore_cleanup_errors=True) as folder:
        yield surroundings(
            jax_compilation_cache_dir=folder, jax_persistent_cache_min_compile_time_secs=0.0
        )


def kill(actor: Any, about: Opened | None) -> None:
    """Ends an actor's process, also one that is stopped and hears nothing.

    Args:
      actor: of Ray.
      about: what it said of itself; None: nothing yet.
    """
    ray.kill(actor, no_restart=True)
    here = ray.get_runtime_context().get_node_id()
    if about is not None and about.host == here:
        with contextlib.suppress(ProcessLookupError):
            os.kill(about.pid, signal.SIGKILL)


def has_process(actor: Any) -> bool:
    """Whether an actor has a process; False: none yet, as where no machine has room for it."""
    state: Any = importlib.import_module("ray._private.state")
    return bool(state.actors(actor._actor_id.hex())["State"] == "ALIVE")
