"""The executor: one compiled program for each distinct assignment, kept for the whole run."""

import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from snake_jax import processes, streams
from snake_jax.algorithms.visits import Order, Outcome, Round, Visit
from snake_jax.engines.contract import Compilations, NodeInfo, Scores
from snake_jax.engines.emulations import ALONE, EMULATIONS, Emulation
from snake_jax.engines.epochs import (
    Tally,
    VisitSettings,
    annotation,
    count,
    epoch_rows,
    no_rows,
    result,
    stacked,
)
from snake_jax.params import Params, num_bytes, select, without
from snake_jax.train import quantization
from snake_jax.train.image_step import Examples, LocalStep, evaluate, local_epoch
from snake_jax.train.optimizers import OptimizerStates, init_states


class _Program(NamedTuple):
    """Which program: the trained layers and the leading axes of its nodes, none for one node."""

    layers: tuple[str, ...]
    lead: tuple[int, ...] = ()


_EVALUATION = _Program(("evaluation",))


class Executor:
    """Emulates nodes.

    Its only state are the compiled programs, and for how many nodes side by side the next are to
    be: two runs of the same visits give the same bits.
    """

    def __init__(
        self,
        step: LocalStep,
        train: Examples,
        test: Examples,
        shards: Sequence[np.ndarray],
        settings: VisitSettings,
        emulation: str = "loop",
    ) -> None:
        """Puts the data on the device, or on all of them.

        Args:
          step: the local step.
          train: all nodes' examples.
          test: examples for `evaluate`.
          shards: for each node, its indices into `train`.
          settings: see `VisitSettings`.
          emulation: of visits that run side by side, one of `EMULATIONS`.
        """
        largest = max(map(len, shards))
        self._step, self._shards = step, shards
        self._settings = settings._replace(
            batch_size=min(settings.batch_size, largest)
        )  # no batch is all padding
        self._emulation = EMULATIONS[emulation]()
        self._shared = processes.put(train, self._emulation.shared)
        self._train, self._test = _first_copy(self._shared), jax.device_put(test)
        self._rows = -(-largest // self._settings.batch_size)
        self._key = streams.key(settings.seed, "key/visits")
        self._programs: dict[_Program, Any] = {}
        self._group_sizes: dict[tuple[str, ...], int] = {}
        self._freeze = jax.jit(lambda subtree: quantization.freeze(subtree, settings.frozen_dtype))
        # One call: array by array from Python the host's time shows beside a small network's.
        self._fresh = jax.jit(lambda layers: init_states(step.rule, layers, step.layer_names))
        self._compile_s, self._peak_bytes = 0.0, 0
        self._orders: list[Order] = []
        self._done: list[Outcome] = []

    def nodes(self) -> list[NodeInfo]:
        """See `Engine`."""
        return [NodeInfo(0) for _ in self._shards]

    def expect(self, rounds: Sequence[Round], params: Params, done: int = 0) -> None:
        """See `Engine`."""
        self.compile(rounds, params, done)

    def submit(self, order: Order) -> None:
        """See `Engine`."""
        self._orders.append(order)

    def next(self, timeout_s: float | None = None) -> Outcome | None:
        """See `Engine`."""
        if not self._done and self._orders:
            first = self._orders[0]
            count = (
                len(self._orders) if getattr(self, "_emulation", None) not in (None, ALONE) else 1
            )
            visits = [order.visit for order in self._orders[:count]]
            self._done = self.run(visits, first.params, first.states, first.learning_rate)
            del self._orders[:count]
        return self._done.pop(0) if self._done else None

    def close(self) -> None:
        """See `Engine`."""

    def run(
        self, visits: Sequence[Visit], params: Params, states: OptimizerStates, learning_rate: float
    ) -> list[Outcome]:
        """The visits of a round, all starting from `params`; results are in their order.

        Args:
          visits: who trains what.
          params: the whole model in full precision; left as it is.
          states: optimizer states to go on from, by layer; layers not in it start afresh.
          learning_rate: of all their steps.
        """
        results: dict[int, Outcome] = {}
        for program, numbers in self._groups(visits):
            group = [visits[number] for number in numbers]
            with jax.profiler.TraceAnnotation(annotation(group)):
                results |= zip(
                    numbers,
                    self._train_group(program, group, params, states, learning_rate),
                    strict=True,
                )
        return [results[number] for number in range(len(visits))]

    def compile(self, rounds: Sequence[Round], params: Params, done: int = 0) -> None:
        """Compiles the programs of these rounds and of the evaluation, side by side on the
        machine's cores.

        Args:
          rounds: all of a run, so that those of a run that goes on are emulated as in an unbroken
            one.
          params: the whole model (shapes suffice).
          done: how many of the rounds are finished.
        """
        started = time.perf_counter()
        for visits in rounds:
            for layers, numbers in _by_layers(visits).items():
                self._group_sizes[layers] = max(self._group_sizes.get(layers, 0), len(numbers))
        wanted = [program for visits in rounds[done:] for program, _ in self._groups(visits)]
        missing = [
            program
            for program in dict.fromkeys([*wanted, _EVALUATION])
            if program not in self._programs
        ]
        lowered = [self._lower(program, params) for program in missing]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for program, compiled in zip(
                missing, pool.map(lambda low: low.compile(), lowered), strict=True
            ):
                self._keep(program, compiled)
        self._compile_s += time.perf_counter() - started

    def evaluate(self, params: Params) -> Scores:
        """Accuracy and mean loss on the test examples."""
        accuracy, loss = jax.device_get(self._compiled(_EVALUATION, params)(params, self._test))
        return Scores(float(accuracy), float(loss))

    @property
    def compilations(self) -> Compilations:
        """What was compiled so far; a node's memory is unknown once a program trains several."""
        several = any(program.lead for program in self._programs)
        return Compilations(
            len(self._programs), self._compile_s, None if several else self._peak_bytes or None
        )

    def _groups(self, visits: Sequence[Visit]) -> list[tuple[_Program, list[int]]]:
        """Which program carries out which of the visits; one that trains its layers alone takes
        that of one node.
        """
        groups = []
        for layers, numbers in _by_layers(visits).items():
            most = max(len(numbers), self._group_sizes.get(layers, 0))
            program = _Program(layers, self._emulation.lead(most) if len(numbers) > 1 else ())
            groups += [
                (program, part) for part in ([numbers] if program.lead else [[n] for n in numbers])
            ]
        return groups

    def _how(self, program: _Program) -> Emulation:
        return self._emulation if program.lead else ALONE

    def _train_group(
        self,
        program: _Program,
        visits: list[Visit],
        params: Params,
        states: OptimizerStates,
        learning_rate: float,
    ) -> list[Outcome]:
        """Visits in one program, epoch by epoch; a visit that is over gets no more batches."""
        how, settings, shards = (
            self._how(program),
            self._settings,
            [self._shards[visit.node] for visit in visits],
        )
        compiled = self._compiled(program, params)
        trainable, carried, *shared = self._start(program, params, states)
        examples, rate = self._examples(program), np.float32(learning_rate)
        tallies = [Tally()] * len(visits)
        for epoch in range(settings.local_epochs):
            todo = [
                no_rows(self._rows, settings.batch_size)
                if tally.over
                else epoch_rows(visit, epoch, shard, self._rows, settings)
                for visit, shard, tally in zip(visits, shards, tallies, strict=True)
            ]
            if not any(rows.steps for rows in todo):
                continue
            given = (stacked(todo, program.lead), self._keys(program, visits, epoch))
            args = (trainable, carried, *shared, examples, *processes.put(given, how.nodes), rate)
            started = time.perf_counter()
            with jax.profiler.StepTraceAnnotation("train", step_num=epoch):
                trainable, carried, stats = jax.block_until_ready(compiled(*args))
            train_s = time.perf_counter() - started
            stats = processes.whole(stats, how.home)
            tallies = count(tallies, stats, todo, train_s, settings.early_stop)
        trained = how.gather((trainable, carried), program.lead, len(visits))
        ends = zip(visits, trained, tallies, shards, strict=True)
        return [
            result(visit, layers, own, tally, len(shard))
            for visit, (layers, own), tally, shard in ends
        ]

    def _start(
        self, program: _Program, params: Params, states: OptimizerStates
    ) -> tuple[Params, ...]:
        """What visits start from: each node's trained layers and their states, which the program
        consumes; the frozen layers as stored and, where needed, the trained ones as received, which
        all nodes read.
        """
        received = select(params, program.layers)
        kept = {name: states[name] for name in program.layers if name in states}
        fresh = self._fresh(without(received, kept))
        shared = (
            self._frozen(without(params, program.layers)),
            received if self._step.needs_received else {},
        )
        how = self._how(program)
        return (
            *how.spread((received, kept | fresh), program.lead),
            *processes.put(shared, how.shared),
        )

    def _frozen(self, layers: Params) -> Params:
        """As a node stores them, made from the full-precision values."""
        if self._settings.frozen_dtype == "float32":
            return layers
        return {name: self._freeze(subtree) for name, subtree in layers.items()}

    def _examples(self, program: _Program) -> Examples:
        return self._shared if program.lead else self._train

    def _keys(self, program: _Program, visits: list[Visit], epoch: int) -> jax.Array:
        """A visit's key comes from (seed, turn, node), its epoch's from that and the epoch's
        number.
        """
        turns, nodes = (np.zeros(math.prod(program.lead), np.uint32) for _ in range(2))
        turns[: len(visits)], nodes[: len(visits)] = (
            [v.turn for v in visits],
            [v.node for v in visits],
        )
        return _epoch_keys(self._key, turns, nodes, epoch).reshape(program.lead)

    def _compiled(self, program: _Program, params: Params) -> Any:
        """Compiled on first use; all uses have one shape."""
        if program not in self._programs:
            started = time.perf_counter()
            self._keep(program, self._lower(program, params).compile())
            self._compile_s += time.perf_counter() - started
        return self._programs[program]

    def _lower(self, program: _Program, params: Params) -> Any:
        if program == _EVALUATION:
            return jax.jit(evaluate(self._step)).lower(params, self._test)
        epoch = local_epoch(self._step, program.layers)
        start = jax.eval_shape(lambda params: self._start(program, params, {}), params)
        nobody = stacked([no_rows(self._rows, self._settings.batch_size)], program.lead)
        args = (*start, self._examples(program), nobody, self._keys(program, [], 0), np.float32(0))
        return self._how(program).jit(epoch).lower(*args)

    def _keep(self, program: _Program, compiled: Any) -> None:
        self._programs[program] = compiled
        if program != _EVALUATION:
            self._peak_bytes = max(self._peak_bytes, self._node_bytes(compiled))

    def _node_bytes(self, compiled: Any) -> int:
        """The compiler's peak for a node: arguments, results, temporaries; its own data in the
        place of all nodes'.
        """
        memory = compiled.memory_analysis()
        if memory is None:
            return 0
        total = (
            memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        )
        every = num_bytes(self._train)
        largest = every * max(map(len, self._shards)) // len(self._train.labels)
        return total - memory.alias_size_in_bytes - every + largest


def _by_layers(visits: Sequence[Visit]) -> dict[tuple[str, ...], list[int]]:
    """The numbers of the visits that train the same layers."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, visit in enumerate(visits):
        groups.setdefault(visit.layers, []).append(number)
    return groups


@jax.jit
def _epoch_keys(key: jax.Array, turns: jax.Array, nodes: jax.Array, epoch: jax.Array) -> jax.Array:
    def of_visit(turn: jax.Array, node: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, turn), node), epoch)

    return jax.vmap(of_visit)(turns, nodes)


def _first_copy(tree: Any) -> Any:
    """Arrays that lie whole on every device, as they lie on the first."""
    return jax.tree.map(lambda w: w.addressable_shards[0].data if len(w.devices()) > 1 else w, tree)
