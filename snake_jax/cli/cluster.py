"""One run of several processes: the hosts of a TPU slice or of a GPU cluster, or processes started
by hand.

  python -m experiments.finetune ... --distributed
  python -m experiments.finetune ... --coordinator_address=HOST:PORT --num_processes=2
  --process_id=0

The first form goes to every host: Cloud TPU, GKE, Slurm and Open MPI tell the processes where the
others are. The second is for processes started by hand, here with --process_id=1 for the other. All
get the same other flags.

The first process writes the workdir and prints, the others are silent. What ends one of them ends
all: one says why in a line, and all have its exit code. One that is killed outright is missed by
the others after the 100 s that jax waits for its heartbeat.
"""

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
from absl import flags
from jax._src import distributed  # the processes' common store of words has no public name

from snake_jax import processes
from snake_jax.cli import launch
from snake_jax.errors import UserError

flags.disclaim_key_flags()  # they belong to the launch that calls `define`

_BY_HAND = ("coordinator_address", "num_processes", "process_id")
_ENDED, _LOOK_S, _ANSWERED_S = "snake_jax/ended", 0.2, 0.5
_LAST_WORDS_MS, _LONGEST_WAIT_MS = 5_000, 7 * 24 * 3_600_000

_ONE_THREAD_ENDS = threading.Lock()


def define() -> None:
    """Defines the flags, with the names that `jax.distributed.initialize` has for them."""
    flags.DEFINE_bool(
        "distributed",
        False,
        "one of several processes that a cloud or scheduler known to jax started",
    )
    flags.DEFINE_string(
        "coordinator_address", "", "HOST:PORT of process 0, where processes are started by hand"
    )
    flags.DEFINE_integer("num_processes", None, "how many were started by hand", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "which of them this is, from 0", lower_bound=0)


def initialize() -> None:
    """Joins the other processes where flags say that there are some; comes before the first use of
    jax.

    Raises:
      UserError: the flags do not say how, or the others are not found.
    """
    values = {name: flags.FLAGS[name].value for name in _BY_HAND}
    given = {name: value for name, value in values.items() if value not in (None, "")}
    if not given and not flags.FLAGS["distributed"].value:
        return
    _check(given)
    jax.config.update(
        "jax_enable_preemption_service", False
    )  # it takes SIGTERM, which is for `preemption`
    try:
        jax.distributed.initialize(
            **given, cluster_detection_method="deactivate" if given else None
        )
    except ValueError as error:  # nothing in the environment names a cluster
        ways = ", ".join(f"--{name}" for name in _BY_HAND)
        raise UserError(
            f"--distributed: no cluster is known here ({error}); give {ways}"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"the other processes were not found: {error}") from error


def _check(given: dict[str, Any]) -> None:
    if not given:
        return
    if missing := [f"--{name}" for name in _BY_HAND if name not in given]:
        raise UserError(
            f"--{next(iter(given))} is given and {', '.join(missing)} not; all of them are needed"
        )
    address, count, number = given.values()
    if not address.rpartition(":")[2].isdecimal():
        raise UserError(f"--coordinator_address={address}: want HOST:PORT of process 0")
    if number >= count:
        raise UserError(f"--process_id={number}: --num_processes={count} are counted from 0")


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around all that a launch does: joins the other processes, if there are any, and shares their
    end.

    Raises:
      UserError: as `initialize`.
    """
    initialize()
    if not jax.distributed.is_initialized():
        yield
        return
    over = threading.Event()
    watch = threading.Thread(target=_end_with_others, args=(over,), daemon=True)
    watch.start()
    try:
        with contextlib.nullcontext() if processes.is_first() else _silent():
            yield
        _client().wait_at_barrier(
            "snake_jax/done", _LONGEST_WAIT_MS
        )  # the first may write for long after the others
    except BaseException as error:
        end_all(error)
    over.set()
    watch.join()
    jax.distributed.shutdown()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def end_all(error: BaseException) -> None:
    """Ends this process at once, from any of its threads, and has the others end, which may be
    waiting for it.

    Args:
      error: why; it is told of once, by the first process that ends.
    """
    line, code = launch.ending(error)
    with _ONE_THREAD_ENDS:
        if jax.distributed.is_initialized():
            try:
                _client().key_value_set(_ENDED, str(code))
            except jax.errors.JaxRuntimeError:  # another was faster
                _end(_code_of_all() or code)
        if line is None:
            traceback.print_exception(error)
        else:
            print(line, file=sys.stderr)
        _end(code)


def _end_with_others(over: threading.Event) -> None:
    """Looks whether another process has ended, until `over`; if so, ends this one wherever it
    is.
    """
    while not over.wait(_LOOK_S):
        if (code := _code_of_all()) is not None:
            with _ONE_THREAD_ENDS:  # it may be this process's own, whose line is being printed
                _end(code)


def _code_of_all() -> int | None:
    try:
        return int(_client().key_value_try_get(_ENDED))
    except jax.errors.JaxRuntimeError:  # not there
        return None


def _end(code: int) -> None:
    """At once: an orderly exit would wait for programs, and those for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    if (
        jax.distributed.is_initialized()
    ):  # the first process holds what they tell each other, so it leaves last
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # one that was killed never comes
            _client().wait_at_barrier("snake_jax/last words", _LAST_WORDS_MS)
        if processes.is_first():
            time.sleep(
                _ANSWERED_S
            )  # a process that has not had the barrier's answer when this ends is aborted by jax
    os._exit(code)


def _client() -> Any:
    return distributed.global_state.client
