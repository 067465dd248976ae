"""Many nodes and many cycles: a round costs what its visits cost, a start what one cycle does.

Work is counted in lines of this package that are executed, not in seconds.
"""

import sys
from pathlib import Path

import pytest

import snake_jax
from snake_jax.algorithms.base import outline, planned_rounds
from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.config import ImageConfig
from snake_jax.engines.orders import group_sizes
from snake_jax.runs import loop
from tests.launches import write_images

PACKAGE = str(Path(snake_jax.__file__).parent)


class Lines:
    """Counts the lines of this package that are executed inside it."""

    def __init__(self):
        self.count = 0

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *about):
        sys.settrace(self._before)

    def _call(self, frame, event, argument):
        if frame.f_code.co_filename.startswith(PACKAGE):
            return self._line
        return None

    def _line(self, frame, event, argument):
        self.count += event == "line"
        return self._line


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    images = write_images(tmp_path_factory.mktemp("data") / "images.npz")
    return {
        "model": "mlp",
        "width": 0.1,
        "batch_size": 8,
        "dataset": f"npz:{images}",
        "eval_every": 100_000,
    }


def reports(config):
    setup = loop.prepare(config)
    engine = loop.make_engine(setup)
    return loop.train(setup, engine, loop.initial_state(setup), lambda state: None)


def test_a_round_of_a_few_of_many_nodes_is_the_work_of_those_few(small):
    def work(nodes):
        about = {"nodes": nodes, "nodes_per_round": 3, "partition": "drawn:2-8", "cycles": 9}
        rounds = reports(ImageConfig(**small, algorithm="fedavg", **about))
        next(rounds)
        with Lines() as lines:
            for _ in range(4):
                report = next(rounds)
        assert len(report.record["node"]) == 3
        return lines.count, len(report.state.network.held)

    few, many = work(30), work(3000)
    # Of few nodes some come a second time, and are sent no more than the others.
    assert few[0] == pytest.approx(many[0], rel=0.01)
    assert few[1] == many[1] == 1, "the server alone holds what serves"


@pytest.mark.parametrize("algorithm", ["snake", "fedavg"])
def test_thousands_of_cycles_start_as_a_few_do(small, algorithm):
    def work(cycles):
        config = ImageConfig(**small, algorithm=algorithm, nodes=3, cycles=cycles)
        with Lines() as lines:
            next(reports(config))
        return lines.count

    # A program is compiled by this thread or by another, as it happens: a few lines. To go through
    # the cycles would be a line a visit at least, 12,000.
    assert work(4000) == pytest.approx(work(4), rel=0.05)


FLAGS = {
    "snake, drawn order": {"algorithm": "snake", "order": "random"},
    "snake, parallel": {"algorithm": "snake", "parallel": 2},
    "snake, two": {"algorithm": "snake", "snakes": 2, "always_train": "none"},
    "splitfed v2": {"algorithm": "splitfed", "splitfed_version": "v2"},
    "badam, periods": {"algorithm": "badam", "periods": 4},
    "struck": {"algorithm": "snake", "interrupt": "1,5"},
    "by chance": {"algorithm": "snake", "fault_rate": 0.4},
    "who leaves": {"algorithm": "fedavg", "leave": "1@2"},
    "sampled": {"algorithm": "fedavg", "nodes_per_round": 2},
}
NEEDED = {
    "fedprox": {"proximal": 0.1},
    "scaffold": {"clip_norm": 0.0, "momentum": 0.0},
    "fednova": {"clip_norm": 0.0},
    "hift": {"carry_optimizer_state": True},
}
CASES = {name: {"algorithm": name, **NEEDED.get(name, {})} for name in ALGORITHMS} | FLAGS


@pytest.mark.parametrize("case", CASES)
def test_an_outline_says_what_all_rounds_would(small, case):
    setup = loop.prepare(ImageConfig(**small, nodes=3, cycles=5, **CASES[case]))
    every = planned_rounds(setup.algorithm, setup.plan)
    for done in (0, 1, 4, len(every)):
        found = outline(setup.algorithm, setup.plan, done)
        assert found.rounds == len(every)
        assert found.turns == 1 + max(visit.turn for visits in every for visit in visits)
        assert most(found.kinds) == most(every)
        assert most(found.left) == most(every[done:])
        assert len(found.kinds) < len(every)
        # Programs are wanted in the order in which rounds come.
        assert found.left[:1] == tuple(every[done : done + 1])


def most(rounds):
    """`{layers: greatest number of visits of a round that train them}`."""
    found = {}
    for visits in rounds:
        for layers, count in group_sizes(visits).items():
            found[layers] = max(count, found.get(layers, 0))
    return found
