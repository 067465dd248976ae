"""BAdam: block after block of one model in one place, each for a while, with fresh Adam states.

Luo et al., "BAdam: A Memory Efficient Full Parameter Optimization Method for Large Language
Models", NeurIPS 2024 (arXiv 2404.02827), Algorithm 1: the blocks' order is drawn anew each cycle,
or goes up or down (`--order`); a block is trained for K steps and its optimizer states are dropped
after them. K is a share of the data here: `--periods` visits share a turn's passes over it, so each
has 1/periods of its steps. With one period and one node it is Snake Learning. The paper does not
train embedding and head unless told to; nor do language models here (`--always_train`).
"""

from snake_jax.algorithms.base import REPLACE, Algorithm, every_cycle
from snake_jax.algorithms.centralised import pooled
from snake_jax.algorithms.schedule import Plan, in_periods, serpentine
from snake_jax.algorithms.traffic import NO_TRAFFIC
from snake_jax.algorithms.visits import Rounds

_FLAGS = frozenset({"order", "layers_per_visit", "always_train", "frozen_dtype", "periods"})


def _rounds(plan: Plan, cycle: int) -> Rounds:
    """Every block once a cycle."""
    assignments = serpentine(plan, cycle)
    first = cycle * len(assignments)
    for place, layers in enumerate(assignments, start=first):
        yield (in_periods(plan, place, cycle, layers),)


BADAM = Algorithm(
    name="badam",
    rounds=every_cycle(_rounds),
    cycle=_rounds,
    traffic=NO_TRAFFIC,
    merge=REPLACE,
    shards=pooled,
    at_server=True,
    flags=_FLAGS,
)
