"""FedAvg rounds by every executor of this library, and by peers: which emulation is the fastest.

What the nodes compute is noise in the shape of CIFAR-10, enough of it that steps and not calls
decide.
"""

from experiments.bench import federated
from experiments.bench.federated import Sizes
from experiments.bench.rows import Measured, Request
from snake_jax.engines.emulations import EMULATIONS

REPEATS = 9
SIZES = Sizes(nodes=16, examples=320, batch=32, dataset="", executors=tuple(EMULATIONS))
QUICK = Sizes(nodes=2, examples=12, batch=8, dataset="", executors=("loop",))
GOALS = {"torch": 1.0, "flower": 3.0}


def run(request: Request) -> Measured:
    """All executors, all peers."""
    sizes = QUICK if request.quick else SIZES
    return federated.run(
        sizes, "A round of FedAvg on noise", GOALS, request.repeats or REPEATS, request
    )
