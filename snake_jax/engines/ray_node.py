"""What a process does that plays nodes for another: `ray_engine` starts it as an actor.

It opens its nodes' data itself, keeps the layers that it was given or trained, by version, and its
compiled programs. All training is `LocalEngine`'s. Data never leaves; layers and counts do.
"""

import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ray

from snake_jax import allocation
from snake_jax.algorithms.visits import Outcome, Round, Serialized, Visit
from snake_jax.engines import ray_faults, updates, vitals
from snake_jax.engines.contract import (
    Compilations,
    Engine,
    Held,
    Holdings,
    NodeInfo,
    Progress,
)
from snake_jax.nodes import columns
from snake_jax.nodes.columns import WHOLE, Columns
from snake_jax.params import Params, PyTree
from snake_jax.training import quantization

Item = tuple[str, str | int]
"""What has versions: `("layers", "conv1")`; `("stored", "conv1")`, the same layer as a node stores
it while it is frozen; `("states", "conv1")`, `("memory", 3)` of a node, and `SHARED`. Where nodes
have unlike ranks, parts of adapters: `("layers", "block_05.lora[2:8]")`.
"""
SHARED: Item = ("shared", "")
STORED = "stored"
Build = Callable[[], Engine]
"""Opens the data of an actor's nodes, and no other's, where it is called; gives their engine."""

# What decides the compiler's work, so that programs here and there are the same.
_SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_disable_most_optimizations",
    "jax_enable_x64",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
    "jax_threefry_partitionable",
)


class Surroundings(NamedTuple):
    """What a process takes over from the one that runs the rounds, so that it finds the same files
    and compiles the same programs.

    Attributes:
      folder: that relative paths start at.
      flags: of XLA; None: those that are there.
      settings: of jax, by name.
      path: where modules are looked for, after the places that are known there.
      fault: that tests ask for; see `ray_faults`.
    """

    folder: str
    flags: str | None
    settings: Mapping[str, Any]
    path: tuple[str, ...]
    fault: str = ""


def surroundings(**changes: Any) -> Surroundings:
    """Those of this process, but for some of jax's settings."""
    settings = {name: jax.config.values[name] for name in _SETTINGS}
    flags = os.environ.get("XLA_FLAGS")
    own = settings | changes
    return Surroundings(os.getcwd(), flags, own, tuple(sys.path), ray_faults.asked())


class VisitTask(NamedTuple):
    """A visit, as a process is asked for it.

    Attributes:
      visit: who trains what.
      learning_rate: of all its steps.
      items: `{item: number}` of all that the visit reads. Equal numbers of an item are equal
        values.
      references: to those of them that the process lacks; in lists, or Ray would fetch them first.
      made: the number of all that the visit gives.
      columns: how adapters are cut.
    """

    visit: Visit
    learning_rate: float
    items: Mapping[Item, int]
    references: Mapping[Item, list["ray.ObjectRef"]]
    made: int
    columns: Columns = WHOLE


class Opened(NamedTuple):
    """What a process says when its data is open.

    Attributes:
      pid: its number.
      host: Ray's name of the machine.
      nodes: `{node: what it says of itself}`.
    """

    pid: int
    host: str
    nodes: Mapping[int, NodeInfo]


class Beat(NamedTuple):
    """What a process answers to a heart-beat.

    Attributes:
      progress: of the visit that is under way; None: there is none.
      compiling: whether it compiles, for a visit or ahead of all.
    """

    progress: Progress | None
    compiling: bool


class Facts(NamedTuple):
    """What comes back of a visit beside arrays.

    Attributes:
      outcome: without its arrays.
      items: which arrays come, in their order.
      compilations: of the process so far.
    """

    outcome: Outcome
    items: tuple[Item, ...]
    compilations: Compilations


class Node:
    """The actor's class. Its methods but `beat` and `prepare` run one after the other, in the order
    of calls.
    """

    def __init__(self, nodes: Sequence[int], cached: bool, about: Surroundings) -> None:
        """Opens nothing yet.

        Args:
          nodes: whose visits come here.
          cached: whether layers are kept from visit to visit.
          about: what is taken over, before anything of ours is unpickled or compiled.
        """
        allocation.keep_freed()
        self._nodes, self._cached = nodes, cached
        self._engine: Engine | None = None
        self._doing: tuple[Visit, float] | None = None
        self._ahead = False
        self._fault = about.fault
        self._held: dict[Key, PyTree] = {}
        self._whole: dict[tuple[Key, ...], PyTree] = {}
        self._expected = threading.Event()
        # The folder may be another machine's; what is missing then is said by who looks for it.
        if os.path.isdir(about.folder):
            os.chdir(about.folder)
        if about.flags is not None:
            os.environ["XLA_FLAGS"] = about.flags
        sys.path += [place for place in about.path if place not in sys.path]
        for name, value in about.settings.items():
            jax.config.update(name, value)

    def begin(self, build: Build) -> Opened:
        """Opens the data."""
        self._engine = build()
        infos = self._engine.nodes()
        own = {node: infos[node] for node in self._nodes if node < len(infos)}
        return Opened(os.getpid(), ray.get_runtime_context().get_node_id(), own)

    def expect(self, rounds: Sequence[Round], params: Params, shared: PyTree) -> None:
        """Compiles ahead: see `Engine`. A visit's deadline begins when its programs are there."""
        assert self._engine is not None
        self._ahead = True
        self._engine.expect(rounds, params, shared=shared, wait=True)
        self._ahead = False
        self._expected.set()

    def prepare(self, rounds: Sequence[Round], params: Params, shared: PyTree) -> None:
        """Compiles what may come unplanned, in a thread of its own: after what is planned, beside
        visits, one program after the other in the order of the schedule.
        """
        self._expected.wait()
        assert self._engine is not None
        for visits in rounds:
            self._engine.expect([visits], params, shared=shared, wait=True)

    def carry_out(self, task: VisitTask) -> tuple[Any, ...]:
        """Trains; gives facts, then a value for each of their items."""
        self._doing = task.visit, time.monotonic()
        try:
            return self._carried_out(task)
        finally:
            self._doing = None

    def _carried_out(self, task: VisitTask) -> tuple[Any, ...]:
        assert self._engine is not None
        received = self._fetch(task)
        fault = ray_faults.kind_for(self._fault, task.visit)
        ray_faults.stalled(fault)
        self._engine.hold(self._holdings(task))
        self._engine.submit(self._holdings(task).order(task.visit, task.learning_rate))
        outcome = self._engine.next()
        assert isinstance(outcome, Outcome)
        outcome = ray_faults.spoiled(fault, outcome)

        # What was trained stays here too, under its number, for whoever visits next.
        given = given_by(outcome, task.columns)
        for item, value in given.items():
            self._held[item, task.made] = value
        if not self._cached:
            self._held = {key: self._held[key] for key in remembered(set(self._held))}
        # The checksum is of the arrays as they are sent, on the host.
        values = jax.device_get(list(given.values()))
        outcome = outcome._replace(
            layers={},
            states={},
            memory=None,
            report=None,
            serialized=Serialized(received, 0),
            checksum=updates.checksum(outcome),
        )
        facts = Facts(outcome, tuple(given), self._engine.compilations)
        return (facts, *ray_faults.sent(fault, values))

    def _fetch(self, task: VisitTask) -> int:
        """Gets what is lacking and lets go of older versions; returns the bytes of it."""
        lacking = []
        for item, number in task.items.items():
            if (item, number) not in self._held:
                lacking.append(item)
        values = ray.get([task.references[item][0] for item in lacking])
        received = 0
        for item, value in zip(lacking, values, strict=True):
            received += serialized_bytes(value)
            # A copy, so that Ray may let go of its own.
            own = quantization.unpacked(value)
            if item[0] == STORED:
                own = quantization.Stored(own)
            self._held[item, task.items[item]] = own
        self._held = {key: self._held[key] for key in still_held(set(self._held), task)}
        return received

    def _holdings(self, task: VisitTask) -> Holdings:
        """What the visit reads, by number."""
        kinds: dict[str, dict[Any, Held]] = {"layers": {}, "states": {}, "memory": {}, "shared": {}}
        whole: dict[tuple[Key, ...], PyTree] = {}
        for item, number in task.items.items():
            kind, name = item
            keys = _keys_of(task, item)
            if not keys:  # a part, which its first one brings
                continue
            if len(keys) == 1:
                value = self._held[item, number]
            else:
                # The same object as long as it is the same, so that nothing is frozen anew.
                value = self._whole.get(keys)
                if value is None:
                    found = {part: self._held[(kind, part), of] for (_, part), of in keys}
                    value = columns.joined(task.columns, str(name), found)
                whole[keys] = value
            kinds["layers" if kind == STORED else kind][name] = Held(number, value)
        self._whole = whole
        shared = kinds["shared"].get("", Held(0, {}))
        return Holdings(kinds["layers"], kinds["states"], kinds["memory"], shared)

    def beat(self) -> Beat:
        """Answers, from a thread of its own, as long as the process does."""
        doing = self._doing
        if doing is None or self._engine is None:
            return Beat(None, self._ahead)
        visit, since_s = doing
        seconds = time.monotonic() - since_s
        progress = Progress(visit, 0, seconds, vitals.load(), vitals.memory_bytes())
        for one in self._engine.progress():
            progress = progress._replace(steps=one.steps, compiling=one.compiling)
        return Beat(progress, progress.compiling)


Key = tuple[Item, int]
"""An item and the number of its value."""


def still_held(keys: set[Key], task: VisitTask) -> set[Key]:
    """What is kept of this when a task begins: what it reads, and what its other nodes remember."""
    kept = keys & set(task.items.items())
    for item, number in keys:
        if item[0] == "memory" and item[1] != task.visit.node:
            kept.add((item, number))
    return kept


def remembered(keys: set[Key]) -> set[Key]:
    """What is kept of this by nodes that cache nothing: what they remember for their method."""
    return {key for key in keys if key[0][0] == "memory"}


def _keys_of(task: VisitTask, item: Item) -> tuple[tuple[tuple[str, str], int], ...]:
    """The parts of what an item stands for, with their numbers; none: it is no first part.

    Parts of optimizer states that nobody has trained yet are not there.
    """
    kind, name = item
    if kind not in ("layers", "states"):
        return (((kind, str(name)), task.items[item]),)
    found = []
    for part in columns.parts(task.columns, str(name).partition("[")[0]):
        if (kind, part) in task.items:
            found.append(((kind, part), task.items[kind, part]))
    return tuple(found) if found[0][0] == item else ()


def given_by(outcome: Outcome, cut: Columns = WHOLE) -> dict[Item, PyTree]:
    """The arrays of an outcome, by item; `("report", "")` is what the node tells the server.

    Of adapters they are the columns that the node trained.
    """
    given: dict[Item, PyTree] = {}
    for kind, trees in (("layers", outcome.layers), ("states", outcome.states)):
        for name, tree in trees.items():
            whole = columns.split(cut, name, tree)
            for part in columns.trained(cut, name, outcome.visit.node):
                given[kind, part] = whole[part]
    if outcome.memory is not None:
        given["memory", outcome.visit.node] = outcome.memory
        given["report", ""] = outcome.report
    return given


def serialized_bytes(value: PyTree) -> int:
    """Bytes that a value of NumPy arrays is sent as: pickled, its buffers included.

    Ray adds a frame of its own, some hundred bytes an object.
    """
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return len(head) + sum(buffer.raw().nbytes for buffer in buffers)
