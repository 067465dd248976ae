"""Snake's relatives: several snakes, BAdam, LISA, growing models; and who must agree with whom."""

import jax
import numpy as np
import pytest

from snake_jax.algorithms import pool, server_optimizers
from snake_jax.algorithms.base import planned_rounds
from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.algorithms.schedule import Plan
from snake_jax.algorithms.visits import Visit
from snake_jax.config import ImageConfig, TextConfig
from snake_jax.engines.contract import run_visits
from snake_jax.errors import UserError
from snake_jax.nodes.ledger import optimizer_item
from snake_jax.params import num_bytes
from snake_jax.runs import loop
from snake_jax.runs.job import chosen_algorithm
from tests.helpers import close, same_bits
from tests.launches import write_model, write_pairs
from tests.method_runs import NAMES, final, images, kept, prepared, run  # noqa: F401  (images is a fixture)
from tests.sweeps import sweep

THREE = {"algorithm": "snake", "snakes": 3, "always_train": "none", "distill": "off"}


def lasting(state):
    """All of a state but what was measured of time, which no two runs share."""
    return state._replace(measured={})


def from_half_way(**flags):
    """The last state of a run that goes on from the state after its first half."""
    setup, engine, _, reports = kept(tuple(sorted(flags.items())))
    *_, last = loop.train(setup, engine, reports[len(reports) // 2 - 1].state, lambda state: None)
    return last.state


# Several snakes


def test_snakes_train_disjoint_layers_from_one_model_and_nothing_is_averaged():
    setup, engine, state, reports = kept(tuple(sorted(THREE.items())))
    assert [report.record["layers"] for report in reports][:2] == [["fc1", "fc3", "fc4"], ["fc2"]]
    assert [report.record["node"] for report in reports] == [[0, 1, 2], 0, [1, 2, 0], 1]
    params = state.params
    for visits, report in zip(loop.planned(setup), reports, strict=True):
        rate, trained = report.record["learning_rate"], {}
        for visit in visits:
            (alone,) = run_visits(engine, [visit], params, {}, rate)
            trained |= alone.layers
        params = {**params, **trained}
        assert same_bits(report.state.params, params)
        own = [num_bytes(params[name]) for name in report.record["layers"]]
        assert report.record["bytes_up"] == sum(own)


def test_snakes_with_one_visit_each_are_one_parallel_round_of_disjoint_layers():
    flags = {**THREE, "snakes": 2, "layers_per_visit": 2, "cycles": 1}
    setup, engine, state, (report,) = kept(tuple(sorted(flags.items())))
    halves = (NAMES[:2], NAMES[2:])
    visits = [Visit(node, 0, node, layers) for node, layers in enumerate(halves)]
    outcomes = run_visits(engine, visits, state.params, {}, setup.config.learning_rate)
    assert same_bits(report.state.params, {**outcomes[0].layers, **outcomes[1].layers})


def test_several_snakes_take_less_simulated_time_for_as_many_examples():
    one = run(**{**THREE, "snakes": 1})
    three = run(**THREE)
    seen = [sum(report.record["examples"] for report in reports) for reports in (one, three)]
    assert seen[0] == seen[1]
    seconds = [sum(report.record["clock_s"] for report in reports) for reports in (one, three)]
    assert seconds[1] < 0.7 * seconds[0]


def test_a_snake_that_is_lost_is_taken_over_and_the_others_are_kept():
    flags = {**THREE, "interrupt": "1@0.5", "interruption": "lost", "cycles": 1}
    _, _, state, reports = kept(tuple(sorted(flags.items())))
    assert [report.record["event"] for report in reports] == ["lost", "takeover", ""]
    assert [report.record["layers"] for report in reports][1:] == [["fc3"], ["fc2"]]
    first = reports[0].state.params
    moved = [name for name in NAMES if not same_bits(first[name], state.params[name])]
    assert moved == ["fc1", "fc4"]
    assert not same_bits(reports[1].state.params["fc3"], first["fc3"])


def test_an_absent_node_s_snake_goes_to_a_node_without_a_visit():
    """So no layer is left out; of nodes that train the same layers the others suffice."""
    config = ImageConfig(algorithm="snake", nodes=4, snakes=3, always_train="none")
    plan = Plan(config, NAMES, ())
    visits = tuple(Visit(turn, 0, turn, (name,)) for turn, name in enumerate(NAMES[:3]))
    manned = pool.manned(plan, frozenset({1}), visits)
    assert [(visit.node, visit.layers) for visit in manned] == [
        (0, ("fc1",)),
        (3, ("fc2",)),
        (2, ("fc3",)),
    ]
    alike = tuple(Visit(0, 0, node, NAMES) for node in range(3))
    assert [visit.node for visit in pool.manned(plan, frozenset({1}), alike)] == [0, 2]
    nobody_idle = plan._replace(config=ImageConfig(nodes=3, snakes=3, always_train="none"))
    left = pool.manned(nobody_idle, frozenset({1}), visits)
    assert [visit.node for visit in left] == [0, 2]


def test_several_snakes_go_on_where_they_were():
    assert same_bits(lasting(from_half_way(**THREE)), lasting(run(**THREE)[-1].state))


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"snakes": 10}, "--snakes=10 is more than --nodes=9"),
        ({"always_train": "last"}, "say --always_train=none"),
        ({"parallel": 2}, "leave --parallel out"),
        ({"mode": "peer_to_peer"}, "leave --mode=client_server"),
        ({"assign": "milp"}, "leave --assign=serpentine"),
        ({"algorithm": "fedavg", "always_train": "first,last"}, "it is for snake"),
    ],
)
def test_what_several_snakes_cannot_be_is_refused_in_one_line(flags, reason):
    base = {"snakes": 2, "always_train": "none"}
    with pytest.raises(UserError) as error:
        chosen_algorithm(ImageConfig(**{**base, **flags}))
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


# One place


@pytest.mark.parametrize("order", sweep(["sequential", "random", "reverse"], quick=["random"]))
def test_badam_is_snake_on_one_node_in_the_same_order(order):
    flags = {"nodes": 1, "order": order, "always_train": "none", "optimizer": "adam"}
    badam = final(algorithm="badam", **flags)
    assert same_bits(badam, final(algorithm="snake", distill="off", **flags))
    several = {**flags, "nodes": 3}
    assert close(final(algorithm="badam", **several), badam), "all data is in one place"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Flags of a small run on text, whole blocks of a Llama of three."""
    folder = tmp_path_factory.mktemp("texts")
    model, pairs = write_model(folder / "model"), write_pairs(folder / "pairs.jsonl")
    small = {"max_length": 64, "nodes": 1, "batch_size": 4, "eval_every": 100, "lora_rank": 0}
    return small | {"model": str(model), "data": str(pairs), "learning_rate": 0.01}


def trained_on(texts, **flags):
    setup = loop.prepare(TextConfig(**{**texts, **flags}))
    engine, state = loop.make_engine(setup), loop.initial_state(setup)
    return list(loop.train(setup, engine, state, lambda state: None))


def test_on_text_badam_is_snake_on_one_node_and_lisa_trains_ends_and_a_block(texts):
    badam = trained_on(texts, algorithm="badam")
    snake = trained_on(texts, algorithm="snake")
    assert same_bits(badam[-1].state.params, snake[-1].state.params)
    assert [report.record["bytes_up"] for report in badam] == [0] * 3
    lisa = trained_on(texts, algorithm="lisa", always_train="first,last", periods=2)
    for report in lisa:
        first, block, last = report.record["layers"]
        assert (first, block[:5], last) == ("embed", "block", "head")
    assert sum(report.record["tokens"] for report in lisa) == badam[0].record["tokens"]


def test_hift_of_one_group_is_centralised_training_in_so_many_parts():
    flags = {"nodes": 1, "always_train": "none", "optimizer": "adam", "cycles": 1}
    whole = final(algorithm="centralised", nodes=1, optimizer="adam", cycles=1)
    of_hift = {"algorithm": "hift", "carry_optimizer_state": True, "lr_schedule": "constant"}
    parts = flags | of_hift | {"layers_per_visit": len(NAMES), "periods": 3, "cycles": 3}
    assert same_bits(final(**parts), whole)
    # Its relative forgets the moments of the steps before.
    forgetful = parts | {"algorithm": "badam", "carry_optimizer_state": False}
    assert not close(final(**forgetful), whole, rtol=1e-3, atol=1e-3)


def test_hift_keeps_a_group_s_states_until_its_next_turn():
    flags = {"algorithm": "hift", "always_train": "none", "optimizer": "adam"}
    reports = run(**flags, carry_optimizer_state=True, cycles=2, layers_per_visit=2)
    first = reports[0].state.states
    assert set(first) == set(NAMES[:2])
    for name in NAMES[:2]:
        assert same_bits(reports[1].state.states[name], first[name])
        assert not same_bits(reports[2].state.states[name], first[name])
    # Where nothing is sent a new state is another version all the same.
    item = optimizer_item(NAMES[0])
    versions = [report.state.network.latest.get(item, 0) for report in reports[:3]]
    assert versions == [0, 0, 1]
    with pytest.raises(UserError, match="or --algorithm=badam, which drops them"):
        chosen_algorithm(ImageConfig(algorithm="hift"))


def test_periods_share_a_pass_over_the_data():
    whole, halves = (run(algorithm="badam", always_train="none", periods=n) for n in (1, 2))
    assert [report.record["layers"] for report in whole] == [[name] for name in NAMES] * 2
    assert [report.record["layers"] for report in halves] == [[name] for name in NAMES] * 2
    steps = [report.record["iterations"] for report in halves]
    assert [a + b for a, b in zip(steps[::2], steps[1::2], strict=True)] == [
        report.record["iterations"] for report in whole[:4]
    ]
    # Halves of one shuffle: what one visit has seen the other has not.
    seen = [report.record["examples"] for report in halves]
    assert [a + b for a, b in zip(seen[::2], seen[1::2], strict=True)] == [90] * 4


def test_lisa_draws_every_block_as_often_and_trains_both_ends():
    layers = tuple(f"l{i}" for i in range(8))
    config = ImageConfig(algorithm="lisa", cycles=100, periods=6)
    rounds = planned_rounds(ALGORITHMS["lisa"], Plan(config, layers, ("l0", "l7")))
    middle = []
    for ((_, _, _, (first, drawn, last), *_),) in rounds:
        assert (first, last) == ("l0", "l7")
        middle.append(drawn)
    counts = [middle.count(name) for name in layers[1:-1]]
    assert sum(counts) == 600
    # Binomial of 600 draws of six: mean 100, deviation 9.1.
    assert max(abs(count - 100) for count in counts) < 40
    assert rounds == planned_rounds(ALGORITHMS["lisa"], Plan(config, layers, ("l0", "l7")))


def test_lisa_goes_on_where_it_was_and_drops_optimizer_states():
    flags = {"algorithm": "lisa", "periods": 2, "optimizer": "adam", "cycles": 3}
    assert same_bits(lasting(from_half_way(**flags)), lasting(run(**flags)[-1].state))
    assert all(report.state.states == {} for report in run(**flags))
    assert {len(report.record["layers"]) for report in run(**flags)} == {3}


def test_lisa_without_both_ends_is_refused():
    with pytest.raises(UserError, match="say --always_train=first,last"):
        chosen_algorithm(TextConfig(algorithm="lisa"))


# Growing models


def test_a_growing_model_with_all_layers_at_once_is_fedavg():
    grown = final(algorithm="progressive", layers_per_visit=4, rounds_per_layer=1)
    assert same_bits(grown, final(algorithm="fedavg"))


def test_a_model_grows_from_stage_to_stage_and_what_is_not_reached_stays():
    flags = {"algorithm": "progressive", "always_train": "last", "rounds_per_layer": 1, "cycles": 4}
    _, _, state, reports = kept(tuple(sorted(flags.items())))
    wanted = [["fc1", "fc4"], ["fc1", "fc2", "fc4"], list(NAMES), list(NAMES)]
    assert [report.record["layers"] for report in reports] == wanted
    first = reports[0].state.params
    assert same_bits([first["fc2"], first["fc3"]], [state.params["fc2"], state.params["fc3"]])
    sent = [report.record["bytes_up"] for report in reports]
    assert sent[0] < sent[1] < sent[2] == sent[3]
    flops = [report.record["train_flops"] for report in reports]
    assert flops[0] < flops[2] == flops[3]
    down = prepared(**{**flags, "order": "reverse"})
    assert [visits[0].layers for visits in loop.planned(down)][:2] == [
        ("fc3", "fc4"),
        ("fc2", "fc3", "fc4"),
    ]


def test_a_growing_model_has_no_random_order():
    with pytest.raises(UserError, match="say sequential or reverse"):
        prepared(algorithm="progressive", order="random")


# Averages that must agree


def test_scaffold_is_fedavg_as_long_as_control_variates_are_zero():
    """They are in the first round; later ones differ."""
    flags = {"momentum": 0.0, "clip_norm": 0.0, "local_epochs": 2}
    scaffold, average = (run(algorithm=name, **flags) for name in ("scaffold", "fedavg"))
    assert close(scaffold[0].state.params, average[0].state.params)
    assert not close(scaffold[1].state.params, average[1].state.params)


def test_the_servers_plain_step_of_rate_one_is_fedavg():
    average = run(algorithm="fedavg")
    flags = {"server_optimizer": "sgd", "server_learning_rate": 1.0}
    assert same_bits(final(algorithm="fedavg", **flags), average[-1].state.params)
    # And as the formula has it, x + 1 * (mean - x), where the shortcut is not taken.
    config = ImageConfig(algorithm="fedavg", server_momentum=1e-9)
    start, mean = (report.state.params for report in average)
    nothing = jax.tree.map(np.zeros_like, start)
    moved, _ = server_optimizers.step(config, start, nothing, mean)
    assert close(moved, mean)
