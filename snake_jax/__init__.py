"""Layer-wise distributed learning in JAX and Flax.

The names below are imported when they are first used, so that `import snake_jax` costs nothing and
a command's help need not wait for jax.
"""

import importlib

__version__ = "0.1.0"

# Where each name is.
_MODULES = {
    # A run: what is to be trained, on what, and what comes of it.
    "Job": "snake_jax.runs.front",
    "image_data": "snake_jax.runs.front",
    "train": "snake_jax.runs.front",
    "prepare": "snake_jax.runs.loop",
    "Report": "snake_jax.runs.loop",
    "State": "snake_jax.runs.loop",
    "ImageConfig": "snake_jax.config",
    "TextConfig": "snake_jax.config",
    "UserError": "snake_jax.errors",
    # Models.
    "LayeredModel": "snake_jax.models.layered",
    "from_linen": "snake_jax.models.adapter",
    "from_nnx": "snake_jax.models.adapter",
    "from_preset": "snake_jax.models.presets",
    "load_pretrained": "snake_jax.models.hub",
    "generate": "snake_jax.models.generation",
    # A method of one's own.
    "Algorithm": "snake_jax.algorithms.base",
    "Merge": "snake_jax.algorithms.base",
    "REPLACE": "snake_jax.algorithms.base",
    "every_cycle": "snake_jax.algorithms.base",
    "relay": "snake_jax.algorithms.schedule",
    "side_by_side": "snake_jax.algorithms.schedule",
    "RELAY": "snake_jax.algorithms.traffic",
    "STAR": "snake_jax.algorithms.traffic",
    "Client": "snake_jax.training.update",
}


def __getattr__(name: str) -> object:
    """A name of `_MODULES`, imported at its first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    # Kept, so that the next use does not come here.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """For completion and `dir`."""
    return sorted([*globals(), *_MODULES])
