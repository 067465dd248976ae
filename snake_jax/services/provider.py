"""The Service Provider: takes services, starts them on slots, watches them, and ends them.

A service runs as a process of its own in a folder of its own, `ROOT/services/NUMBER/run`, and keeps
every round there. So whatever is killed, the service or the Service Provider, goes on with the same
bits: a service that still runs when a Service Provider starts is watched again, one that does not
is started again.
"""

import contextlib
import json
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from snake_jax.errors import UserError
from snake_jax.pids import Process
from snake_jax.services import admission, children, results, store, turns
from snake_jax.services.credentials import TOKEN_VARIABLE
from snake_jax.services.pool import Pool, PoolState, is_for
from snake_jax.services.store import (
    CANCELLED,
    ENDING,
    FAILED,
    OVER,
    RUNNING,
    WAITING,
    Service,
    ServiceEvent,
)
from snake_jax.services.terms import NotThere, Offer, ServiceProgress, ServiceTerms, WrongState

LOOK_S = 0.2  # between two looks at the processes
_KILLED_AFTER_S = 10.0  # beyond the grace that a process has after it was told to end
_MOST_ACTIVE = 1000

Words = Callable[[Service, Path], Sequence[str]]
"""The program and arguments that a service is, given its run folder."""


class Provider:
    """The Service Provider of a root folder, of which there is one at a time."""

    def __init__(self, root: Path, offer: Offer, words: Words) -> None:
        """Opens the root folder, and makes it where it is not there.

        Raises:
          UserError: it cannot be written, or another Service Provider has it.
        """
        self.offer = offer
        self._root, self._words = root, words
        self._deciding = threading.RLock()
        self._counts: dict[int, ServiceProgress] = {}
        with contextlib.ExitStack() as stack:
            try:
                (root / "services").mkdir(parents=True, exist_ok=True, mode=0o700)
                stack.enter_context(store.locked(root))
            except OSError as error:
                raise UserError(
                    f"--root={root}: {error.strerror or error}; give a folder that can be written"
                ) from error
            self._store = store.opened(root / "services.sqlite")
            stack.callback(store.close, self._store)
            self._open = stack.pop_all()
        self._pool = Pool(root, offer.machines) if offer.machines else None
        self._take_up()

    def register(self, asked: ServiceTerms) -> Service:
        """Takes a service; it waits for its slots.

        Raises:
          UserError: what it asks for is wrong, not allowed, or more than there is.
        """
        if asked.slots > self.offer.slots:
            raise UserError(
                f"requirements: {asked.slots} slots are wanted, there are {self.offer.slots}"
            )
        settings = admission.checked(asked.task, asked.settings, self.offer.allowed)
        with self._deciding:
            if len(store.active(self._store)) >= _MOST_ACTIVE:
                raise WrongState(f"{_MOST_ACTIVE} services wait or run; cancel some, or wait")
            now = time.time()
            fields = asked._asdict() | {"settings": json.dumps(settings)}
            new = Service(number=0, **fields, registered_s=now, waiting_s=now)
            service = store.add(self._store, new)
            self._folder(service.number).mkdir(mode=0o700)
            self._tell(service, "registered", "")
        return service

    def services(self) -> list[Service]:
        """All services, by number."""
        return store.every(self._store)

    def find(self, number: int) -> Service:
        """The service of that number.

        Raises:
          NotThere: there is none.
        """
        service = store.find(self._store, number)
        if service is None:
            raise NotThere(f"service {number}: there is none; the list says which there are")
        return service

    def cancel(self, number: int) -> Service:
        """Ends a service: at once where it waits, else after its round or its grace.

        Raises:
          NotThere: there is none.
          WrongState: it is over.
        """
        with self._deciding:
            service = self.find(number)
            if service.state in OVER:
                raise WrongState(f"service {number} is {service.state}: it needs no cancelling")
            if service.state == WAITING:
                service = self._over(service, CANCELLED, "cancelled", "cancelled while it waited")
            else:
                service = self._end(service, CANCELLED, "cancelled")
        return service

    def deregister(self, number: int) -> None:
        """Forgets a service that is over, and deletes its folder.

        Raises:
          NotThere: there is none.
          WrongState: it is not over.
        """
        with self._deciding:
            service = self.find(number)
            if service.state not in OVER:
                raise WrongState(f"service {number} is {service.state}: cancel it first")
            # The folder first: a kill between the two leaves something to de-register.
            try:
                if self._folder(number).exists():
                    shutil.rmtree(self._folder(number))
            except OSError as error:
                reason = error.strerror or error
                raise WrongState(f"service {number}: its folder stays ({reason})") from error
            store.remove(self._store, number)
            self._counts.pop(number, None)

    def events(self, number: int) -> list[ServiceEvent]:
        """What happened to a service, in order.

        Raises:
          NotThere: there is none.
        """
        self.find(number)
        return store.events(self._store, number)

    def pool(self) -> PoolState:
        """The nodes that services share, as they stand; none without a pool."""
        return self._pool.state() if self._pool else PoolState([], [], [])

    def run_folder(self, number: int) -> Path:
        """Where a service's run is."""
        return self._folder(number) / "run"

    def log(self, service: Service) -> str:
        """What a service's process printed, in all its turns."""
        return results.log_of(self._folder(service.number), range(1, service.attempt + 1))

    def progress(self, number: int) -> ServiceProgress:
        """How far a service is."""
        before = self._counts.get(number, ServiceProgress())
        # Read from where it was read to before.
        file = self.run_folder(number) / "metrics.jsonl"
        lines, place = results.lines_from(file, before.place)
        progress = ServiceProgress(place, lines[-1] if lines else before.last)
        self._counts[number] = progress
        return progress

    def step(self) -> None:
        """Looks at all processes once, and does what is to be done."""
        with self._deciding:
            now = time.time()
            if self._pool:
                self._pool.step(_environment())
            for service in store.active(self._store):
                if service.state != WAITING:
                    self._watch(service, now)
            self._make_room(now)
            self._start_waiting()

    def go_on(self, stopped: threading.Event) -> None:
        """Steps until `stopped`; what goes wrong in one, such as a full disk, is printed."""
        while not stopped.wait(LOOK_S):
            try:
                self.step()
            except Exception:
                traceback.print_exc()

    def close(self) -> None:
        """Lets go of the root folder; processes of services go on."""
        self._open.close()

    def _folder(self, number: int) -> Path:
        return self._root / "services" / str(number)

    def _tell(self, service: Service, event: str, cause: str) -> None:
        store.tell(self._store, ServiceEvent(service.number, time.time(), event, cause))

    def _take_up(self) -> None:
        """What ran when the last Service Provider ended: watched again, settled, or queued."""
        for service in store.active(self._store):
            if service.state == WAITING:
                continue
            if not service.pid:
                # Killed between the start of its process and the noting of it.
                found = children.of_attempt(self._folder(service.number), service.attempt)
                service = store.change(self._store, service, pid=found.pid, process=found.started)
            if children.is_alive(_process(service)):
                self._tell(service, "taken up", "the Service Provider was started again")
                if service.state == ENDING:
                    # It may have been noted and not yet told.
                    children.end(_process(service))
                continue
            code = children.exit_code(self._folder(service.number), service.attempt)
            if service.wanted or code is not None:
                self._settle(service)
            else:
                # Nobody's fault, so it is no crash. It goes on before those that wait.
                cause = "its process ended while the Service Provider was away"
                self._wait(service, "lost", cause, service.started_s)

    def _watch(self, service: Service, now: float) -> None:
        if not children.is_alive(_process(service)):
            self._settle(service)
            return
        if self._pool and self._pool.is_lost(self._folder(service.number)):
            # Its nodes are gone, and it would wait for them; what comes of it is settled later.
            children.end(_process(service), signal.SIGKILL)
            return
        used_s = service.used_s + now - service.started_s
        if service.state == ENDING:
            if now - service.told_s > self.offer.grace_s + _KILLED_AFTER_S:
                children.end(_process(service), signal.SIGKILL)
        elif 0 < service.run_s < used_s:
            self._end(service, FAILED, f"limits: it has run for run_s={service.run_s:g} seconds")

    def _settle(self, service: Service) -> None:
        """Its process has ended: what the service comes to."""
        folder = self._folder(service.number)
        code = children.exit_code(folder, service.attempt)
        last = results.last_line(results.log_of(folder, [service.attempt]))
        if code and self._pool and self._pool.is_lost(folder):
            # Whatever it said: it lost the nodes that it shared, and can go on with new ones.
            code = None
        ending = turns.ending(service, code, last)
        if ending.crashed:
            crashes = service.crashes + 1
            service = store.change(self._store, service, crashes=crashes)
        if ending.state == WAITING:
            self._wait(service, ending.event, ending.cause, time.time())
        else:
            self._over(service, ending.state, ending.event, ending.cause)

    def _wait(self, service: Service, event: str, cause: str, since_s: float) -> None:
        self._tell(service, event, cause)
        store.change(
            self._store,
            service,
            state=WAITING,
            wanted="",
            cause=cause,
            pid=0,
            process="",
            waiting_s=since_s,
            used_s=self._used_s(service),
        )

    def _over(self, service: Service, state: str, event: str, cause: str) -> Service:
        self._tell(service, event, cause)
        return store.change(
            self._store,
            service,
            state=state,
            wanted="",
            cause=cause,
            pid=0,
            process="",
            ended_s=time.time(),
            used_s=self._used_s(service),
        )

    def _used_s(self, service: Service) -> float:
        if service.state == WAITING:
            return service.used_s
        folder = self._folder(service.number)
        end_s = children.ended_s(folder, service.attempt, time.time())
        return service.used_s + max(0.0, end_s - service.started_s)

    def _end(self, service: Service, wanted: str, cause: str) -> Service:
        """Tells a service's process to end, and notes what the service is to be then."""
        self._tell(service, "told to end", cause)
        if service.state == RUNNING:
            # Noted first: a kill between the two tells it again.
            now = time.time()
            service = store.change(
                self._store, service, state=ENDING, wanted=wanted, cause=cause, told_s=now
            )
            children.end(_process(service))
            return service
        # It was told already, for another reason.
        return store.change(self._store, service, wanted=wanted, cause=cause)

    def _make_room(self, now: float) -> None:
        services = store.active(self._store)
        first = turns.first_in_line(services)
        if first is None or first.slots <= turns.free_slots(services, self.offer.slots):
            return
        # One at a time: when it has ended, there may be room enough.
        if any(service.state == ENDING for service in services):
            return
        rounds = {}
        for service in services:
            if service.state == RUNNING:
                rounds[service.number] = self.progress(service.number).place.lines
        over = turns.makes_room(services, rounds, now, self.offer.turn_s)
        if over:
            self._end(over, WAITING, f"its turn is over, service {first.number} waits")

    def _start_waiting(self) -> None:
        services = store.active(self._store)
        while first := turns.first_in_line(services):
            if first.slots > turns.free_slots(services, self.offer.slots):
                return
            if self._pool and is_for(first) and not self._pool.is_up():
                return
            self._start(first)
            services = store.active(self._store)

    def _start(self, service: Service) -> None:
        # Noted before there is a process: it keeps a number for its output and exit code.
        service = store.change(
            self._store,
            service,
            state=RUNNING,
            cause="",
            attempt=service.attempt + 1,
            started_s=time.time(),
            rounds=self.progress(service.number).place.lines,
        )
        folder = self._folder(service.number)
        words = [*self._words(service, self.run_folder(service.number).resolve())]
        if self._pool and is_for(service):
            words += self._pool.admit(service, folder)
        try:
            process = children.start(folder, service.attempt, words, _environment())
        except OSError as error:
            cause = f"its process cannot be started: {error.strerror or error}"
            self._over(service, FAILED, "failed", cause)
            return
        store.change(self._store, service, pid=process.pid, process=process.started)
        self._tell(service, "started", f"attempt {service.attempt}")


def _environment() -> dict[str, str]:
    """That of processes: this one's, without the token."""
    return {key: text for key, text in os.environ.items() if key != TOKEN_VARIABLE}


def _process(service: Service) -> Process:
    return Process(service.pid, service.process)
