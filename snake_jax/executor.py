"""Carries out visits: one compiled program for each distinct assignment, kept for the whole run.

`Executor.run` takes the visits of a round and gives their results; nothing above it knows how the nodes are emulated.
This one visits them one after the other on one device (`loop`).
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax import quantization
from snake_jax.layers import Params, num_bytes, select, without
from snake_jax.optimizers import OptimizerStates, init_states
from snake_jax.schedule import Visit
from snake_jax.steps import Batches, Examples, LocalStep, evaluate, local_epoch

_EVALUATION = ("evaluation",)  # the name of its program; a visit's is its layers


class VisitResult(NamedTuple):
    """What a visit gives back.

    Attributes:
      visit: which.
      layers: the trained layers' new parameters.
      states: their optimizer states.
      loss: mean over the visit's examples, NaN where it did no step.
      finite: whether all losses and new parameters are finite.
      iterations: optimizer steps done.
      examples: examples seen.
      examples_held: examples the node holds.
      train_s: seconds the program ran, compilation apart.
    """

    visit: Visit
    layers: Params
    states: OptimizerStates
    loss: float
    finite: bool
    iterations: int
    examples: int
    examples_held: int
    train_s: float


class VisitSettings(NamedTuple):
    """What decides a visit besides the step: see the flags of the same names in `config.Config`."""

    local_epochs: int
    batch_size: int
    frozen_dtype: str
    early_stop: float
    seed: int


class Compilations(NamedTuple):
    """How many programs were compiled, the seconds that took, and a node's greatest compiled memory (None: unknown)."""

    programs: int
    seconds: float
    peak_bytes: int | None


class Executor:
    """Emulates nodes on one device, one after the other.

    The compiled programs are the only state: two runs of one visit give the same bits.
    """

    def __init__(
        self,
        step: LocalStep,
        train: Examples,
        test: Examples,
        shards: Sequence[np.ndarray],
        settings: VisitSettings,
    ) -> None:
        """Puts the data on the device.

        Args:
          step: the local step.
          train: all nodes' examples.
          test: examples for `evaluate`.
          shards: for each node, its indices into `train`.
          settings: see `VisitSettings`.
        """
        largest = max(map(len, shards))
        self._step, self._shards = step, shards
        self._settings = settings._replace(batch_size=min(settings.batch_size, largest))  # no batch is all padding
        self._train, self._test = jax.device_put((train, test))
        self._rows = -(-largest // self._settings.batch_size)
        self._programs: dict[tuple[str, ...], Any] = {}
        self._freeze = jax.jit(lambda subtree: quantization.freeze(subtree, settings.frozen_dtype))
        self._compile_s, self._peak_bytes = 0.0, 0

    def run(
        self, visits: Sequence[Visit], params: Params, states: OptimizerStates, learning_rate: float
    ) -> list[VisitResult]:
        """The visits of a round, all starting from `params`.

        Args:
          visits: who trains what.
          params: the whole model in full precision; left as it is.
          states: optimizer states to go on from, by layer; layers not in it start afresh.
          learning_rate: of all their steps.
        """
        return [self._visit(visit, params, states, learning_rate) for visit in visits]

    def compile(self, assignments: Iterable[tuple[str, ...]], params: Params) -> None:
        """Compiles the programs of these assignments and of the evaluation, side by side on the machine's cores.

        Args:
          assignments: tuples of layers, repeats allowed.
          params: the whole model (shapes suffice).
        """
        started = time.perf_counter()
        names = [name for name in dict.fromkeys([*assignments, _EVALUATION]) if name not in self._programs]
        lowered = [self._lower(name, self._shapes(name, params)) for name in names]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for name, program in zip(names, pool.map(lambda low: low.compile(), lowered), strict=True):
                self._keep(name, program)
        self._compile_s += time.perf_counter() - started

    def _shapes(self, name: tuple[str, ...], params: Params) -> tuple:
        """The shapes of the arguments of a program."""
        if name == _EVALUATION:
            return params, self._test
        received = jax.eval_shape(lambda params: self._received(name, params, {}), params)
        nobody = _epoch_batches(self._shards[0], self._rows, self._settings.batch_size, 0, 0)
        return (*received, self._train, nobody, jax.random.key(0), jnp.float32(0))

    def evaluate(self, params: Params) -> tuple[float, float]:
        """Accuracy and mean loss on the test examples."""
        program = self._program(_EVALUATION, (params, self._test))
        accuracy, loss = jax.device_get(program(params, self._test))
        return float(accuracy), float(loss)

    @property
    def compilations(self) -> Compilations:
        """What was compiled so far."""
        return Compilations(len(self._programs), self._compile_s, self._peak_bytes or None)

    def _visit(self, visit: Visit, params: Params, states: OptimizerStates, learning_rate: float) -> VisitResult:
        settings, shard = self._settings, self._shards[visit.node]
        trainable, carried, frozen, teacher = self._received(visit.layers, params, states)
        rate, key = jnp.float32(learning_rate), _visit_key(settings.seed, visit)

        totals, previous, train_s = np.zeros(3), np.inf, 0.0
        finite = True
        for epoch, batches in _visit_batches(visit, shard, self._rows, settings):
            args = (trainable, carried, frozen, teacher, self._train, batches, jax.random.fold_in(key, epoch), rate)
            program = self._program(visit.layers, args)
            started = time.perf_counter()
            trainable, carried, stats = jax.block_until_ready(program(*args))
            train_s += time.perf_counter() - started
            loss_sum, examples, finite = (float(stats.loss_sum), float(stats.examples), bool(stats.finite))
            totals += (loss_sum, examples, int(batches.steps))
            loss = loss_sum / max(examples, 1.0)
            if not finite or (settings.early_stop and previous - loss < settings.early_stop * abs(previous)):
                break
            previous = loss
        mean_loss = totals[0] / totals[1] if totals[1] else float("nan")
        iterations, examples_seen = int(totals[2]), int(totals[1])
        return VisitResult(visit, trainable, carried, mean_loss, finite, iterations, examples_seen, len(shard), train_s)

    def _received(
        self, trained: tuple[str, ...], params: Params, states: OptimizerStates
    ) -> tuple[Params, OptimizerStates, Params, Params]:
        """What a visit starts from: trained layers and their states (copies: the program consumes them), the frozen
        layers as stored, the teacher's layers.
        """
        received = select(params, trained)
        kept = jax.tree.map(jnp.copy, {name: states[name] for name in trained if name in states})
        fresh = init_states(self._step.rule, without(received, kept), self._step.model.layer_names)
        teacher = received if self._step.distillation is not None else {}
        frozen = self._frozen(without(params, trained))
        return jax.tree.map(jnp.copy, received), kept | fresh, frozen, teacher

    def _frozen(self, layers: Params) -> Params:
        """As a node stores them, made from the full-precision values."""
        if self._settings.frozen_dtype == "float32":
            return layers
        return {name: self._freeze(subtree) for name, subtree in layers.items()}

    def _program(self, name: tuple[str, ...], args: tuple) -> Callable:
        """The program of an assignment or of the evaluation, compiled on first use; all uses have one shape."""
        if name not in self._programs:
            started = time.perf_counter()
            self._keep(name, self._lower(name, args).compile())
            self._compile_s += time.perf_counter() - started
        return self._programs[name]

    def _lower(self, name: tuple[str, ...], args: tuple) -> Any:
        if name == _EVALUATION:
            return jax.jit(evaluate(self._step)).lower(*args)
        return jax.jit(local_epoch(self._step, name), donate_argnums=(0, 1)).lower(*args)

    def _keep(self, name: tuple[str, ...], program: Any) -> None:
        self._programs[name] = program
        if name != _EVALUATION:
            self._peak_bytes = max(self._peak_bytes, self._node_bytes(program))

    def _node_bytes(self, program: Any) -> int:
        """The compiler's peak for a node: arguments, results, temporaries; its own data in the place of all nodes'."""
        memory = program.memory_analysis()
        if memory is None:
            return 0
        total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        every = num_bytes(self._train)
        largest = every * max(map(len, self._shards)) // len(self._train.labels)
        return total - memory.alias_size_in_bytes - every + largest


def _visit_key(seed: int, visit: Visit) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), visit.turn), visit.node)


def _visit_batches(visit: Visit, shard: np.ndarray, rows: int, settings: VisitSettings) -> list[tuple[int, Batches]]:
    """The visit's epochs, `(epoch, batches)`, each a fresh shuffle of the shard; `visit.share` cuts the steps."""
    steps = -(-len(shard) // settings.batch_size)
    begin, end = (int(part * steps * settings.local_epochs) for part in visit.share)
    epochs = []
    for epoch in range(settings.local_epochs):
        low, high = max(begin - epoch * steps, 0), min(end - epoch * steps, steps)
        if low < high:
            rng = np.random.default_rng([settings.seed, visit.turn, visit.node, epoch])
            epochs.append((epoch, _epoch_batches(rng.permutation(shard), rows, settings.batch_size, low, high)))
    return epochs


def _epoch_batches(order: np.ndarray, rows: int, batch_size: int, low: int, high: int) -> Batches:
    """Rows `low` to `high` of the batches of an ordered shard, padded to `rows` rows."""
    chosen = order[low * batch_size : high * batch_size]
    index, weight = np.zeros(rows * batch_size, np.int32), np.zeros(rows * batch_size, np.float32)
    index[: len(chosen)], weight[: len(chosen)] = chosen, 1.0
    shape = (rows, batch_size)
    return Batches(jnp.asarray(index.reshape(shape)), jnp.asarray(weight.reshape(shape)), jnp.int32(high - low))
