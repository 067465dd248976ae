"""The engine of several processes, on Ray: a node is played by an actor with its own data.

An actor (`ray_node`) opens its nodes' data itself and trains by a `LocalEngine` of its own, so what
a visit computes is written once. Here is what is around that: who holds which value, what is sent
to whom, and what becomes of a process that ends or hangs.

A value that a visit trained lies where it was trained, as an object of Ray. From node to node it
goes from there to the process that needs it; through the server it is put anew by this process. In
both modes this process has a copy before an outcome counts, so what dies with its owner is nothing
that was merged, and checkpoints and evaluations are its own.

A process that ends is seen when its visit's call fails; one that hangs by a heart-beat, which a
second thread of it answers, that stays out for `deadline_s`; one that beats and does not get on by
the steps that a beat tells of. Each way its visits are `Lost`, and
a new process, with an empty cache, takes its place.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import ray

from snake_jax.algorithms.visits import Lost, Order, Outcome, Round
from snake_jax.engines.begun import place, why_given_up
from snake_jax.engines.choice import Choice
from snake_jax.engines.compiled_ahead import StandIn, own_and_others
from snake_jax.engines.contract import (
    Compilations,
    Engine,
    Happened,
    Holdings,
    NodeInfo,
    Progress,
    Scores,
)
from snake_jax.engines.ray_cluster import cluster, has_process, kept_programs, kill, placed
from snake_jax.engines.ray_node import Beat, Build, Facts, Key, Node, Opened, VisitTask
from snake_jax.engines.ray_values import Sending, Values
from snake_jax.errors import UserError
from snake_jax.params import Params, PyTree

RESTARTS = 3
"""How often a process's place is taken by a new one; after that its nodes stay away."""
_STARTED_WITHIN_S = 120.0
"""How long Ray may take to start a process, for which a machine needs room."""
_BEAT_S = 0.5
_THREADS = {"beat": 1, "ahead": 1}  # of an actor, beside the one that trains


class _Worker:
    """An actor that plays nodes, and what is known of it."""

    def __init__(self, number: int, nodes: tuple[int, ...], actor: Any, begun: Any) -> None:
        """All of it is asked to begin, and has answered nothing."""
        self.asked_s = time.monotonic()
        self.number, self.nodes, self.actor = number, nodes, actor
        self.begun: ray.ObjectRef = begun
        self.about: Opened | None = None
        self.held: set[Key] = set()
        self.beat: tuple[ray.ObjectRef, float] | None = None
        self.prepared: ray.ObjectRef | None = None
        self.progress: Progress | None = None
        self.moved_s = time.monotonic()
        self.alive, self.why = True, ""


class _UnderWay(NamedTuple):
    """An order that was submitted."""

    order: Order
    worker: _Worker
    task: VisitTask
    references: list[ray.ObjectRef]


class RayEngine:
    """See `contract.Engine`."""

    def __init__(
        self,
        nodes: int,
        build: Callable[[Sequence[int]], Build],
        scorer: Engine,
        sending: Sending,
        choice: Choice,
        stand_in: StandIn,
    ) -> None:
        """Starts the actors; waits for none.

        Args:
          nodes: how many.
          build: what the actor of these nodes is told, so that it can open their data.
          scorer: evaluates, in this process.
          sending: what is sent.
          choice: where the actors are.
          stand_in: whose process compiles a visit ahead beside that of its own node.
        """
        self._build, self._scorer, self._cached = build, scorer, sending.cached
        self._stand_in = stand_in
        self._limits = choice
        with contextlib.ExitStack() as stack:
            stack.enter_context(cluster(choice))
            count, self._options = placed(nodes, choice)
            self._surroundings = stack.enter_context(kept_programs())
            self._open = stack.pop_all()
        self._kind = ray.remote(max_restarts=0, num_cpus=0, concurrency_groups=_THREADS)(Node)
        self._restarts = [RESTARTS] * count
        self._expected: tuple[Sequence[Round], PyTree, PyTree] | None = None

        self._values = Values(sending)
        self._under_way: list[_UnderWay] = []
        self._lost: deque[Lost] = deque()
        self._happened: list[Happened] = []
        self._compilations: dict[_Worker, Compilations] = {}
        self._looked_s = 0.0
        self._node_count = nodes
        self._workers: list[_Worker] = []
        for number in range(count):
            self._workers.append(self._started(number, tuple(range(number, nodes, count))))

    # Processes

    def _started(self, number: int, nodes: tuple[int, ...]) -> _Worker:
        """A new actor for these nodes, told to open their data and to compile what is expected."""
        about = nodes, self._cached, self._surroundings
        actor = self._kind.options(**self._placed(number)).remote(*about)
        begun = actor.begin.remote(self._build(nodes))
        worker = _Worker(number, nodes, actor, begun)
        self._prepare(worker)
        return worker

    def _placed(self, number: int) -> dict[str, Any]:
        """Ray's options for the actor of that number: what it takes, and so where it may be."""
        return self._options

    def _prepare(self, worker: _Worker) -> None:
        """Has the actor compile what its nodes are going to need, and then, beside its visits, what
        they may have to take over from others.
        """
        if self._expected is None:
            return
        rounds, like, shared = self._expected
        own, others = own_and_others(rounds, worker.nodes, self._stand_in)
        worker.actor.expect.remote(own, like, shared)
        ahead = worker.actor.prepare.options(concurrency_group="ahead")
        worker.prepared = ahead.remote(others, like, shared)

    def are_prepared(self) -> bool:
        """Whether all processes have compiled what they may have to take over."""
        return all(worker.prepared and _is_there(worker.prepared) for worker in self._workers)

    def _drop(self, worker: _Worker, why: str) -> None:
        """Counts all that the actor was to do as lost; its place is free."""
        if not worker.alive:
            return
        worker.alive, worker.why = False, why
        kill(worker.actor, worker.about)
        for one in self._under_way:
            if one.worker is worker:
                self._lost.append(Lost(one.order.visit, why))
        self._under_way = [one for one in self._under_way if one.worker is not worker]

    def _fill(self) -> None:
        """Starts actors in the places of those that ended, as long as they may be.

        It comes after a loss was told and taken over, which it would hold up.
        """
        for number, worker in enumerate(self._workers):
            if not worker.alive and self._restarts[number]:
                self._restarts[number] -= 1
                self._workers[number] = self._started(number, worker.nodes)
                cause = f"a new process takes the place of one that ended: {worker.why}"
                for node in worker.nodes:
                    self._happened.append(Happened(node, "restarted", cause))

    def _look_after(self) -> None:
        """Asks actors that work for a heart-beat, and drops those that do not answer."""
        now = time.monotonic()
        if now - self._looked_s < _BEAT_S:
            return
        self._looked_s = now
        for worker in {one.worker for one in self._under_way}:
            if worker.about is None:
                self._greet(worker)
            elif worker.beat is None:
                beat = worker.actor.beat.options(concurrency_group="beat").remote()
                worker.beat = beat, now
            elif _is_there(worker.beat[0]):
                self._heard(worker, worker.beat[0], now)
                worker.beat = None
            elif now - worker.beat[1] > self._limits.deadline_s:
                self._drop(worker, f"no heart-beat for {self._limits.deadline_s:g} s")

    def _heard(self, worker: _Worker, beat: "ray.ObjectRef", now_s: float) -> None:
        """Notes how far an actor has come, and drops one that does not get on or is too slow."""
        with contextlib.suppress(ray.exceptions.RayActorError):
            answer: Beat = ray.get(beat)
            told, before = answer.progress, worker.progress
            worker.progress = told
            if answer.compiling or place(told) != place(before):
                worker.moved_s = now_s
            why = why_given_up(told, now_s - worker.moved_s, self._limits)
            if why:
                self._drop(worker, why)

    def _greet(self, worker: _Worker) -> None:
        """Notes what an actor says of itself once its data is open; until then no beat is missed,
        however long that takes. One that is not started is dropped.

        Raises:
          UserError: it cannot open its data.
        """
        if not _is_there(worker.begun):
            waited_s = time.monotonic() - worker.asked_s
            if waited_s > _STARTED_WITHIN_S and not has_process(worker.actor):
                self._drop(worker, f"no machine started its process in {waited_s:.0f} s")
            return
        with contextlib.suppress(ray.exceptions.RayActorError):
            worker.about = _got(worker.begun)

    def processes(self) -> list[int]:
        """The numbers of the actors' processes; waits for those that are beginning."""
        return [_got(worker.begun).pid for worker in self._workers if worker.alive]

    # What a run asks

    by_node = True

    def nodes(self) -> Sequence[NodeInfo]:
        """The nodes, by number, as their processes say; waits for those that are beginning."""
        found: dict[int, NodeInfo] = {}
        for worker in self._workers:
            if worker.alive:
                found |= _got(worker.begun).nodes
        gone = NodeInfo(0, alive=False)
        return [found.get(node, gone) for node in range(self._node_count)]

    def expect(
        self,
        rounds: Sequence[Round],
        params: Params,
        done: int = 0,
        shared: PyTree = None,
        wait: bool = False,
    ) -> None:
        """Has every actor compile what its own nodes are to train, all at the same time. See
        `contract.Engine`.
        """
        shapes = jax.eval_shape(lambda *trees: trees, params, shared)
        self._expected = (rounds[done:], *shapes)
        for worker in self._workers:
            self._prepare(worker)
        self._scorer.expect((), params, wait=wait)
        if wait:
            ray.get([worker.prepared for worker in self._workers if worker.prepared])

    def hold(self, holdings: Holdings) -> None:
        """Is told what orders may name from now on; nothing is sent before it is asked for."""
        self._values.hold(holdings)

    def submit(self, order: Order) -> None:
        """Sends the order to the actor of its node; never waits.

        Raises:
          UserError: no process is left.
        """
        number = order.visit.node % len(self._workers)
        if not self._workers[number].alive:
            self._fill()
        worker = self._workers[number]
        if not worker.alive:
            if not any(other.alive for other in self._workers):
                raise UserError(
                    "--engine=ray: the processes of all nodes have ended, the last of them "
                    f"{RESTARTS} times anew; see Ray's logs"
                )
            self._lost.append(Lost(order.visit, f"its process ended {RESTARTS + 1} times"))
            return
        task, worker.held = self._values.task(order, worker.held)
        returns = self._values.returns(order)
        if not any(one.worker is worker for one in self._under_way):
            worker.moved_s = time.monotonic()
        references = worker.actor.carry_out.options(num_returns=returns).remote(task)
        if returns == 1:
            references = [references]
        self._under_way.append(_UnderWay(order, worker, task, references))

    def next(self, timeout_s: float | None = None) -> Outcome | Lost | None:
        """The next outcome, of whichever actor is first; see `contract.Engine`.

        Raises:
          UserError: an actor cannot open its data.
        """
        end_s = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        while self._lost or self._under_way:
            if self._lost:
                return self._lost.popleft()
            self._fill()
            first = [one.references[0] for one in self._under_way]
            wait_s = max(min(_BEAT_S, end_s - time.monotonic()), 0.0)
            ready, _ = ray.wait(first, timeout=wait_s, fetch_local=False)
            self._look_after()
            if ready:
                for one in self._under_way:
                    if one.references[0] == ready[0]:
                        return self._outcome(one)
            elif time.monotonic() >= end_s:
                return None
        return None

    def _outcome(self, one: _UnderWay) -> Outcome | Lost:
        """What came of an order: all of it is here before it counts."""
        try:
            if one.worker.about is None:
                one.worker.about = _got(one.worker.begun)
            facts: Facts
            facts, *values = ray.get(one.references)
        except ray.exceptions.RayActorError:
            self._drop(one.worker, "its process ended")
            return self._lost.popleft()
        except (ray.exceptions.ObjectLostError, ray.exceptions.ObjectFetchTimedOutError) as error:
            return self._missing(one, error)
        self._under_way.remove(one)
        self._compilations[one.worker] = facts.compilations
        return self._values.outcome(one.order, one.task, facts, values, one.references[1:])

    def _missing(self, one: _UnderWay, error: Exception) -> Lost:
        """Of an order for which a value did not arrive: the machine that it lay on is gone."""
        self._values.forget_places()
        if isinstance(error, ray.exceptions.RayTaskError):
            # The node lives; what it was to start from lay elsewhere.
            one.worker.held = set()
            self._under_way.remove(one)
            return Lost(one.order.visit, "layers that it needed were lost with their process")
        self._drop(one.worker, "what it trained was lost with its machine")
        return self._lost.popleft()

    def progress(self) -> Sequence[Progress]:
        """How far the visits under way have come, by their actors' last heart-beats."""
        told = {one.worker: one.worker.progress for one in self._under_way}
        return [progress for progress in told.values() if progress is not None]

    def happened(self) -> Sequence[Happened]:
        """Actors that took the place of others since this was last asked."""
        found, self._happened = self._happened, []
        return found

    def evaluate(self, params: Params) -> Scores:
        """Scores of a model on the held-out data, in this process."""
        return self._scorer.evaluate(params)

    @property
    def compilations(self) -> Compilations:
        """What was compiled in all processes, as far as they have said."""
        every = [self._scorer.compilations, *self._compilations.values()]
        peaks = [one.peak_bytes for one in every if one.peak_bytes is not None]
        programs, seconds = sum(one.programs for one in every), sum(one.seconds for one in every)
        return Compilations(programs, seconds, max(peaks, default=None))

    def close(self) -> None:
        """Ends the actors, and the cluster where this started it."""
        self._under_way.clear()
        self._lost.clear()
        self._values.forget_places()
        for worker in self._workers:
            if worker.alive:
                worker.alive = False
                ray.kill(worker.actor, no_restart=True)
        self._open.close()


def _is_there(reference: "ray.ObjectRef") -> bool:
    """Whether there is an answer, be it an error."""
    return bool(ray.wait([reference], timeout=0)[0])


def _got(begun: "ray.ObjectRef") -> Opened:
    """What an actor says of itself.

    Raises:
      UserError: as it says.
    """
    try:
        return ray.get(begun)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from error
        raise
