"""LISA: random blocks of one model in one place, the first and the last layer at every step.

Pan et al., "LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model
Fine-Tuning", NeurIPS 2024 (arXiv 2403.17919), Algorithm 1: every K steps some blocks are drawn,
each as likely as any other, and trained with the embedding and the head; all others are frozen.
Optimizer states of a period are dropped with it, those of the ends too. A cycle is a turn of
`--periods` draws, which share its passes over the data: K is 1/periods of its steps. With
`--layers_per_visit` above 1 the drawn blocks are neighbours; in the paper they need not be.
"""

from snake_jax import streams
from snake_jax.algorithms.base import REPLACE, Algorithm, every_cycle
from snake_jax.algorithms.centralised import pooled
from snake_jax.algorithms.schedule import Plan, in_periods
from snake_jax.algorithms.traffic import NO_TRAFFIC
from snake_jax.algorithms.visits import Rounds
from snake_jax.config import RunConfig
from snake_jax.errors import UserError
from snake_jax.params import LayerNames

_FLAGS = frozenset({"layers_per_visit", "always_train", "frozen_dtype", "periods"})
_ENDS = ({"first", "last"}, {"embed", "head"})


def _rounds(plan: Plan, cycle: int) -> Rounds:
    """As many draws a cycle as it has periods."""
    periods = plan.config.periods
    for place in range(cycle * periods, (cycle + 1) * periods):
        yield (in_periods(plan, place, cycle, _drawn(plan, place)),)


def _drawn(plan: Plan, place: int) -> LayerNames:
    """What a period trains: neighbouring middle layers from a random place, and the ends."""
    middle = [name for name in plan.layer_names if name not in plan.always]
    size = min(plan.config.layers_per_visit, len(middle))
    rng = streams.generator(plan.config.seed, "schedule/drawn", place)
    start = int(rng.integers(len(middle) - size + 1))
    trained = {*middle[start : start + size], *plan.always}
    return tuple(name for name in plan.layer_names if name in trained)


def _check(config: RunConfig) -> None:
    """Both ends train at every step.

    Raises:
      UserError: they do not.
    """
    named = set(getattr(config, "always_train", "").split(","))
    if not any(ends <= named for ends in _ENDS):
        raise UserError(
            "--algorithm=lisa trains both ends of the model at every step; say "
            "--always_train=first,last"
        )


LISA = Algorithm(
    name="lisa",
    rounds=every_cycle(_rounds),
    traffic=NO_TRAFFIC,
    merge=REPLACE,
    shards=pooled,
    at_server=True,
    trains_ends=True,
    check=_check,
    flags=_FLAGS,
)
