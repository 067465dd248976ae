"""Layer-wise distributed learning in JAX and Flax.

The names below are imported when they are first used, so that `import snake_jax` costs nothing and
a command's help need not wait for jax.
"""

import importlib

__version__ = "0.1.0"

# Where each name is.
_MODULES = {
    "Algorithm": "snake_jax.algorithms.base",
    "ImageConfig": "snake_jax.config",
    "Layer": "snake_jax.models.layered",
    "LayeredModel": "snake_jax.models.layered",
    "TextConfig": "snake_jax.config",
    "UserError": "snake_jax.errors",
    "from_linen": "snake_jax.models.adapter",
    "from_nnx": "snake_jax.models.adapter",
    "load_pretrained": "snake_jax.models.hub",
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
