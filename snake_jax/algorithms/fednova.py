"""FedNova: federated averaging of nodes that do unlike numbers of steps, none counted for more.

Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization",
NeurIPS 2020 (arXiv 2007.07481), equation 7 and section 4. In FedAvg a node with more data does more
steps and so pulls the model further than its weight p_i says. Here its change counts by the step,

    d_i = (y_i - x) / |a_i|_1,      x <- x + (sum_i p_i |a_i|_1) (sum_i p_i d_i),

where |a_i|_1 is how many gradients' worth its tau_i steps moved it: tau_i for plain SGD, and with
momentum rho, whose step j goes on through the steps after it,

    |a_i|_1 = (tau_i - rho (1 - rho^tau_i) / (1 - rho)) / (1 - rho)     (section 4.1).

With equally many steps everywhere it is FedAvg.
"""

from typing import NamedTuple

import jax
import numpy as np

from snake_jax.algorithms.base import NETWORK_FLAGS, Algorithm, Merge, every_cycle
from snake_jax.algorithms.pool import POOL_FLAGS
from snake_jax.algorithms.schedule import Plan, whole_side_by_side
from snake_jax.algorithms.traffic import STAR
from snake_jax.algorithms.visits import Outcome, Round
from snake_jax.config import RunConfig
from snake_jax.errors import UserError
from snake_jax.params import Params, PyTree, select


class FedNovaSums(NamedTuple):
    """Running means over the nodes of a round, weighted by the examples that they hold.

    Attributes:
      received: the weights that all nodes start from.
      momentum: rho.
      change: mean of d_i; `{}` of no node.
      worth: mean of |a_i|_1.
      examples: that the nodes hold.
    """

    received: Params
    momentum: float
    change: Params
    worth: float
    examples: int


def gradients_worth(steps: int, momentum: float) -> float:
    """|a|_1: so many plain steps of a constant gradient move a node as far as these steps do."""
    faded = momentum * (1 - momentum**steps) / (1 - momentum)
    return (steps - faded) / (1 - momentum)


def _no_sums(plan: Plan, visits: Round, params: Params, memory: PyTree) -> FedNovaSums:
    del visits, memory
    return FedNovaSums(params, plan.config.momentum, {}, 0.0, 0)


def _add(sums: FedNovaSums, outcome: Outcome) -> FedNovaSums:
    """With one node more; one that did no step has no change and no worth, but its weight."""
    examples = sums.examples + outcome.examples_held
    share = outcome.examples_held / examples
    worth = gradients_worth(outcome.iterations, sums.momentum)
    received = select(sums.received, outcome.layers)
    scale = np.float32(1 / worth if worth else 0)
    change = jax.tree.map(lambda y, x: scale * (y - x), outcome.layers, received)
    if sums.examples:
        part = np.float32(share)
        change = jax.tree.map(lambda m, d: m + part * (d - m), sums.change, change)
    mean_worth = sums.worth + share * (worth - sums.worth)
    return FedNovaSums(sums.received, sums.momentum, change, mean_worth, examples)


def _finish(
    plan: Plan, visits: Round, params: Params, memory: PyTree, sums: FedNovaSums
) -> tuple[Params, PyTree]:
    del plan, visits
    worth = np.float32(sums.worth)
    old = select(params, sums.change)
    moved = jax.tree.map(lambda x, d: x + worth * d, old, sums.change)
    return {**params, **moved}, memory


def _check(config: RunConfig) -> None:
    if config.optimizer != "sgd" or config.clip_norm:
        raise UserError(
            "--algorithm=fednova counts a node's steps as gradients, which holds for SGD, with "
            "momentum or without: set --optimizer=sgd --clip_norm=0"
        )


FEDNOVA = Algorithm(
    name="fednova",
    rounds=every_cycle(whole_side_by_side),
    cycle=whole_side_by_side,
    traffic=STAR,
    merge=Merge(_no_sums, _add, _finish),
    unit="round",
    check=_check,
    flags=NETWORK_FLAGS | POOL_FLAGS | {"nodes_per_round"},
)
