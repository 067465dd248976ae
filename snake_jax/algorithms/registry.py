"""The methods of the comparison, by name. A new one is a file beside these and a line here."""

from snake_jax.algorithms.accelerated_fl import ACCELERATED_FL
from snake_jax.algorithms.base import Algorithm
from snake_jax.algorithms.centralised import CENTRALISED
from snake_jax.algorithms.fedavg import FEDAVG
from snake_jax.algorithms.fedprox import FEDPROX
from snake_jax.algorithms.random_walking_snakes import RANDOM_WALKING_SNAKES
from snake_jax.algorithms.scaffold import SCAFFOLD
from snake_jax.algorithms.sequential import SEQUENTIAL
from snake_jax.algorithms.snake import SNAKE
from snake_jax.algorithms.split import SPLIT
from snake_jax.algorithms.splitfed import SPLITFED

_ALL = (
    SNAKE,
    FEDAVG,
    FEDPROX,
    SCAFFOLD,
    SEQUENTIAL,
    CENTRALISED,
    SPLIT,
    SPLITFED,
    ACCELERATED_FL,
    RANDOM_WALKING_SNAKES,
)
ALGORITHMS: dict[str, Algorithm] = {algorithm.name: algorithm for algorithm in _ALL}
