"""A round of FedAvg and a cycle of Snake on the bundled digits, and the same round by peers; then a
round of many small nodes.

A Snake cycle trains every middle layer once, a node a visit; the round trains all nodes. So compare
them by example.
"""

from experiments.bench import federated
from experiments.bench.federated import Sizes
from experiments.bench.rows import Measured, Request

REPEATS = 9
WAYS = ("loop", "scan")
SIZES = Sizes(nodes=8, examples=160, batch=32, dataset="digits", executors=WAYS, snake=True)
QUICK = Sizes(nodes=2, examples=12, batch=8, dataset="digits", executors=("loop",), snake=True)
SMALL = Sizes(nodes=100, examples=50, batch=10, dataset="", executors=WAYS)
GOALS = {"torch": 1.0, "flower": 3.0}


def run(request: Request) -> Measured:
    """Ours, Snake's cycle, all peers."""
    repeats = request.repeats or REPEATS
    sizes = QUICK if request.quick else SIZES
    found = federated.run(sizes, "A round on digits", GOALS, repeats, request)
    if request.quick:
        return found
    small = federated.run(SMALL, "A round of 100 nodes of 50 examples", GOALS, repeats, request)
    return Measured(
        [*found.rows, *small.rows],
        found.peers | small.peers,
        [*found.notes, *small.notes],
        {"digits": found.detail, "small": small.detail},
    )
