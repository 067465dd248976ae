"""FedProx: federated averaging whose nodes are held near the weights that they received.

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, Algorithm 2, with the
local objective of its equation 2 (`snake_jax.algorithms.proximal`) and a fixed number of local
epochs for all nodes. Its weight mu is `--proximal`; with mu = 0 it would be federated averaging.
"""

from snake_jax.algorithms.fedavg import FEDAVG
from snake_jax.config import RunConfig
from snake_jax.errors import UserError


def _check(config: RunConfig) -> None:
    if not config.proximal:
        raise UserError(
            "--algorithm=fedprox needs the weight of its proximal term: set --proximal, as 0.1; "
            "without it, it is --algorithm=fedavg"
        )


FEDPROX = FEDAVG._replace(name="fedprox", check=_check)
