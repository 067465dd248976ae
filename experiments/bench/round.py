"""A round of FedAvg and a cycle of Snake on the bundled digits, and the same round by peers.

A Snake cycle trains every middle layer once, a node a visit; the round trains all nodes. So compare
them by example.
"""

from experiments.bench import federated
from experiments.bench.federated import Sizes
from experiments.bench.rows import Measured, Request

REPEATS = 9
SIZES = Sizes(nodes=8, examples=160, batch=32, dataset="digits", executors=("loop",), snake=True)
QUICK = Sizes(nodes=2, examples=12, batch=8, dataset="digits", executors=("loop",), snake=True)
GOALS = {"torch": 1.0}


def run(request: Request) -> Measured:
    """Ours, Snake's cycle, all peers."""
    sizes = QUICK if request.quick else SIZES
    return federated.run(sizes, "A round on digits", GOALS, request.repeats or REPEATS, request)
