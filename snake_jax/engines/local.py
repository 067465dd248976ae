"""The engine of this machine: compiled programs, each kept for the whole run.

One loop carries out the visits of every kind of model. A *layout* says how what a visit names lies
in a program's arguments, a *feed* which batches its epochs are, an *emulation* how many nodes are
one program.
"""

import functools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from snake_jax import compiling, processes, streams
from snake_jax.algorithms.visits import Lost, Order, Outcome, Round
from snake_jax.engines import begun, keys, programs
from snake_jax.engines.begun import Begun, Part, UnderWay
from snake_jax.engines.contract import Compilations, Happened, Holdings, NodeInfo, Progress, Scores
from snake_jax.engines.emulations import ALONE, Emulation
from snake_jax.engines.epochs import Called, Sums, Tally, VisitSettings, annotation, counted
from snake_jax.engines.feeds import Chunk, Feed, Reading, RunPrefix
from snake_jax.engines.orders import Bound, bound, first_group, group_sizes, is_small, outcome_of
from snake_jax.engines.programs import EVALUATE, Ahead, Program
from snake_jax.engines.starts import given_at_first, given_to, start_of
from snake_jax.params import Params, PyTree
from snake_jax.training import sharding
from snake_jax.training.image_step import LocalStep
from snake_jax.training.layout import Before, Layout, Start
from snake_jax.training.text_step import LanguageStep


class LocalEngine:
    """Emulates nodes, see `contract.Engine`.

    Its only state are the compiled programs, for how many nodes side by side the next are to be,
    what its layout keeps on the device, and what was submitted: two runs of the same visits give
    the same bits.
    """

    def __init__(
        self,
        step: LocalStep | LanguageStep,
        layout: Layout,
        feed: Feed,
        settings: VisitSettings,
        how: Emulation,
        mesh: Mesh | None = None,
    ) -> None:
        """See `build`, whose functions make the parts fit.

        Args:
          step: the local step.
          layout: how layers lie in arguments.
          feed: all nodes' data.
          settings: see `VisitSettings`.
          how: visits that run side by side are emulated.
          mesh: that the programs lie over; None: one device, or those of the emulation.
        """
        self._step, self._layout, self._feed = step, layout, feed
        self._settings, self._emulation, self._mesh = settings, how, mesh
        self._nodes = feed.nodes()
        self._key = streams.key(settings.seed, "key/visits")
        self._programs: dict[Program, Any] = {}
        self._group_sizes: dict[tuple[str, ...], int] = {}
        self._held = Holdings({})
        self._waiting: list[Bound] = []
        self._under_way: deque[UnderWay] = deque()
        self._free_s = 0.0  # since when the device has had nothing to do for earlier visits
        self._ready: deque[Outcome] = deque()
        self._ahead = Ahead()  # its seconds are counted only as far as somebody waits for them
        self._compile_s, self._peak_bytes = 0.0, 0
        self._begun = begun.NOTHING
        # Where nothing but its last epoch ends a visit, the host need not see each before the next.
        self._epochs_at_once = 2 if feed.ahead and not settings.ends_early else 1

    # What a run asks

    by_node = False

    def nodes(self) -> Sequence[NodeInfo]:
        """The nodes, by number."""
        return self._nodes

    def expect(
        self,
        rounds: Sequence[Round],
        params: Params,
        done: int = 0,
        shared: PyTree = None,
        wait: bool = False,
    ) -> None:
        """Has the programs of these rounds and of the evaluation compiled in the background, in the
        order in which they are needed, where they are known before there is a batch.

        See `contract.Engine`. With finished rounds, a run that goes on is emulated as an unbroken
        one. Without `shared`, training programs of a method with a client wait for their first use.
        """
        for visits in rounds:
            for layers, number in group_sizes(visits).items():
                self._group_sizes[layers] = max(self._group_sizes.get(layers, 0), number)
        if not self._feed.ahead:
            return
        # Arrays would be held for as long as a program that they are the arguments of is to come.
        params, shared = jax.eval_shape(lambda *trees: trees, params, shared)

        # One program for all visits that train the same layers, however many rounds they are in.
        training: dict[Program, tuple[str, ...]] = {}
        if self._step.client is None or shared is not None:
            for visits in rounds[done:]:
                for layers, number in group_sizes(visits).items():
                    training.setdefault(self._program(layers, number), layers)
        wanted = []
        for program, layers in training.items():
            lower = functools.partial(self._lowered, program, layers, params, shared)
            wanted.append((program, lower))

        # The first evaluation comes after the first round.
        first = len(group_sizes(rounds[done])) if wanted else 0
        for chunk in self._feed.held_out():
            jitted, arguments = self._jitted(EVALUATE), (*self._layout.whole(params), *chunk.arrays)
            wanted.insert(first, (EVALUATE, functools.partial(jitted.lower, *arguments)))
        for program, lower in wanted:
            if program not in self._programs:
                self._ahead.ask(program, lower)
        if wait:
            self._ahead.finish()

    def hold(self, holdings: Holdings) -> None:
        """Is told what orders may name from now on."""
        self._held = holdings

    def submit(self, order: Order) -> None:
        """Takes an order; it is carried out when an outcome is asked for."""
        self._waiting.append(bound(order, self._held, self._step.client))

    def next(self, timeout_s: float | None = None) -> Outcome | Lost | None:
        """The next outcome, trained in this call unless a program trained it beside another, or it
        was begun before; None where nothing is submitted.
        """
        del timeout_s  # nothing is under way but in this call
        if self._ready:
            return self._ready.popleft()
        # The device goes on with a further visit while the outcome of the first is looked at.
        while self._waiting and (not self._under_way or self._goes_ahead()):
            self._begin()
        if not self._under_way:
            return None
        first = self._under_way.popleft()
        self._begun = first.begun
        with jax.profiler.TraceAnnotation(annotation(first.begun.visits)):
            for outcomes in first.training:
                self._ready.extend(outcomes)
        self._begun = begun.NOTHING
        return self._ready.popleft()

    def _goes_ahead(self) -> bool:
        """Whether the visit that waits may be begun while another one trains."""
        alone = self._emulation is ALONE and len(self._under_way) == 1
        return alone and self._epochs_at_once > 1 and is_small(self._waiting[0])

    def _begin(self) -> None:
        """Has the first group that waits trained as far as that goes without waiting for it."""
        program, group = self._group()
        visits = tuple(one.visit for one in group)
        now = Begun(visits, time.monotonic(), [])
        if not self._under_way:
            self._begun = now
        training = self._train(program, group, now.parts)
        with jax.profiler.TraceAnnotation(annotation(visits)):
            next(training)
        self._under_way.append(UnderWay(now, training))

    def progress(self) -> Sequence[Progress]:
        """How far the visit that another thread carries out has come; see `contract.Engine`.

        Where several are one program they have come equally far.
        """
        return begun.progress(self._begun)

    def happened(self) -> Sequence[Happened]:
        """Nothing: nodes are calls."""
        return ()

    def evaluate(self, params: Params) -> Scores:
        """Scores of a model on the held-out data."""
        model = self._layout.whole(params)
        scores = self._feed.scores(self._scored("evaluate", self._feed.held_out(), model))
        of_nodes = self._scored("score", self._feed.at_nodes(), model)
        return scores._replace(nodes=self._feed.node_scores(of_nodes))

    def _scored(self, kind: str, chunks: Iterator[Chunk], model: tuple[Any, ...]) -> list[Any]:
        """What the program of this kind gives of each chunk."""
        found = []
        for chunk in chunks:
            found.append(self._call(Program(kind, shape=chunk.shape), *model, *chunk.arrays))
        return jax.device_get(found)

    @property
    def compilations(self) -> Compilations:
        """What was compiled so far; a node's memory is unknown once a program trains several."""
        several = any(program.lead for program in list(self._programs))
        peak_bytes = None if several else self._peak_bytes or None
        # What is under way counts, so that the number follows from the run and not from its pace.
        count = len(self._programs) + len(self._ahead)
        return Compilations(count, self._compile_s, peak_bytes)

    def close(self) -> None:
        """Forgets what was submitted, and compiles nothing further ahead."""
        self._ahead.close()
        self._waiting.clear()
        self._under_way.clear()
        self._ready.clear()

    # Groups

    def _program(self, layers: tuple[str, ...], number: int, node: int = 0) -> Program:
        """The program for so many visits that train these layers, of which this node has one; one
        alone takes a node's own.
        """
        most = max(number, self._group_sizes.get(layers, 0))
        lead = self._emulation.lead(most) if number > 1 else ()
        return Program("train", self._layout.names(layers), lead, rank=self._layout.rank(node))

    def _group(self) -> tuple[Program, list[Bound]]:
        """The first order, and those that one program carries out with it; they wait no longer."""
        together = bool(self._emulation.lead(len(self._waiting)))
        group, self._waiting = first_group(self._waiting, together)
        first = group[0].visit
        return self._program(first.layers, len(group), first.node), group

    # Visits

    def _train(
        self, program: Program, group: list[Bound], parts: list[Part]
    ) -> Iterator[list[Outcome]]:
        """Visits in one program, epoch by epoch; a visit that is over gets no more batches.

        See `begun.UnderWay`; it gives nothing at least once. `parts` is told of every call.
        """
        settings, lead = self._settings, program.lead
        how = self._emulation if lead else ALONE
        visits, first = [one.visit for one in group], group[0]

        # All start from the same: each has a copy of what trains, and reads the rest.
        layout, client = self._layout, self._step.client
        place = first.visit.layers, first.visit.node, lead
        start = start_of(layout, self._emulation, first.params, first.states, *place)
        given = given_to(client, layout, self._emulation, group, lead)
        reading = self._feed.read(visits, lead, how, self._run_prefix(first, start, lead))
        trainable, states = start.trainable, start.states
        rate = np.float32(first.order.learning_rate)

        sums = Sums([Tally()] * len(visits), np.zeros(len(visits)))
        called, calls = deque[Called](), 0
        for number in range(max(settings.epochs_at(visit.node) for visit in visits)):
            # So few epochs are asked for at once that the host soon knows of one that diverged.
            if len(called) == self._epochs_at_once:
                yield []
                sums = self._waited_for(called.popleft(), sums, how)
            epoch = reading.epoch(number, [tally.over for tally in sums.tallies])
            if not any(epoch.steps):
                continue
            own_keys = keys.of_epoch(self._key, visits, number, lead)
            started, compile_s = time.perf_counter(), self._compile_s

            # The next chunk is made while the device trains.
            stats = []
            for chunk in epoch.chunks:
                key = own_keys if chunk.number is None else keys.of_call(own_keys, chunk.number)
                one = program._replace(shape=chunk.shape)
                read = start.frozen, start.received, *chunk.arrays
                own_key = processes.put(key, how.nodes) if lead else key
                with jax.profiler.StepTraceAnnotation("train", step_num=calls):
                    trainable, states, stat = self._call(
                        one, trainable, states, *read, own_key, rate, given
                    )
                stats.append(stat)
                calls += 1
                parts.append(Part(stat.loss_sum, max(epoch.steps) if chunk.number is None else 1))
            since_s = started + self._compile_s - compile_s
            called.append(Called(stats, epoch.steps, epoch.factors or epoch.steps, since_s))

        yield []
        while called:
            sums = self._waited_for(called.popleft(), sums, how)
        yield self._outcomes(group, reading, (trainable, states), sums, lead)

    def _outcomes(
        self,
        group: list[Bound],
        reading: Reading,
        end: tuple[Params, Any],
        sums: Sums,
        lead: tuple[int, ...],
    ) -> list[Outcome]:
        """What the visits give back, given what their steps ended with, and their sums."""
        # What nothing keeps is not brought back.
        trainable, states = end
        ends = [(trainable, states if self._settings.carry_optimizer_state else {})]
        if lead:
            ends = self._emulation.gather(ends[0], lead, len(group))
        found = []
        for place, (one, own, tally) in enumerate(zip(group, ends, sums.tallies, strict=True)):
            before = Before(one.visit.node, one.params, one.states)
            left = self._layout.leave(*own, one.visit.layers, before)
            held, factors = self._nodes[one.visit.node].examples, float(sums.factors[place])
            client = self._step.client
            outcome = outcome_of(one, *left, tally, held, self._settings, factors, client)
            found.append(reading.told(place, outcome))
        return found

    def _waited_for(self, called: Called, sums: Sums, how: Emulation) -> Sums:
        """The sums of visits with an epoch more; waits until the device has done it."""
        stats = called.stats
        if how is not ALONE:
            stats = processes.whole(stats, how.home)
        fetched = jax.device_get(stats)
        # What the device did for visits before is theirs.
        now_s = time.perf_counter()
        train_s = now_s - max(called.since_s, self._free_s)
        self._free_s = now_s
        return counted(sums, called, fetched, train_s, self._settings)

    def _run_prefix(self, one: Bound, start: Start, lead: tuple[int, ...]) -> RunPrefix | None:
        """How a feed computes what lies below the trained blocks; None: it does not pay."""
        off = self._settings.cache_prefix == "off" or self._settings.local_epochs == 1
        if off or lead or not self._layout.has_prefix(one.visit.layers):
            return None
        prefix = Program("prefix", rank=self._layout.rank(one.visit.node))
        return lambda shape, rows: self._call(prefix._replace(shape=shape), start.frozen, rows)

    # Programs

    def _call(self, program: Program, *args: Any) -> Any:
        """Runs a program, compiled on first use; all uses have one shape."""
        args = sharding.put_everywhere(self._mesh, args)
        if program not in self._programs:
            started = time.perf_counter()
            self._begun = self._begun._replace(compiling=True)
            self._compile(program, args)
            self._begun = self._begun._replace(compiling=False)
            self._compile_s += time.perf_counter() - started
        self._ahead.check()
        return self._programs[program](*args)

    def _compile(self, program: Program, args: tuple[Any, ...]) -> None:
        """Makes a program ready: it was compiled ahead, or is compiled now for these arguments."""
        if program in self._ahead:
            compiled = self._ahead.take(program)
            self._keep(program, compiled, compiled)
            return
        jitted = self._jitted(program)
        compiled = jitted.lower(*args).compile()
        # On a mesh by way of jit, which has it now: a compiled program refuses 4-bit arrays that
        # have their place, whose layout is not described as the one that it was compiled for.
        self._keep(program, compiled, compiled if self._mesh is None else jitted)

    def _jitted(self, program: Program) -> Any:
        feed = self._feed
        others = {"evaluate": feed.evaluation, "score": feed.scoring, "prefix": feed.prefix}
        if program.kind in others:
            return compiling.jit(self._step.work, others[program.kind]())
        how = self._emulation if program.lead else ALONE
        axes = (0, 0, None, None, *self._feed.axes, 0, None, 0)
        trained = self._feed.program(program.names, program.lead)
        return how.jit(self._step.work, trained, axes)

    def _lowered(
        self, program: Program, layers: tuple[str, ...], params: Params, shared: PyTree
    ) -> Any:
        """The program for visits that train these layers, before there is one."""
        lead, how, layout = program.lead, self._emulation, self._layout

        def start(params: Params) -> Start:
            return start_of(layout, how, params, {}, layers, 0, lead)

        def given(params: Params, shared: PyTree) -> PyTree:
            return given_at_first(self._step.client, layout, how, params, shared, layers, lead)

        begins = jax.eval_shape(start, params)
        read = jax.eval_shape(given, params, shared)
        chunk = self._feed.nobody(lead)
        own_keys = keys.of_epoch(self._key, [], 0, lead)
        return self._jitted(program).lower(*begins, *chunk.arrays, own_keys, np.float32(0), read)

    def _keep(self, program: Program, compiled: Any, callable_: Any) -> None:
        self._programs[program] = callable_
        if program.kind == "train":
            own_bytes = programs.peak_bytes(compiled) - self._feed.other_bytes()
            self._peak_bytes = max(self._peak_bytes, own_bytes)
