"""How programs are compiled: the same options of the compiler for all that an engine runs.

A program is compiled ahead or on its first use, in this process or at an actor, read where an
earlier launch kept it, or called by way of jit. All that must give the same bits, so all of it goes
through here.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax

IMAGES, TEXT = "images", "text"
"""What a program works on."""

_OPTIONS: Mapping[tuple[str, str], Mapping[str, bool | int]] = {
    # On CPUs programs run briefly. Fusions through MLIR and LLVM's last level of optimisation are
    # more than half of what the compiler takes for a network for images, whose steps are as fast
    # without. A language model's are slower: docs/performance.md. Where gradients are not clipped,
    # the compiler by default copies every trained layer in every step, since a product may yet read
    # what the update overwrites; the analysis of regions finds that it does not.
    (IMAGES, "cpu"): {
        "xla_cpu_use_fusion_emitters": False,
        "xla_backend_optimization_level": 2,
        "xla_cpu_copy_insertion_use_region_analysis": True,
    },
}


def options(work: str, platform: str = "") -> dict[str, bool | int] | None:
    """What the compiler of a platform is told; None: nothing.

    What the user says in `XLA_FLAGS` is left as it is.

    Args:
      work: `IMAGES` or `TEXT`.
      platform: cpu, gpu or tpu, each of which knows its own options alone; empty: this process's.
    """
    by_user = os.environ.get("XLA_FLAGS", "")
    told = {}
    for name, value in _OPTIONS.get((work, platform or jax.default_backend()), {}).items():
        if name not in by_user:
            told[name] = value
    return told or None


def jit(work: str, function: Callable[..., Any], **arguments: Any) -> Any:
    """`jax.jit` for this process's platform, with our options of its compiler.

    Args:
      work: see `options`.
      function: of arrays.
      arguments: of `jax.jit`.
    """
    return jax.jit(function, compiler_options=options(work), **arguments)
