"""Federated averaging: sampled nodes train the full model side by side, the server averages.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS
2017, Algorithm 1: the mean is weighted by the examples that the nodes hold. FedAvgM, FedAdagrad,
FedAdam and FedYogi are this with another step of the server, see `server_optimizers`.
"""

from snake_jax.algorithms import server_optimizers
from snake_jax.algorithms.base import (
    NETWORK_FLAGS,
    Algorithm,
    Mean,
    Merge,
    add_to_mean,
    every_cycle,
    no_mean,
)
from snake_jax.algorithms.pool import POOL_FLAGS
from snake_jax.algorithms.proximal import proximal_client
from snake_jax.algorithms.schedule import Plan, whole_side_by_side
from snake_jax.algorithms.traffic import STAR
from snake_jax.algorithms.visits import Round
from snake_jax.params import Params, PyTree


def _finish(
    plan: Plan, visits: Round, params: Params, memory: PyTree, mean: Mean
) -> tuple[Params, PyTree]:
    """The server's step towards the mean; none where no node handed in."""
    del visits
    # No outcome: nobody came back, and the model stays as it is.
    if not mean.layers:
        return params, memory
    return server_optimizers.step(plan.config, params, memory, mean.layers)


SERVER_FLAGS = frozenset(
    {"server_momentum", "server_optimizer", "server_learning_rate", "server_tau"}
)

FEDAVG = Algorithm(
    name="fedavg",
    rounds=every_cycle(whole_side_by_side),
    cycle=whole_side_by_side,
    traffic=STAR,
    merge=Merge(no_mean, add_to_mean, _finish),
    memory=server_optimizers.memory,
    client=proximal_client,
    unit="round",
    flags=NETWORK_FLAGS | POOL_FLAGS | {"nodes_per_round", "proximal"} | SERVER_FLAGS,
)
