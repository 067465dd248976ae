"""Who trains what by measured rates, kept for a resume; who takes over by the clock's."""

import pytest

from snake_jax.algorithms.chain import ON_SERVER
from snake_jax.algorithms.visits import Visit, nothing_of
from snake_jax.config import ImageConfig
from snake_jax.errors import UserError
from snake_jax.nodes.fleet import make_fleet
from snake_jax.runs import loop, rates
from snake_jax.runs.job import check_fit, chosen_algorithm
from snake_jax.runs.rates import MeasuredRate, fleet_as_measured, measured_after
from snake_jax.runs.workdir import Workdir
from tests.helpers import same_bits
from tests.launches import write_images

SMALL = {"model": "mlp", "width": 0.25, "nodes": 3, "cycles": 3, "batch_size": 8}


@pytest.fixture(scope="module")
def small(tmp_path_factory, quick_compilation):
    images = write_images(tmp_path_factory.mktemp("data") / "images.npz")
    return {**SMALL, "dataset": f"npz:{images}"}


def test_rates_are_what_nodes_were_seen_to_compute():
    def came(node, seconds):
        return nothing_of(Visit(0, 0, node, ("a",)))._replace(train_s=seconds)

    role = ("node", 0)
    first = measured_after({}, [came(0, 2.0), came(2, 0.0)], [{role: 10}, {role: 10}])
    assert first == {0: MeasuredRate(10, 2.0)}, "a lost visit says nothing"
    second = measured_after(first, [came(0, 1.0)], [{role: 5, ON_SERVER: 100}])
    assert second == {0: MeasuredRate(15, 3.0)}


def test_a_node_that_was_not_seen_is_as_much_slower_as_the_others():
    stated = make_fleet(3, 0.0, 0)
    seen = {0: MeasuredRate(1e9, 1.0), 2: MeasuredRate(4e9, 1.0)}
    found = fleet_as_measured(stated, seen)
    assert [node.flops_per_s for node in found.nodes] == [1e9, 2.5e9, 4e9]
    assert fleet_as_measured(stated, {}) == stated


class Slow:
    """An engine that says that one node computes a thousand times slower than the others."""

    def __init__(self, engine, node):
        self._engine, self._node = engine, node

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def next(self, timeout_s=None):
        outcome = self._engine.next(timeout_s)
        slow = outcome.visit.node == self._node
        return outcome._replace(train_s=outcome.iterations * (1.0 if slow else 1e-3))


def kept(setup, path, node, stop=None):
    folder, found = Workdir(path, setup.config), []
    state = folder.resume(setup, pytest.fail)
    engine = Slow(loop.make_engine(setup), node)
    for report in loop.train(setup, engine, state, lambda state: None):
        folder.add(report, engine.compilations)
        found.append(report)
        if report.state.rounds == stop:
            break
    folder.close()
    return found


def test_plans_by_measured_rates_avoid_who_is_slow_and_are_kept(small, tmp_path):
    flags = {"assign": "milp", "rates": "measured"}
    setup = loop.prepare(ImageConfig(**small, **flags))
    planned = [visits[0].node for visits in loop.planned(setup)]
    slow = planned[0]
    whole = kept(setup, tmp_path / "whole", slow)
    nodes = [report.record["node"] for report in whole]
    assert nodes[:2] == planned[:2], "the first cycle goes by what is stated"
    assert slow not in nodes[2:]
    # A run that goes on keeps to its plan, whatever it would measure now.
    begun = kept(setup, tmp_path / "run", slow, stop=3)
    rest = kept(setup, tmp_path / "run", node=nodes[3])
    assert [report.record["node"] for report in begun + rest][:4] == nodes[:4]
    assert rest[0].state.plans[1] == begun[-1].state.plans[1] == tuple(nodes[2:4])
    assert same_bits(rest[0].state.params, whole[3].state.params)


def test_without_a_plan_nothing_is_measured_into_one(small):
    setup = loop.prepare(ImageConfig(**small, assign="milp"))
    assert rates.plans_after(setup, {}, {0: MeasuredRate(1.0, 1.0)}, 0, 1) == {}


def test_the_soonest_done_takes_over(small, tmp_path):
    file = tmp_path / "nodes.yaml"
    file.write_text("nodes:\n  - {}\n  - {flops_per_s: 1.0e+9}\n  - {flops_per_s: 1.0e+12}\n")
    struck = {**small, "interrupt": "0@0,2@0", "node_file": str(file)}

    def nodes(**flags):
        rounds = loop.planned(loop.prepare(ImageConfig(**{**struck, **flags})))
        return [visits[0].node for visits in rounds][:6]

    assert nodes(stand_in="next") == [0, 1, 1, 2, 0, 0]
    assert nodes() == [0, 2, 1, 2, 0, 0]
    # Who lost a visit is not idle, so it is the other one that is there.
    assert nodes(leave="2@0") == [0, 1, 1, 0, 1, 0]


def test_flags_that_make_no_sense_are_refused():
    config = ImageConfig(rates="measured")
    with pytest.raises(UserError, match="nodes take turns, whatever they compute"):
        check_fit(config, chosen_algorithm(ImageConfig()))
    config = ImageConfig(rates="measured", assign="segments")
    with pytest.raises(UserError, match="segments would be other visits, and another number"):
        chosen_algorithm(config)
    config = ImageConfig(
        rates="measured", assign="greedy", topology="ring", mode="peer_to_peer", nodes=4
    )
    with pytest.raises(UserError, match="each hop is chosen when it comes, by stated rates"):
        chosen_algorithm(config)
