"""Many light nodes in few processes: what a visit costs the one that runs the rounds.

200 nodes share two actors of `--engine=ray`. The whole loop of a run is measured, without files:
orders, outcomes, merge, ledger, clock, records. Memory is that of the controlling process; it is
flat where its greatest value after a quarter of the visits is that after all of them.
"""

import importlib.util
import resource
import sys
import time
from typing import Any, NamedTuple

import numpy as np

from experiments.bench.hops import INPUT, Dense
from experiments.bench.rows import LOWER, Measured, Request, Row, importable, measured
from snake_jax.engines.choice import Choice, around
from snake_jax.errors import UserError
from snake_jax.models.adapter import from_linen
from snake_jax.runs import loop
from snake_jax.runs.engines import make_engine
from snake_jax.runs.front import Job, image_data

ACTORS = 2
FEATURES = 8
EXAMPLES = 4  # of a node
NEVER = 10**6
WARM = 20
CONTROLLER_MS, GROWTH_MB = 5.0, 8.0
"""Goals: of the controller's time a visit, and of what its memory grows by."""


class Sizes(NamedTuple):
    """What is measured: how many nodes, and how many visits."""

    nodes: int
    visits: int


SIZES = Sizes(200, 1000)
QUICK = Sizes(12, 40)


def run(request: Request) -> Measured:
    """A run of many visits."""
    if importlib.util.find_spec("ray") is None:
        raise UserError("nodes needs Ray: pip install 'snake-jax[ray]'")
    sizes = QUICK if request.quick else SIZES
    request.say(f"{sizes.visits} visits of {sizes.nodes} nodes")
    with around(Choice("ray")):
        rows = _visits(sizes)
    note = (
        f"{sizes.nodes} nodes with {EXAMPLES} examples each, in {ACTORS} processes; the method is "
        "Snake, no round is evaluated or written. Controller: processor time of all threads of the "
        "process that runs the rounds, a visit. Growth: of its greatest resident memory, from a "
        "quarter of the visits on."
    )
    return Measured(rows, {"ray": importable("ray")}, [note])


def _setup(sizes: Sizes) -> loop.Setup:
    """A small model, and little data on each node."""
    names = ("first", "second", "third", "last")
    stages = [(name, Dense(4 if name == "last" else FEATURES)) for name in names]
    model = from_linen("light", stages, input_shape=INPUT)
    # A cycle is a visit of each middle layer.
    job = Job(
        model,
        nodes=sizes.nodes,
        cycles=sizes.visits // 2,
        batch_size=EXAMPLES,
        eval_every=NEVER,
        lr_decay=1.0,
    )
    rng = np.random.default_rng(0)
    count = EXAMPLES * sizes.nodes
    images = rng.integers(0, 256, (count + 16, *INPUT), np.uint8)
    labels = np.arange(count + 16) % 4
    data = image_data(job, (images[:count], labels[:count]), (images[count:], labels[count:]))
    return job.task.setup(job, data)


def _visits(sizes: Sizes) -> list[Row]:
    """The controller's time and memory over a run."""
    setup = _setup(sizes)
    engine = make_engine(setup, Choice("ray", actors=ACTORS))
    walls_s, owns_s, peaks_bytes = list[float](), list[float](), list[int]()
    try:
        reports = loop.train(setup, engine, loop.initial_state(setup), lambda state: None)
        wall_s, own_s = time.perf_counter(), time.process_time()
        for report in reports:
            assert not report.lost, report.lost
            now_s, own_now_s = time.perf_counter(), time.process_time()
            walls_s.append(now_s - wall_s)
            owns_s.append(own_now_s - own_s)
            peaks_bytes.append(_peak_bytes())
            wall_s, own_s = now_s, own_now_s
    finally:
        engine.close()
    assert len(owns_s) == sizes.visits, "a visit is a round"

    table, subject = "Visits of many light nodes", f"{sizes.nodes} nodes"
    own_ms = [1e3 * own for own in owns_s[WARM:]]
    wall_ms = [1e3 * wall for wall in walls_s[WARM:]]
    growth_mb = (peaks_bytes[-1] - peaks_bytes[len(peaks_bytes) // 4]) / 1e6
    mean_ms = float(np.mean(own_ms))
    goal: dict[str, Any] = {"better": LOWER, "limit": CONTROLLER_MS}
    return [
        measured(table, subject, "a visit", wall_ms, "ms"),
        measured(table, subject, "controller", own_ms, "ms", **goal),
        Row(table, subject, "controller, mean", mean_ms, "ms", **goal),
        Row(table, subject, "memory", peaks_bytes[-1] / 1e6, "MB"),
        Row(table, subject, "growth", growth_mb, "MB", better=LOWER, limit=GROWTH_MB),
    ]


def _peak_bytes() -> int:
    """The greatest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
