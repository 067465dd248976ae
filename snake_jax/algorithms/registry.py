"""The methods of the comparison, by name.

`snake_jax.names.ALGORITHMS` is the list: a new method is a file beside these of its name, with the
`Algorithm` under the name in capitals, and a line there.
"""

import importlib

from snake_jax import names
from snake_jax.algorithms.base import Algorithm


def _named(name: str) -> Algorithm:
    module = importlib.import_module(f"snake_jax.algorithms.{name}")
    return getattr(module, name.upper())


ALGORITHMS: dict[str, Algorithm] = {name: _named(name) for name in names.ALGORITHMS}
