"""The stages in the order of their value, and what they are expected to take."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from experiments.accept import outcome
from experiments.accept.outcome import PASSED, Outcome, Result
from experiments.accept.sizes import Sizes
from snake_jax.errors import UserError

DEVICE = "device"
# Times what a stage is expected to take; a CPU may be shared with others.
_PATIENCE = {"full": 3.0, "small": 8.0, "test": 8.0}
_PATIENCE_S = 120.0  # and so many seconds more, after which it is ended


class Given(NamedTuple):
    """What a stage works with.

    Attributes:
      sizes: of the scale.
      folder: of its own files.
      data: CIFAR-10, as `experiments.reproduce` takes it; empty: there is none.
      limit_s: seconds after which it is ended.
    """

    sizes: Sizes
    folder: Path
    data: str
    limit_s: float


class Stage(NamedTuple):
    """One part of the acceptance.

    Attributes:
      name: also of its module, whose `run(Given)` gives an Outcome.
      about: what passes where it passes.
      expected_s: seconds, by scale, with the start of its process.
      environment: of its process; values of XLA_FLAGS are added to those that there are.
      fills: whether it goes on for as long as there is time, and then ends by itself.
    """

    name: str
    about: str
    expected_s: Mapping[str, float]
    environment: Mapping[str, str] = {}
    fills: bool = False


class Runs(Protocol):
    """A stage's module."""

    def run(self, given: Given) -> Outcome:
        """What the stage finds."""


# A compiler that chooses among algorithms by timing them chooses other ones in another process.
_SAME_BITS = {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"}
# What a compiler tries out is held too, and would hide what a step holds.
_UNTRIED = {"XLA_FLAGS": "--xla_gpu_autotune_level=0"}
# Programs of unlike shapes round alike only where products are in full precision.
_EXACT = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}

STAGES = (
    Stage(DEVICE, "what the device is, and its best rates", {"full": 60, "small": 25, "test": 15}),
    Stage(
        "kernels",
        "kernels give what their references give, as near as the compiler's own operations do",
        {"full": 180, "small": 60, "test": 20},
    ),
    Stage(
        "training",
        "VGG-11 and a tiny Llama learn; killed with SIGKILL and gone on with they end with the "
        "same bits",
        {"full": 180, "small": 150, "test": 40},
        _SAME_BITS,
    ),
    Stage(
        "executors",
        "nodes in turn, in one call, as one batch and spread over devices end alike",
        {"full": 120, "small": 90, "test": 20},
        _EXACT,
    ),
    Stage(
        "large",
        "a Snake step of OPT-1.3B and of Llama-3-8B with random weights: rate and peak",
        {"full": 240, "small": 30, "test": 15},
    ),
    Stage(
        "memory",
        "the measured peak is the compiled one",
        {"full": 120, "small": 60, "test": 20},
        _UNTRIED,
    ),
    Stage(
        "steps",
        "a step that trains a part takes the part of the time that it takes of the FLOPs",
        {"full": 150, "small": 60, "test": 20},
    ),
    Stage(
        "speed",
        "kernels beside the compiler's own operations and other libraries'",
        {"full": 240, "small": 120, "test": 25},
    ),
    Stage(
        "figure5",
        "CIFAR-10, figure 5, three seeds, as far as minutes remain",
        {"full": 150, "small": 60, "test": 30},
        fills=True,
    ),
)


def chosen(words: Sequence[str]) -> tuple[Stage, ...]:
    """The stages of these names in their own order, all of none; the device's is always there.

    Raises:
      UserError: there is no such stage.
    """
    names = [stage.name for stage in STAGES]
    for word in words:
        if word not in names:
            raise UserError(f"--only={word}: no such stage; there are {', '.join(names)}")
    if not words:
        return STAGES
    return tuple(stage for stage in STAGES if stage.name in (DEVICE, *words))


def patience_s(stage: Stage, scale: str) -> float:
    """Seconds after which a stage that does not end is one that failed."""
    return _PATIENCE[scale] * stage.expected_s[scale] + _PATIENCE_S


def limit_s(stage: Stage, scale: str, left_s: float) -> float | None:
    """Seconds after which a stage is ended; None: it is not begun, since it would not fit."""
    if stage.expected_s[scale] > left_s:
        return None
    return left_s if stage.fills else min(left_s, patience_s(stage, scale))


def carry_out(
    stages: Sequence[Stage],
    scale: str,
    folder: Path,
    left_s: Callable[[], float],
    launch: Callable[[Stage, float], Result],
    say: Callable[[str], None],
    told: Callable[[Sequence[Result]], None],
) -> list[Result]:
    """Every stage that has not passed before and fits; each result is written as it is there.

    Args:
      stages: in order.
      scale: of all.
      folder: of the results.
      left_s: seconds that are left.
      launch: carries a stage out within so many seconds.
      say: is told of progress, line by line.
      told: is given the results of all stages whenever one is there, and before the first: those
        that were not reached yet did not fit. So a page can be written that outlives what ends us.
    """
    results = {stage.name: _before(stage, scale, folder) for stage in stages}
    told(list(results.values()))
    for stage in stages:
        if results[stage.name].status == PASSED:
            say(f"{stage.name}: passed before")
            continue
        limit = limit_s(stage, scale, left_s())
        if limit is None:
            # No file is written: the same command with more minutes does it.
            say(f"{stage.name}: did not fit, {left_s():.0f} s left")
            line = f"expected to take {stage.expected_s[scale]:.0f} s, {left_s():.0f} s were left"
            results[stage.name] = outcome.left_out(stage.name, scale, 0.0, line)
        else:
            say(f"{stage.name}: {stage.about}")
            result = launch(stage, limit)
            outcome.write(folder, result)
            results[stage.name] = result
            say(f"{stage.name}: {result.status} in {result.took_s:.0f} s")
            for line in outcome.unmet(result.outcome):
                say(f"  {line}")
        told(list(results.values()))
    return list(results.values())


def _before(stage: Stage, scale: str, folder: Path) -> Result:
    """What a stage passed with before; of others that they were not reached."""
    before = outcome.read(folder, stage.name)
    if before is not None and before.status == PASSED:
        return before
    return outcome.left_out(stage.name, scale, 0.0, "the acceptance was ended before it")
