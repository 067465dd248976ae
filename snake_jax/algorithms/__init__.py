"""The methods of the comparison, by name. A new one is a file of pure functions beside these and a line here."""

from snake_jax.algorithms.base import Algorithm
from snake_jax.algorithms.centralised import CENTRALISED
from snake_jax.algorithms.fedavg import FEDAVG
from snake_jax.algorithms.sequential import SEQUENTIAL
from snake_jax.algorithms.snake import SNAKE

ALGORITHMS: dict[str, Algorithm] = {a.name: a for a in (SNAKE, FEDAVG, SEQUENTIAL, CENTRALISED)}

__all__ = ["ALGORITHMS", "Algorithm"]
