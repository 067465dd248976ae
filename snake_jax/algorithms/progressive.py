"""Progressive training: federated averaging of a part of the model that grows, round by round.

Wang et al., "ProgFed: Effective, Communication, and Computation Efficient Federated Learning by
Progressive Training", ICML 2022 (arXiv 2110.05323), section 3: training begins with the lowest
layers and an output, and takes in more layers from stage to stage until all train. A stage has
`--rounds_per_layer` rounds and takes in `--layers_per_visit` middle layers more, from below
(`--order=sequential`) or from above (`reverse`, as a pretrained model's layers are thawed); layers
of `--always_train` train throughout. Unlike in the paper, where layers that are not reached yet are
absent and each stage has an output of its own, they are there and keep their first weights: sent
once, passed through, and not trained. So nodes save what they send, gradients and optimizer states,
and of the passes the backward one alone.
"""

from snake_jax.algorithms.base import NETWORK_FLAGS, REPLACE, Algorithm, every_cycle
from snake_jax.algorithms.proximal import proximal_client
from snake_jax.algorithms.schedule import Plan, serpentine, side_by_side
from snake_jax.algorithms.traffic import STAR
from snake_jax.algorithms.visits import Rounds
from snake_jax.config import RunConfig
from snake_jax.errors import UserError

_OWN_FLAGS = frozenset(
    {
        "rounds_per_layer",
        "order",
        "layers_per_visit",
        "always_train",
        "frozen_dtype",
        "nodes_per_round",
        "proximal",
    }
)


def _rounds(plan: Plan, cycle: int) -> Rounds:
    """A cycle is a round; its stage is the number of groups that have been taken in."""
    groups = serpentine(plan, cycle)
    stage = cycle // plan.config.rounds_per_layer
    trained = set(plan.always)
    for group in groups[: stage + 1]:
        trained |= set(group)
    layers = tuple(name for name in plan.layer_names if name in trained)
    yield from side_by_side(plan, cycle, layers)


def _check(config: RunConfig) -> None:
    """Layers are taken in one after the other.

    Raises:
      UserError: their order is drawn anew every cycle.
    """
    if config.order == "random":
        raise UserError(
            "--order=random: --algorithm=progressive grows from one end of the model; say "
            "sequential or reverse"
        )


PROGRESSIVE = Algorithm(
    name="progressive",
    rounds=every_cycle(_rounds),
    traffic=STAR,
    merge=REPLACE,
    client=proximal_client,
    unit="round",
    check=_check,
    flags=NETWORK_FLAGS | _OWN_FLAGS,
)
