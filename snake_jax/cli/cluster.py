"""One run of several processes: hosts of a TPU slice or GPU cluster, or started by hand.

  snake-jax finetune ... --distributed
  snake-jax finetune ... --coordinator_address=HOST:PORT --num_processes=2 --process_id=0

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
from absl.flags import FlagValues

# The processes' common store of words has no public name.
from jax._src import distributed

from snake_jax import processes
from snake_jax.cli import launch
from snake_jax.errors import UserError

_BY_HAND = ("coordinator_address", "num_processes", "process_id")
_ENDED, _LOOK_S, _ANSWERED_S = "snake_jax/ended", 0.2, 0.5
_LAST_WORDS_MS, _LONGEST_WAIT_MS = 5_000, 7 * 24 * 3_600_000

_ONE_THREAD_ENDS = threading.Lock()


def initialize(flags: FlagValues) -> None:
    """Joins the other processes, where flags say that there are some.

    Comes before the first use of jax.

    Raises:
      UserError: the flags do not say how, or the others are not found.
    """
    given: dict[str, Any] = {}
    for name in _BY_HAND:
        if flags[name].value not in (None, ""):
            given[name] = flags[name].value
    if not given and not flags.distributed:
        return
    _check(given)
    # jax's own service takes SIGTERM, which is for `preemption`.
    jax.config.update("jax_enable_preemption_service", False)
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
    missing = [f"--{name}" for name in _BY_HAND if name not in given]
    if missing:
        raise UserError(
            f"--{next(iter(given))} is given and {', '.join(missing)} not; all of them are needed"
        )
    address, count, number = given.values()
    if not address.rpartition(":")[2].isdecimal():
        raise UserError(f"--coordinator_address={address}: want HOST:PORT of process 0")
    if number >= count:
        raise UserError(f"--process_id={number}: --num_processes={count} are counted from 0")


@contextlib.contextmanager
def together(flags: FlagValues) -> Iterator[None]:
    """Around all that a launch does: joins the other processes, if any, and shares their end.

    Raises:
      UserError: as `initialize`.
    """
    initialize(flags)
    if not jax.distributed.is_initialized():
        yield
        return
    over = threading.Event()
    watch = threading.Thread(target=_end_with_others, args=(over,), daemon=True)
    watch.start()
    try:
        with contextlib.nullcontext() if processes.is_first() else _silent():
            yield
        # The first may write for long after the others.
        _client().wait_at_barrier("snake_jax/done", _LONGEST_WAIT_MS)
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
    """Ends this process at once, from any of its threads, and has the others end.

    They may be waiting for it.

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
    """Looks whether another process has ended, until `over`; if so, ends this one at once."""
    while not over.wait(_LOOK_S):
        code = _code_of_all()
        if code is not None:
            # It may be this process's own, whose line is being printed.
            with _ONE_THREAD_ENDS:
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
    if jax.distributed.is_initialized():
        # The first process holds what they tell each other, so it leaves last. One that was killed
        # never comes to the barrier.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            _client().wait_at_barrier("snake_jax/last words", _LAST_WORDS_MS)
        if processes.is_first():
            # A process that has not had the barrier's answer when this ends is aborted by jax.
            time.sleep(_ANSWERED_S)
    os._exit(code)


def _client() -> Any:
    return distributed.global_state.client
