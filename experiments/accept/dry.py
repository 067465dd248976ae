"""Runs without a device: every program that a run would call, and the shapes it is called with.

The run goes through all its visits and evaluations, and is given zeros in the place of the numbers
that its programs compute. So no list of programs has to be kept beside what runs call.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from jax.stages import Lowered

from experiments.faults.runs import trained
from snake_jax.config import RunConfig
from snake_jax.costs import compiled
from snake_jax.engines.choice import HERE
from snake_jax.engines.local import LocalEngine
from snake_jax.engines.programs import Ahead, Program


class Called(NamedTuple):
    """A program of a run.

    Attributes:
      name: what kind it is, and what it trains.
      jitted: traced where its shapes are placed.
      shapes: of its arguments.
    """

    name: str
    jitted: Any
    shapes: tuple[Any, ...]


def called(config: RunConfig, platform: str) -> list[Called]:
    """All programs of a run's engine, each once, in the order of their first calls.

    Args:
      config: of the run.
      platform: of the device that the run is to be thought of as being on.
    """
    found: dict[Program, Called] = {}
    results: dict[Program, Any] = {}

    def call(engine: LocalEngine, program: Program, *arguments: Any) -> Any:
        # All calls of a program have one shape.
        if program not in found:
            jitted = engine._jitted(program)
            shapes = jax.eval_shape(lambda *given: given, *arguments)
            found[program] = Called(_name(program), jitted, shapes)
            results[program] = jax.eval_shape(jitted, *shapes)
        return jax.tree.map(_nothing, results[program])

    with _nothing_compiled(call), _on(platform):
        trained(config, HERE)
    return list(found.values())


def lowered_for(one: Called, device: Any) -> Lowered:
    """The program for a device that need not be there, before it is compiled."""
    # What is traced asks for the platform, kernels for the chip that they are compiled for.
    with jax.default_device(device), _on(device.platform):
        lowered: Lowered = one.jitted.lower(*compiled.placed(device, one.shapes))
        return lowered


@contextmanager
def _on(platform: str) -> Iterator[None]:
    """Has whoever asks for the platform of this process be told this one."""
    with mock.patch.object(jax, "default_backend", return_value=platform):
        yield


@contextmanager
def _nothing_compiled(call: Any) -> Iterator[None]:
    """Has engines give what `call` gives, and compile nothing ahead."""

    def ask(ahead: Ahead, program: Program, lower: Any) -> None:
        del ahead, program, lower

    with mock.patch.object(LocalEngine, "_call", call), mock.patch.object(Ahead, "ask", ask):
        yield


def _nothing(shape: Any) -> jax.Array:
    """Zeros; that something is so (a loss is finite) is true."""
    fill = jnp.ones if shape.dtype == bool else jnp.zeros
    return fill(shape.shape, shape.dtype)


def _name(program: Program) -> str:
    """Kind, what trains, and what else tells it from others of its kind."""
    parts = [" ".join([program.kind, *program.names])]
    if program.lead:
        parts.append(f"{program.lead[0]} nodes")
    if program.shape:
        parts.append(f"rows {program.shape}")
    return ", ".join(parts)
