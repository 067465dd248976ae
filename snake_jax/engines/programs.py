"""What tells one compiled program of an engine from another, and programs compiled ahead."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
from jax.stages import Compiled, Lowered


class Program(NamedTuple):
    """Which program.

    Attributes:
      kind: train, evaluate, score (what nodes hold out) or prefix.
      names: of what trains, as the layout calls them.
      lead: leading axes of its nodes; none for one node.
      shape: see `feeds.Chunk`.
      rank: see `layout.Layout.rank`.
    """

    kind: str
    names: tuple[str, ...] = ()
    lead: tuple[int, ...] = ()
    shape: Any = ()
    rank: int = 0


EVALUATE = Program("evaluate")


class _Coming(NamedTuple):
    """A program that was asked for: how to trace it, and the trace that ends in a compilation."""

    lower: Callable[[], Lowered]
    traced: "Future[Future[Compiled]]"


class Ahead:
    """Compiles programs in the background, in the order in which they were asked for.

    Python traces one program at a time, so a single thread does that, in order; the compiler has a
    thread for each core. Whoever needs a program that nobody has begun compiles it itself, so what
    is needed first never waits for what is needed later.
    """

    def __init__(self) -> None:
        """Starts no thread before there is something to do."""
        self._coming: dict[Program, _Coming] = {}
        self._tracing = ThreadPoolExecutor(1, "trace")
        self._compiling = ThreadPoolExecutor(os.cpu_count(), "compile")

    def __contains__(self, program: Program) -> bool:
        """Whether it was asked for and not yet taken."""
        return program in self._coming

    def __len__(self) -> int:
        """How many were asked for and not yet taken."""
        return len(self._coming)

    def ask(self, program: Program, lower: Callable[[], Lowered]) -> None:
        """Has a program traced and compiled after all those asked for before.

        Args:
          program: which; nothing happens where it was asked for.
          lower: traces it; called in another thread, with the default device of this one.
        """
        if program in self._coming:
            return
        # jax keeps this setting by thread: seeds that train side by side have a device each.
        device = jax.config.jax_default_device  # type: ignore[attr-defined]

        def trace() -> "Future[Compiled]":
            with jax.default_device(device):
                lowered = lower()
            return self._compiling.submit(lowered.compile)

        self._coming[program] = _Coming(lower, self._tracing.submit(trace))

    def take(self, program: Program) -> Compiled:
        """The compiled program, which is forgotten here; waits for it.

        Raises:
          KeyError: it was not asked for, or was taken.
          Exception: what tracing or compiling it raised.
        """
        coming = self._coming.pop(program)
        if coming.traced.cancel():
            return coming.lower().compile()
        compiled = coming.traced.result()
        if compiled.cancelled():
            return coming.lower().compile()
        return compiled.result()

    def finish(self) -> None:
        """Returns when all that was asked for is compiled.

        Raises:
          Exception: what tracing or compiling one of them raised.
        """
        for coming in list(self._coming.values()):
            if not coming.traced.cancelled():
                coming.traced.result().result()

    def check(self) -> None:
        """Raises what tracing or compiling a program raised so far, though nobody asked for it yet.

        Raises:
          Exception: that.
        """
        for coming in list(self._coming.values()):
            traced = coming.traced
            if not traced.done() or traced.cancelled():
                continue
            compiled = traced.result()
            if compiled.done() and not compiled.cancelled():
                compiled.result()

    def close(self) -> None:
        """Begins no further program, and returns when no thread is at one: the compiler cannot be
        interrupted. What is taken later is compiled by whoever takes it.
        """
        begun = [one.traced for one in self._coming.values() if not one.traced.cancel()]
        wait(begun)
        under_way = []
        for traced in begun:
            if traced.exception() is None:
                under_way.append(traced.result())
        for compiled in under_way:
            compiled.cancel()
        wait(under_way)


def peak_bytes(compiled: Compiled) -> int:
    """The compiler's peak of a program: arguments, results and temporaries; 0: it does not tell."""
    memory = compiled.memory_analysis()
    if memory is None:
        return 0
    arguments, results = memory.argument_size_in_bytes, memory.output_size_in_bytes
    total = arguments + results + memory.temp_size_in_bytes - memory.alias_size_in_bytes
    return int(total)
