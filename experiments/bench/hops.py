"""What nodes that are processes cost beside training: `--engine=ray` on one machine.

A hop is a visit of no step: an order goes out, the node gets the layers that were trained
elsewhere, and what it trains comes back. Two nodes take turns, so every hop carries a whole new
version. Bytes are counted where they are serialized, and stand over what the ledger's formula says.

What a process takes to start, how soon one that is killed (SIGKILL) or stopped (SIGSTOP) counts as
lost, and how soon another one has done the first step in its place, is measured on real processes.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from experiments.bench.rows import LOWER, Measured, Request, Row, importable, measured
from snake_jax.algorithms.visits import Lost, Outcome, Visit
from snake_jax.cli import certificates
from snake_jax.engines.choice import Choice, around
from snake_jax.engines.contract import Held, Holdings
from snake_jax.errors import UserError
from snake_jax.models.adapter import from_linen
from snake_jax.models.registry import build
from snake_jax.params import num_bytes
from snake_jax.runs import loop
from snake_jax.runs.engines import make_engine
from snake_jax.runs.front import Job, image_data

MODES = ("client_server", "peer_to_peer")
INPUT = (8, 8, 3)
DEADLINE_S = 4.0
HOP_S, DEATH_S, HANG_S, STEP_S = 0.25, 0.1, 5.0, 2.0
"""Goals: a hop of 40 MB, a death seen, a hang seen, the first step of a take-over."""
PREPARED_S = 600.0
_START = """
import logging, ray, time
started = time.perf_counter()
ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
ray.get(ray.remote(num_cpus=0)(lambda: 0).remote())
print(time.perf_counter() - started)
"""


class Sizes(NamedTuple):
    """What is measured.

    Attributes:
      megabytes: of a hop.
      repeats: hops that count.
      losses: processes that are killed, and as many that are stopped.
      takeover: the network whose visits are taken over, and its width.
    """

    megabytes: tuple[int, ...]
    repeats: int
    losses: int
    takeover: tuple[str, float]


SIZES = Sizes((1, 40), repeats=30, losses=3, takeover=("vgg11", 0.5))
QUICK = Sizes((1,), repeats=3, losses=1, takeover=("mlp", 0.1))
WARM = 4
"""Hops that do not count: processes start, and each node gets its first copy."""


class Dense(nn.Module):
    """A layer whose weights are all that a hop carries."""

    features: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """`[B, ...]` to `[B, features]`."""
        return nn.relu(nn.Dense(self.features)(x.reshape(x.shape[0], -1)))


class Hop(NamedTuple):
    """One: seconds, those of this process's own work in them, and what came of it."""

    wall_s: float
    own_s: float
    outcome: Outcome


def run(request: Request) -> Measured:
    """Hops of every size and mode, a start, and losses."""
    if importlib.util.find_spec("ray") is None:
        raise UserError("hops needs Ray: pip install 'snake-jax[ray]'")
    sizes = QUICK if request.quick else SIZES
    sizes = sizes._replace(repeats=request.repeats or sizes.repeats)
    rows: list[Row] = []
    started = time.perf_counter()
    with around(Choice("ray")):
        cluster_s = time.perf_counter() - started
        for megabytes in sizes.megabytes:
            for mode in MODES:
                request.say(f"hops of {megabytes} MB, {mode}")
                rows += _hops(megabytes, mode, sizes.repeats)
        request.say("start and losses")
        rows += _ends(cluster_s, sizes.losses)
        rows += _clusters(sizes.losses)
        request.say("take-overs")
        rows += _takeovers(*sizes.takeover, sizes.losses)
    note = (
        "A hop: from the order to its outcome, no step trained; both nodes are on this machine. "
        "Controller: its processor time in a hop. Over a visit: seconds of a visit that trains, "
        "beyond those of its program. Bytes: serialized to the node, over the ledger's. Seen "
        f"after: from the signal to `Lost`; the deadline of a heart-beat is {DEADLINE_S:g} s. "
        "First step: from `Lost` until another process has done a step of the visit; the network "
        f"is {sizes.takeover[0]} of width {sizes.takeover[1]:g}."
    )
    return Measured(rows, {"ray": importable("ray")}, [note])


def _setup(megabytes: int, mode: str) -> loop.Setup:
    """A model of so many megabytes, and next to no data."""
    features = megabytes * 2**20 // (4 * int(np.prod(INPUT)))
    stages = [("body", Dense(features)), ("head", Dense(4))]
    model = from_linen("hop", stages, input_shape=INPUT)
    job = Job(model, nodes=2, mode=mode, batch_size=8)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (48, *INPUT), np.uint8), np.arange(48) % 4
    data = image_data(job, (images[:32], labels[:32]), (images[32:], labels[32:]))
    return job.task.setup(job, data)


def _turns(setup: loop.Setup, engine: Any, share: tuple[float, float]) -> Iterator[Hop]:
    """Visits of the two nodes in turn, each from what the one before gave."""
    params = loop.initial_state(setup).params
    names = tuple(setup.layer_names)
    turn = 0
    while True:
        layers = {name: Held(turn, value) for name, value in params.items()}
        holdings = Holdings(layers)
        own, started = time.process_time(), time.perf_counter()
        engine.hold(holdings)
        engine.submit(holdings.order(Visit(turn, 0, turn % 2, names, share), 0.01))
        outcome = engine.next()
        hop = time.perf_counter() - started, time.process_time() - own
        assert isinstance(outcome, Outcome), outcome.why
        params = {**params, **outcome.layers}
        yield Hop(*hop, outcome)
        turn += 1


def _hops(megabytes: int, mode: str, repeats: int) -> list[Row]:
    """Of one size and mode."""
    setup = _setup(megabytes, mode)
    engine = make_engine(setup, Choice("ray", actors=2))
    try:
        hops = _counted(_turns(setup, engine, (0.0, 0.0)), repeats)
        visits = _counted(_turns(setup, engine, (0.0, 1.0)), repeats)
    finally:
        engine.close()
    table, subject = "A hop without training", f"{megabytes} MB, {mode}"
    formula = num_bytes(loop.initial_state(setup).params)
    sent = {hop.outcome.serialized.to_node for hop in hops if hop.outcome.serialized}
    goal: dict[str, Any] = {"better": LOWER}
    if megabytes == 40:
        goal["limit"] = 1e3 * HOP_S
    own = [1e3 * hop.own_s for hop in hops]
    over = [1e3 * (hop.wall_s - hop.outcome.train_s) for hop in visits]
    return [
        measured(table, subject, "hop", [1e3 * hop.wall_s for hop in hops], "ms", **goal),
        measured(table, subject, "controller", own, "ms"),
        measured(table, subject, "over a visit", over, "ms"),
        Row(table, subject, "bytes", max(sent) / formula, better=LOWER),
    ]


def _counted(turns: Iterator[Hop], repeats: int) -> list[Hop]:
    """The hops after those that warm up."""
    for _ in range(WARM):
        next(turns)
    return [next(turns) for _ in range(repeats)]


def _ends(cluster_s: float, losses: int) -> list[Row]:
    """What a process takes to start, and how soon it counts as lost."""
    setup, starts = _setup(1, MODES[0]), list[float]()
    seen: dict[int, list[float]] = {signal.SIGKILL: [], signal.SIGSTOP: []}
    for number, found in seen.items():
        for _ in range(losses):
            started = time.perf_counter()
            engine = make_engine(setup, Choice("ray", actors=2, deadline_s=DEADLINE_S))
            try:
                next(_turns(setup, engine, (0.0, 0.0)))
                starts.append(time.perf_counter() - started)
                found.append(_loss(setup, engine, number))
            finally:
                engine.close()
    table, name = "Start and loss of a process", "seen after"
    return [
        Row(table, "the cluster", "start", cluster_s, "s"),
        measured(table, "nodes, to the first outcome", "start", starts, "s"),
        *_seen(table, "killed", name, seen[signal.SIGKILL], DEATH_S),
        *_seen(table, "stopped", name, seen[signal.SIGSTOP], HANG_S),
    ]


def _clusters(repeats: int) -> list[Row]:
    """What a cluster takes to start in a process of its own: in the clear, and over TLS."""
    found = list[Row]()
    with tempfile.TemporaryDirectory() as folder:
        host = importlib.import_module("ray").util.get_node_ip_address()
        certificates.make(Path(folder), [host], days=1)
        own = Path(folder) / host
        over_tls = {
            "RAY_USE_TLS": "1",
            "RAY_TLS_CA_CERT": os.fspath(Path(folder) / certificates.CA),
            "RAY_TLS_SERVER_CERT": os.fspath(own / certificates.CERTIFICATE),
            "RAY_TLS_SERVER_KEY": os.fspath(own / certificates.KEY),
        }
        for subject, variables in (("alone, in the clear", {}), ("alone, over TLS", over_tls)):
            command = [sys.executable, "-c", _START]
            starts = []
            for _ in range(repeats):
                said = subprocess.check_output(command, env={**os.environ, **variables}, text=True)
                starts.append(float(said))
            found.append(measured("Start of a cluster", subject, "start", starts, "s"))
    return found


def _takeovers(model: str, width: float, losses: int) -> list[Row]:
    """How soon a death is seen, and then how soon a first step is done in its place."""
    table, found = "A take-over after a death", list[Row]()
    for ahead in (True, False):
        seen, steps = list[float](), list[float]()
        for _ in range(losses):
            seen_s, step_s = _takeover(_network(model, width), ahead)
            seen.append(seen_s)
            steps.append(step_s)
        subject = "compiled ahead" if ahead else "not compiled ahead"
        goal: dict[str, Any] = {"better": LOWER, "limit": STEP_S} if ahead else {}
        found.append(measured(table, subject, "seen after", seen, "s"))
        found.append(measured(table, subject, "first step after", steps, "s", **goal))
    return found


def _network(model: str, width: float) -> loop.Setup:
    """A network whose program takes a while to compile, on two nodes with two batches each."""
    side = 32
    job = Job(build(model, 4, (side, side, 3), width=width), nodes=2, batch_size=8, cycles=1)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (48, side, side, 3), np.uint8)
    labels = np.arange(48) % 4
    data = image_data(job, (images[:32], labels[:32]), (images[32:], labels[32:]))
    return job.task.setup(job, data)


def _takeover(setup: loop.Setup, ahead: bool) -> tuple[float, float]:
    """Seconds from the death of the first node's process until it is seen, and from then until the
    second node has done a step of its visit.
    """
    rounds, params = loop.planned(setup), loop.initial_state(setup).params
    (visit,) = rounds[0]
    engine: Any = make_engine(setup, Choice("ray", actors=2, deadline_s=60.0))
    try:
        if ahead:
            engine.expect(rounds, params)
            end = time.perf_counter() + PREPARED_S
            while not engine.are_prepared() and time.perf_counter() < end:
                time.sleep(0.1)
        seen_s = _loss(setup, engine, signal.SIGKILL)
        lost = time.perf_counter()
        holdings = Holdings({name: Held(0, value) for name, value in params.items()})
        engine.hold(holdings)
        # Half of two batches.
        instead = visit._replace(node=1, share=(0.0, 0.5), event="takeover")
        engine.submit(holdings.order(instead, 0.01))
        outcome = engine.next()
        assert isinstance(outcome, Outcome), outcome
        assert outcome.iterations == 1, outcome.iterations
        return seen_s, time.perf_counter() - lost
    finally:
        engine.close()


def _seen(table: str, subject: str, name: str, values: Sequence[float], limit: float) -> list[Row]:
    return [measured(table, subject, name, values, "s", better=LOWER, limit=limit)]


def _loss(setup: loop.Setup, engine: Any, number: int) -> float:
    """Seconds from a signal to the process of a node that trains until its visit is lost."""
    params = loop.initial_state(setup).params
    holdings = Holdings({name: Held(0, value) for name, value in params.items()})
    engine.hold(holdings)
    pid = engine.processes()[0]
    # It is stopped before it is ordered, so that the visit is under way when the signal comes.
    os.kill(pid, signal.SIGSTOP)
    engine.submit(holdings.order(Visit(9, 0, 0, tuple(setup.layer_names)), 0.01))
    struck = time.perf_counter()
    os.kill(pid, number)
    lost = engine.next()
    assert isinstance(lost, Lost), "a struck process gives no outcome"
    return time.perf_counter() - struck
