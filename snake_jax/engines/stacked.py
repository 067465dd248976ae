"""Carries out visits on language models: one program for every block, blocks stored as a node
stores them.

The stack of blocks that do not train stays on the device from visit to visit. A visit overwrites
the places whose block is another one, or has been trained since: after a serpentine visit that is
one, the block just left, quantized then and only then. What is in full precision stays on the host.

On a mesh (`snake_jax.sharding`) the stack, and through a visit what trains, lie over all devices.
Of several processes each carries out all visits with its own devices: it reads its own rows of a
batch, and has all results on its host.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax import streams
from snake_jax.algorithms.visits import Outcome, Passed, Round, Text, Visit
from snake_jax.data.text import packing
from snake_jax.engines import placing
from snake_jax.engines.epochs import Tally, after_epoch, annotation, result
from snake_jax.engines.local import Compilations
from snake_jax.engines.text_batches import (
    Batch,
    Entrance,
    Shard,
    epoch_batches,
    num_tokens,
    row_batches,
)
from snake_jax.params import Params, PyTree
from snake_jax.train import sharding, stack
from snake_jax.train.optimizers import OptimizerStates, init_states, renamed
from snake_jax.train.text_step import (
    ENDS,
    Frozen,
    LanguageStep,
    block_roles,
    evaluate,
    own_dtype,
    own_items,
    prefix,
    train_step,
)


class StackedSettings(NamedTuple):
    """What decides a visit besides the step: see the flags of the same names in
    `config.TuneConfig`.
    """

    local_epochs: int
    batch_size: int
    accumulate: int
    frozen_dtype: str
    early_stop: float
    cache_prefix: str
    carry_optimizer_state: bool
    seed: int


class _Program(NamedTuple):
    """Which program: train, prefix or evaluate, the roles that train, tokens in a row, whether
    segments are told, and whether the lower blocks' output is given.
    """

    kind: str
    roles: tuple[str, ...]
    length: int
    packed: bool
    given: bool = False


class _Place(NamedTuple):
    """What lies in a place of the stack: which item, and the values that it was made from."""

    item: str
    source: PyTree


class StackedExecutor:
    """Emulates nodes, one after the other.

    Its state are the compiled programs and the blocks on the device; two runs of the same visits
    give the same bits.
    """

    def __init__(
        self,
        step: LanguageStep,
        base: Params,
        train: Mapping[int, packing.TextRows],
        test: Mapping[int, packing.TextRows],
        shards: Sequence[Shard],
        settings: StackedSettings,
        ranks: Sequence[int] = (),
    ) -> None:
        """Puts what never trains on the device, as nodes store it.

        Args:
          step: the local step.
          base: the layers that no visit trains, in full precision: with adapters all blocks, and
            ends.
          train: all nodes' rows, by tokens in a row.
          test: rows to evaluate on.
          shards: for each node, which rows are its own.
          settings: see `StackedSettings`.
          ranks: of each node's adapters, where some are smaller than the adapters'.
        """
        self._step, self._train, self._test, self._shards = step, train, test, shards
        self._settings, self._ranks, self._items = (
            settings,
            ranks,
            own_items(step.model, step.adapted),
        )
        self._shape = (settings.accumulate, settings.batch_size)
        self._mesh = step.mesh
        self._freeze = placing.freezing(step.mesh, settings.frozen_dtype)
        self._freeze_own = placing.freezing(
            step.mesh, own_dtype(settings.frozen_dtype, step.adapted)
        )
        self._fresh = jax.jit(
            lambda trainable: sharding.kept(
                step.mesh, init_states(step.rule, trainable, tuple(trainable))
            )
        )
        self._set = placing.setting(step.mesh)
        self._ends = {name: self._freeze(base[name]) for name in ENDS if name in base}
        blocks = [base[name] for name in own_items(step.model, False)] if step.adapted else []
        self._base = placing.stack_of(step.mesh, blocks, self._freeze, self._set) if blocks else {}
        self._own: PyTree = None
        self._places: list[_Place] = []
        self._programs: dict[_Program, Any] = {}
        self._compile_s, self._peak_bytes = 0.0, 0

    def run(
        self, visits: Sequence[Visit], params: Params, states: OptimizerStates, learning_rate: float
    ) -> list[Outcome]:
        """The visits of a round, all starting from `params`; results are in their order.

        Args:
          visits: who trains what.
          params: all that may train, in full precision; left as it is.
          states: optimizer states to go on from, by item; items not in it start afresh.
          learning_rate: of all their steps.
        """
        results = []
        for visit in visits:
            with jax.profiler.TraceAnnotation(annotation([visit])):
                results.append(self._visit(visit, params, states, learning_rate))
        return results

    def compile(self, rounds: Sequence[Round], params: Params, done: int = 0) -> None:
        """Nothing: a program is compiled when the first batch of its length comes."""

    def evaluate(self, params: Params) -> tuple[float, float]:
        """Share of the held-out tokens that the model holds likeliest, and their mean negative
        log-likelihood in nats.

        What may train is evaluated in full precision, what never does as nodes store it.
        """
        cast = placing.casting(self._mesh, self._step.compute_dtype)
        own = placing.stack_of(self._mesh, [params[name] for name in self._items], cast, self._set)
        ends = self._ends | sharding.put_stored(
            self._mesh, {n: params[n] for n in ENDS if n in params}
        )
        totals = np.zeros(3)
        for length, rows in self._test.items():
            for batch in row_batches(length, np.arange(len(rows.ids)), self._shape[1:]):
                some = placing.rows_of(self._mesh, rows, batch)
                program = _Program("evaluate", (), length, some.segments is not None)
                totals += np.array(
                    jax.device_get(self._call(program, self._base, own, ends, some)), np.float64
                )
        nll, hits, tokens = totals
        return float(hits / tokens), float(nll / tokens)

    @property
    def compilations(self) -> Compilations:
        """What was compiled so far."""
        return Compilations(len(self._programs), self._compile_s, self._peak_bytes or None)

    def _visit(
        self, visit: Visit, params: Params, states: OptimizerStates, learning_rate: float
    ) -> Outcome:
        roles = self._roles(visit.layers)
        shard, settings = self._shards[visit.node], self._settings
        trainable = placing.own_copy(
            self._mesh, {role: params[item] for role, item in roles.items()}
        )
        order, every = tuple(roles), self._step.model.layer_names + self._items * self._step.adapted
        kept = {
            role: renamed(states[item], every, item, order, role)
            for role, item in roles.items()
            if item in states
        }
        carried = self._fresh(trainable) | placing.own_copy(self._mesh, kept)
        received = jax.tree.map(jnp.array, trainable) if self._step.needs_received else {}
        frozen, rate, key = (
            self._frozen(visit, params),
            np.float32(learning_rate),
            _visit_key(settings.seed, visit),
        )
        entrance, tally, counts = None, Tally(), []
        for epoch in range(settings.local_epochs):
            batches = epoch_batches(
                visit, epoch, shard, self._shape, settings.local_epochs, settings.seed
            )
            if tally.over or not batches:
                continue
            started, compile_s = time.perf_counter(), self._compile_s
            if entrance is None:
                entrance, passed = self._entrance(frozen, tuple(roles), shard)
                counts += passed
            stats = []
            for number, batch in enumerate(batches):
                rows = placing.rows_of(
                    self._mesh, self._train[batch.length], batch, entrance.of(batch)
                )
                given = rows.hidden is not None
                program = _Program(
                    "train", tuple(roles), batch.length, rows.segments is not None, given
                )
                step_key = jax.random.fold_in(jax.random.fold_in(key, epoch), number)
                with jax.profiler.StepTraceAnnotation("train", step_num=number):
                    trainable, carried, stat = self._call(
                        program, trainable, carried, frozen, received, rows, step_key, rate
                    )
                stats.append(stat)
                counts.append(_Count(Passed(batch.length, batch.indices.size, given=given), batch))
            nll, tokens, finite = np.array(jax.device_get(stats), np.float64).T
            train_s = time.perf_counter() - started - (self._compile_s - compile_s)
            sums = (nll.sum(), tokens.sum(), bool(finite.all()))
            tally = after_epoch(tally, sums, len(batches), train_s, settings.early_stop)
        own = sharding.fetch({item: trainable[role] for role, item in roles.items()})
        new_states = {
            item: renamed(carried[role], order, role, every, item) for role, item in roles.items()
        }
        if self._mesh is not None:
            new_states = sharding.fetch(new_states) if settings.carry_optimizer_state else {}
        done = result(visit, own, new_states, tally, self._held(visit.node))
        return _with_text(done, counts, self._train, int(tally.examples))

    def _roles(self, layers: tuple[str, ...]) -> dict[str, str]:
        """`{role: item}` of what a visit trains."""
        blocks = [item for item in self._items if item in layers]
        return dict(zip(block_roles(len(blocks)), blocks, strict=True)) | {
            n: n for n in ENDS if n in layers
        }

    def _frozen(self, visit: Visit, params: Params) -> Frozen:
        """What the visit reads and does not train, as the node stores it."""
        first = next(i for i, item in enumerate(self._items) if item in visit.layers)
        wanted = [_Place(item, params[item]) for item in self._items if item not in visit.layers]
        if not wanted:
            none = placing.no_blocks(self._mesh, self._freeze_own(params[self._items[0]]))
            self._own, self._places = none, []
        elif len(wanted) != len(self._places):
            sources = [place.source for place in wanted]
            self._own = placing.stack_of(self._mesh, sources, self._freeze_own, self._set)
        else:
            for slot, (old, new) in enumerate(zip(self._places, wanted, strict=True)):
                if old.item != new.item or old.source is not new.source:
                    self._own = self._set(self._own, self._freeze_own(new.source), slot)
        self._places = wanted
        ends = self._ends | {
            n: self._freeze(params[n]) for n in ENDS if n in params and n not in visit.layers
        }
        return Frozen(
            stack.Frozen(self._base, self._own, jnp.int32(first)),
            ends,
            self._columns(visit, params),
        )

    def _columns(self, visit: Visit, params: Params) -> jax.Array | None:
        """Which columns of the adapters the node trains."""
        if not self._ranks:
            return None
        widths = [
            w.shape[-1]
            for path, w in jax.tree.leaves_with_path(params[self._items[0]])
            if path[-1].key == "a"
        ]
        return jnp.arange(max(widths)) < self._ranks[visit.node]

    def _entrance(
        self, frozen: Frozen, roles: tuple[str, ...], shard: Shard
    ) -> "tuple[Entrance, list[_Count]]":
        """The input of the first block that trains, for all rows of the node, where that is kept;
        and the work done.
        """
        settings, first = self._settings, int(frozen.blocks.first)
        useless = (
            settings.local_epochs == 1
            or not first
            or "embed" in roles
            or self._step.model.stochastic
        )
        if settings.cache_prefix == "off" or useless:
            return Entrance({}, {}), []
        kept, counts = {}, []
        for length, rows in shard.items():
            parts = []
            for batch in row_batches(length, rows, self._shape[1:]):
                some = placing.rows_of(self._mesh, self._train[length], batch)
                program = _Program("prefix", (), length, some.segments is not None)
                values = self._call(program, frozen, some)
                parts.append(sharding.fetch(values) if settings.cache_prefix == "host" else values)
                counts.append(_Count(Passed(length, batch.indices.size, prefix=True), None))
            join = np.concatenate if settings.cache_prefix == "host" else jnp.concatenate
            kept[length] = join(parts)
        places = {
            length: {int(row): i for i, row in enumerate(rows)} for length, rows in shard.items()
        }
        return Entrance(kept, places), counts

    def _held(self, node: int) -> int:
        """Tokens with a loss that the node holds."""
        return int(
            sum(
                self._train[length].weight[rows].sum()
                for length, rows in self._shards[node].items()
            )
        )

    def _call(self, program: _Program, *args: Any) -> Any:
        """Runs a program, compiled on first use; all uses have one shape."""
        args = sharding.put_everywhere(self._mesh, args)
        if program not in self._programs:
            started = time.perf_counter()
            jitted = self._jitted(program)
            compiled = jitted.lower(*args).compile()
            self._compile_s += time.perf_counter() - started
            # On a mesh by way of jit, which has it now: a compiled program refuses 4-bit arrays
            # that have their place, because their layout is not described as the one that it was
            # compiled for.
            self._programs[program] = compiled if self._mesh is None else jitted
            if program.kind == "train":
                self._peak_bytes = max(self._peak_bytes, _node_bytes(compiled))
        return self._programs[program](*args)

    def _jitted(self, program: _Program) -> Any:
        if program.kind == "train":
            return jax.jit(train_step(self._step, program.roles), donate_argnums=(0, 1))
        return jax.jit(prefix(self._step) if program.kind == "prefix" else evaluate(self._step))


class _Count(NamedTuple):
    passed: Passed
    batch: Batch | None


def _with_text(
    done: Outcome, counts: list[_Count], rows: Mapping[int, packing.TextRows], targets: int
) -> Outcome:
    trained = [count.batch for count in counts if count.batch is not None]
    tokens = sum(num_tokens(rows[batch.length], batch) for batch in trained)
    examples = sum(int(batch.real.sum()) for batch in trained)
    return done._replace(
        examples=examples, text=Text(tokens, targets, tuple(count.passed for count in counts))
    )


def _visit_key(seed: int, visit: Visit) -> jax.Array:
    return jax.random.fold_in(
        jax.random.fold_in(streams.key(seed, "key/visits"), visit.turn), visit.node
    )


def _node_bytes(compiled: Any) -> int:
    """The compiler's peak: arguments, results and temporaries."""
    memory = compiled.memory_analysis()
    if memory is None:
        return 0
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return total - memory.alias_size_in_bytes
