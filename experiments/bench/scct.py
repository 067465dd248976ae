"""SCCT's small timescale to the optimum: all samples in one compiled call, beside plain NumPy.

NumPy solves sample after sample. Both end at the same V: `snake_jax/scct/search.py` moves
subcarriers in all samples at once, `snake_jax/scct/reference.py` is the algorithm as it is told,
for each target the greedy choice from the fewest subcarriers that leave time. Both are given the
seconds of every link.
"""

from typing import NamedTuple

import numpy as np

from experiments.bench.rows import HIGHER, LOWER, Measured, Request, Row, measured, paired, walls_ms
from snake_jax.costs.timing import interleaved
from snake_jax.scct import exact, latency, reference
from snake_jax.scct.drawing import drawn
from snake_jax.scct.scenario import splits_that_fit

REPEATS = 9
FASTER = 20.0
"""NumPy over ours, at least."""
SAME = 1e-9
"""Of V: further apart is an error, not a result."""
TABLE = "Shares and subcarriers of {nodes} devices, {subcarriers} subcarriers, {samples} samples"
NOTE = "The worst difference is that of V between the two, relative, over the samples."


class Sizes(NamedTuple):
    """N, K and Q."""

    nodes: int
    subcarriers: int
    samples: int


SIZES = Sizes(nodes=30, subcarriers=200, samples=100)
QUICK = Sizes(nodes=3, subcarriers=8, samples=2)


def run(request: Request) -> Measured:
    """Three choices of split points; Table III's edge, and devices drawn with seed 0."""
    sizes = QUICK if request.quick else SIZES
    scenario = drawn(0, *sizes)
    fitting = splits_that_fit(scenario)
    choices = {
        "6 layers on each device": np.minimum(fitting, 6),
        "1 layer on each device": np.ones_like(fitting),
        "as many layers as fit": fitting,
    }
    rows: list[Row] = []
    for subject, splits in choices.items():
        request.say(f"scct: {subject}")
        problem = latency.problem(scenario, splits)
        table = TABLE.format(**sizes._asdict())
        rows += _rows(table, subject, problem, request.repeats or REPEATS)
    return Measured(rows, {"numpy": np.__version__}, [NOTE])


def _rows(table: str, subject: str, problem: latency.LatencyProblem, repeats: int) -> list[Row]:
    """One choice of split points.

    Raises:
      RuntimeError: the two do not agree.
    """
    ready = exact.tables(problem.link_s)
    device_s, whole_edge_s = problem.device_s[None], problem.whole_edge_s[None]

    def ours() -> np.ndarray:
        return exact.solve(ready, device_s, whole_edge_s).level_s

    def numpy() -> np.ndarray:
        levels = []
        for sample in range(len(problem.device_s)):
            one = latency.LatencyProblem(*(array[sample] for array in problem))
            levels.append(reference.exact(one).level_s)
        return np.array(levels)

    worst = float(np.abs(ours() / numpy() - 1).max())
    if worst > SAME:
        raise RuntimeError(f"{subject}: the two differ by {worst:.1e} of V")
    samples = interleaved({"numpy": numpy, "ours": ours}, repeats, budget_s=20.0)
    ratios = paired(samples["numpy"], samples["ours"])
    pairs = zip(samples["numpy"], samples["ours"], strict=False)
    # Of all threads: what others on the machine do changes it less.
    cpu_ratios = [theirs.cpu_s / max(own.cpu_s, 1e-6) for theirs, own in pairs]
    return [
        measured(table, subject, "NumPy, sample after sample", walls_ms(samples["numpy"]), "ms"),
        measured(table, subject, "one compiled call", walls_ms(samples["ours"]), "ms"),
        measured(table, subject, "NumPy / ours", ratios, better=HIGHER, limit=FASTER),
        measured(table, subject, "NumPy / ours, CPU time", cpu_ratios, better=HIGHER),
        Row(table, subject, "worst difference", worst, better=LOWER, limit=SAME),
    ]
