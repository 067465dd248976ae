"""The profiler's records: a row for each assignment, the case that a table is about, and both as
flat records.
"""

import re
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from snake_jax.costs import collectives
from snake_jax.costs.accounting import StateBytes, StepFlops
from snake_jax.costs.targets import Compiled, CompiledMemory, Refused


class Sent(NamedTuple):
    """Bytes of weights that a visit sends once every layer has been trained, by whether receivers
    keep what they got.

    Attributes:
      up: handed in to the server.
      down: from the server, to a node that keeps nothing, or comes for the first time.
      down_cached: to one that keeps what it was sent.
      onward: peer to peer, from the last node to the next, nothing kept; None: the method has no
        such mode.
      onward_cached: the same with what was sent kept.
    """

    up: int
    down: int
    down_cached: int
    onward: int | None = None
    onward_cached: int | None = None


class Counted(NamedTuple):
    """The compiler's count of a step's FLOPs, and the formula's of the same step."""

    flops: float
    formula_flops: int

    @property
    def difference(self) -> float:
        """How much more the compiler counts, as a share of the formula's."""
        return self.flops / self.formula_flops - 1


class Built(NamedTuple):
    """How compiling went: the program or the reason of its refusal, and seconds on the clock and of
    this process.
    """

    result: Compiled | Refused
    wall_s: float
    cpu_s: float

    @property
    def memory(self) -> CompiledMemory | None:
        """What the compiler reserves; None where it refused."""
        return self.result.memory if isinstance(self.result, Compiled) else None


class Measured(NamedTuple):
    """A step on the device.

    Attributes:
      step_s: median seconds.
      of_full: of the full step's, median over rounds in which both ran; None where that did not
        run.
      peak_bytes: most that the device has held; None where it does not tell, or held more for an
        earlier program.
      roofline: the share of what the device could at best: the larger of FLOPs over its peak rate
        and of bytes of arguments and results, moved once, over its peak bandwidth, over the step's
        seconds.
    """

    step_s: float
    of_full: float | None
    peak_bytes: int | None
    roofline: float


class Row(NamedTuple):
    """One assignment.

    Attributes:
      layer: the one that the row is about, `all`, or the place that it is about.
      trained: what trains.
      params: how many numbers of it train.
      flops: of a step.
      state: what a node holds through a visit.
      sent: None where nothing is.
      counted: the compiler's FLOPs; None: not compiled.
      built: None: not compiled.
      measured: None: not run.
    """

    layer: str
    trained: tuple[str, ...]
    params: int
    flops: StepFlops
    state: StateBytes
    sent: Sent | None = None
    counted: Counted | None = None
    built: Built | None = None
    measured: Measured | None = None


class Subject(NamedTuple):
    """One way to train and store a model: what the rows of a case are made from, as functions of
    what trains.

    Attributes:
      params: numbers that train.
      flops: of a step.
      state: bytes that a node holds.
      program: assignments for which it is equal share a program.
      compiled: a step for the target.
      counted: the compiler's count, given that program.
      runner: `(trained, program) -> function of nothing that does a step` on this machine's device.
    """

    params: Callable[[tuple[str, ...]], int]
    flops: Callable[[tuple[str, ...]], StepFlops]
    state: Callable[[tuple[str, ...]], StateBytes]
    program: Callable[[tuple[str, ...]], Hashable]
    compiled: Callable[[tuple[str, ...]], Compiled | Refused]
    counted: Callable[[tuple[str, ...], Compiled | Refused], Counted | None]
    runner: Callable[[tuple[str, ...], Compiled], Callable[[], Any]]


class Case(NamedTuple):
    """A way to train and store, and a row for each assignment; `full` trains every layer, for
    comparison.
    """

    train: str
    frozen_dtype: str
    rows: tuple[Row, ...]
    full: Row


def row_of(subject: Subject, layer: str, trained: tuple[str, ...], sent: Sent | None = None) -> Row:
    """What shapes alone say of an assignment."""
    return Row(
        layer,
        trained,
        subject.params(trained),
        subject.flops(trained),
        subject.state(trained),
        sent,
    )


def largest(case: Case) -> Row:
    """The row that holds the most."""
    return max(case.rows, key=lambda row: row.state.total)


def record(row: Row, full: Row) -> dict[str, Any]:
    """A row as a flat record; names say the units, `of_full` shares of full training."""
    flops = {f"{name}_flops": value for name, value in row.flops._asdict().items()}
    shares = {
        "of_full_flops": row.flops.total / full.flops.total,
        "of_full_state": row.state.total / full.state.total,
    }
    kinds = {
        "layer": row.layer,
        "trained": list(row.trained),
        "trainable_params": row.params,
        **flops,
        "step_flops": row.flops.total,
        **state_record(row.state),
        **shares,
    }
    sent = {
        f"sent_{name}_bytes": value
        for name, value in (row.sent._asdict() if row.sent else {}).items()
    }
    return (
        kinds
        | sent
        | _counted_record(row.counted)
        | built_record(row.built)
        | _measured_record(row.measured)
    )


def state_record(state: StateBytes) -> dict[str, int]:
    """Bytes by kind, and their sum."""
    return {f"{name}_bytes": size for name, size in state._asdict().items()} | {
        "state_bytes": state.total
    }


def built_record(built: Built | None) -> dict[str, Any]:
    """What the compiler reserves or why it refuses, what the program sends between devices, and how
    long it took.
    """
    if built is None:
        return {}
    seconds = {"compile_s": round(built.wall_s, 1), "compile_cpu_s": round(built.cpu_s, 1)}
    if isinstance(built.result, Refused):
        return {"refused": built.result.reason, **seconds}
    memory = built.result.memory
    kinds = {f"compiled_{name}_bytes": size for name, size in memory._asdict().items()}
    return {
        **kinds,
        "compiled_peak_bytes": memory.peak,
        **_collectives_record(built.result),
        **seconds,
    }


def _collectives_record(compiled: Compiled) -> dict[str, int]:
    """`collective_all_gather_s8_messages` and `_bytes`, and so on; nothing for a program of one
    device.
    """
    found = collectives.sent(compiled.program.as_text()).items()
    names = {kind: re.sub(r"\W", "_", f"collective {kind}") for kind, _ in found}
    messages = {f"{names[kind]}_messages": sent.messages for kind, sent in found}
    return messages | {f"{names[kind]}_bytes": sent.num_bytes for kind, sent in found}


def _counted_record(counted: Counted | None) -> dict[str, Any]:
    if counted is None:
        return {}
    return {
        "compiler_flops": counted.flops,
        "compiler_formula_flops": counted.formula_flops,
        "compiler_difference": counted.difference,
    }


def _measured_record(measured: Measured | None) -> dict[str, Any]:
    return (
        {}
        if measured is None
        else {f"measured_{name}": value for name, value in measured._asdict().items()}
    )
