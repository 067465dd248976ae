"""Carries out visits: `Executor.run` takes those of a round and gives their results, however the nodes are emulated.

There is one `Executor`. What `--executor=loop`, `vmap`, `pmap` and `shard_map` differ in is how visits that train the
same layers become one program (`emulations`).
"""

from snake_jax.executor.emulations import EMULATIONS
from snake_jax.executor.executor import Compilations, Executor
from snake_jax.executor.visits import VisitResult, VisitSettings

__all__ = ["EMULATIONS", "Compilations", "Executor", "VisitResult", "VisitSettings"]
