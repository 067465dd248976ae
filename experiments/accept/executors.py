"""Stage `executors`: nodes in turn (`loop`, `scan`), as a batch (`vmap`), over devices (`pmap`)."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.accept import material
from experiments.accept.outcome import Outcome, line_of
from experiments.accept.stages import Given
from experiments.bench.rows import LOWER, Row
from experiments.faults.runs import trained
from snake_jax.config import ImageConfig, TextConfig
from snake_jax.engines.choice import HERE
from snake_jax.runs import loop

TABLE = "Where runs end, beside `loop`"
OTHERS = ("scan", "vmap", "pmap")
MOST_OFF = 1e-3
"""Of the norm of what training changed: rounding alone, grown over the steps."""

Run = ImageConfig | TextConfig


def run(given: Given) -> Outcome:
    """A network for images and a language model."""
    rows: list[Row] = []
    failures = []
    for config in configs(given):
        try:
            base = _ended(config)
            setup = loop.prepare(config)
            start = loop.initial_state(setup).params
        except Exception as error:
            failures.append(f"{config.model}, loop: {line_of(error)}")
            continue
        for name in OTHERS:
            try:
                found = _ended(with_executor(config, name))
            except Exception as error:
                failures.append(f"{config.model}, {name}: {line_of(error)}")
                continue
            distance = _norm(found, base) / _norm(base, start)
            row = Row(TABLE, f"{config.model}, {config.algorithm}", name, distance)
            rows.append(row._replace(better=LOWER, limit=MOST_OFF))
    note = f"{len(jax.devices())} devices. Norm of the difference over that of what changed."
    return Outcome(rows, failures, (note,))


def configs(given: Given) -> list[Run]:
    """Of `loop`."""
    sizes = given.sizes
    images: dict[str, Any] = {"model": sizes.images["model"], "dataset": "digits"}
    text: dict[str, Any] = {"model": "tiny-llama", "data": material.write_pairs(given.folder)}
    text |= {"algorithm": "fedavg", "nodes": 2, "cycles": 1, "batch_size": 4, "max_length": 48}
    return [ImageConfig(**{**images, **sizes.alike}), TextConfig(**text, lora_rank=4)]


def with_executor(config: Run, executor: str) -> Run:
    """The same run, its nodes emulated in another way."""
    if isinstance(config, ImageConfig):
        return ImageConfig(**{**vars(config), "executor": executor})
    return TextConfig(**{**vars(config), "executor": executor})


def _ended(config: Run) -> Any:
    """The parameters that a run ends with."""
    return trained(config, HERE)[-1].state.params


def _norm(ours: Any, theirs: Any) -> float:
    """Of the difference of all parameters, as one vector."""
    total = 0.0
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        difference = jnp.asarray(mine, jnp.float32) - jnp.asarray(other, jnp.float32)
        total += float(jnp.square(difference).sum())
    return total**0.5
