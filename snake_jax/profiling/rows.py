"""The profiler's rows, one an assignment; the cases that tables are about; flat records."""

import re
from typing import Any, NamedTuple

from snake_jax.costs import collectives
from snake_jax.costs.compiled import Compiled, CompiledMemory, Refused
from snake_jax.costs.flops import StepFlops
from snake_jax.costs.memory import StateBytes
from snake_jax.params import LayerNames


class Sent(NamedTuple):
    """Bytes of weights that a visit sends once every layer has been trained.

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
    """How compiling went.

    Attributes:
      result: the program, or the reason of its refusal.
      wall_s: seconds on the clock.
      cpu_s: seconds of this process.
    """

    result: Compiled | Refused
    wall_s: float
    cpu_s: float

    @property
    def memory(self) -> CompiledMemory | None:
        """What the compiler reserves; None where it refused."""
        return self.result.memory if isinstance(self.result, Compiled) else None


class MeasuredStep(NamedTuple):
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


class ProfileRow(NamedTuple):
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
    trained: LayerNames
    params: int
    flops: StepFlops
    state: StateBytes
    sent: Sent | None = None
    counted: Counted | None = None
    built: Built | None = None
    measured: MeasuredStep | None = None


class Case(NamedTuple):
    """A way to train and store.

    Attributes:
      train: how people call what trains.
      frozen_dtype: of what does not; `-` where everything trains.
      rows: one for each assignment.
      full: every layer trains, for comparison.
    """

    train: str
    frozen_dtype: str
    rows: tuple[ProfileRow, ...]
    full: ProfileRow


def largest_row(case: Case) -> ProfileRow:
    """The row that holds the most."""
    return max(case.rows, key=_state_bytes)


def _state_bytes(row: ProfileRow) -> int:
    return row.state.total


def record(row: ProfileRow, full: ProfileRow) -> dict[str, Any]:
    """A row as a flat record; names say the units, `of_full` shares of full training."""
    # What shapes say there is of every row.
    found: dict[str, Any] = {
        "layer": row.layer,
        "trained": list(row.trained),
        "trainable_params": row.params,
    }
    for name, flops in row.flops._asdict().items():
        found[f"{name}_flops"] = flops
    found["step_flops"] = row.flops.total
    found |= state_record(row.state)
    found["of_full_flops"] = row.flops.total / full.flops.total
    found["of_full_state"] = row.state.total / full.state.total

    # What was not counted or measured has no keys at all.
    if row.sent is not None:
        for name, size in row.sent._asdict().items():
            found[f"sent_{name}_bytes"] = size
    if row.counted is not None:
        found["compiler_flops"] = row.counted.flops
        found["compiler_formula_flops"] = row.counted.formula_flops
        found["compiler_difference"] = row.counted.difference
    found |= built_record(row.built)
    if row.measured is not None:
        for name, value in row.measured._asdict().items():
            found[f"measured_{name}"] = value
    return found


def state_record(state: StateBytes) -> dict[str, int]:
    """Bytes by kind, and their sum."""
    found = {}
    for name, size in state._asdict().items():
        found[f"{name}_bytes"] = size
    found["state_bytes"] = state.total
    return found


def built_record(built: Built | None) -> dict[str, Any]:
    """How compiling went: what is reserved or why it is refused, what is sent, and how long.

    Nothing where nothing was compiled.
    """
    if built is None:
        return {}
    seconds = {"compile_s": round(built.wall_s, 1), "compile_cpu_s": round(built.cpu_s, 1)}
    if isinstance(built.result, Refused):
        return {"refused": built.result.reason, **seconds}
    memory = built.result.memory
    reserved = {}
    for name, size in memory._asdict().items():
        reserved[f"compiled_{name}_bytes"] = size
    reserved["compiled_peak_bytes"] = memory.peak
    return {**reserved, **_collectives_record(built.result), **seconds}


def _collectives_record(compiled: Compiled) -> dict[str, int]:
    """What a program sends between devices; nothing for a program of one device.

    `collective_all_gather_s8_messages` and `_bytes`, and so on: all messages before all bytes.
    """
    # The program's text is the only place where a compiler tells of messages.
    found = collectives.sent(compiled.program.as_text())
    messages, num_bytes = {}, {}
    for kind, sent in found.items():
        name = re.sub(r"\W", "_", f"collective {kind}")
        messages[f"{name}_messages"] = sent.messages
        num_bytes[f"{name}_bytes"] = sent.num_bytes
    return messages | num_bytes
