"""SCCT's system: gradients over three places, frozen bases, moves, drops and clocks."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snake_jax.errors import UserError
from snake_jax.scct import latency, small
from snake_jax.scct.system import batches, build, clocks, cloud, evaluate, iteration, rounds
from snake_jax.scct.system.settings import SystemSettings, checked
from tests.helpers import close, same_bits
from tests.scct.small_systems import Systems


@pytest.fixture(scope="module")
def systems(tmp_path_factory):
    return Systems(tmp_path_factory.mktemp("scct"))


@pytest.fixture(scope="module")
def stirred(systems):
    """A system, a device's small model, what trains in the cloud, all away from their start."""
    system = systems()
    trained = build.fresh_trained(system)
    leaves, shape = jax.tree.flatten(trained)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    moved = [x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    rows = batches.rows(system.data[0].train, np.array([0, 1, 2]))
    return system, build.fresh_small(system, 0), jax.tree.unflatten(shape, moved), rows


# Gradients


def whole_gradients(system, params, trained, rows):
    """Of the unsplit model, by one `jax.grad` over all of it."""

    def loss(params, trained):
        m = system.encoder.apply(params, rows.small).values
        return cloud.losses(system.large, 1, system.base, trained, m, rows.of_small).sum()

    return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, trained)


def split_gradients(system, params, trained, rows, split):
    """Of device, edge and cloud, which pass on nothing but m, v and their gradients."""
    way = iteration.forward(system, params, split, rows)
    m = way.edge.output.values
    found = cloud.gradients(system.large, 1, system.base, trained, m, rows.of_small)
    of_edge, back = iteration.edge_gradients(system, params, split, way, found.inputs)
    of_device = iteration.device_gradients(system, params, split, way, back)
    return of_device, of_edge, found.trained


def test_gradients_at_every_split_point_are_the_unsplit_models(stirred):
    system, params, trained, rows = stirred
    whole, in_cloud = whole_gradients(system, params, trained, rows)
    assert float(jnp.abs(whole["embed"]["tokens"]["embedding"]).max()) > 1e-4
    names = system.encoder.layer_names
    before = None
    for split in range(1, system.encoder.num_blocks + 1):
        of_device, of_edge, of_cloud = split_gradients(system, params, trained, rows, split)
        assert tuple(reversed(of_device)) == names[: split + 1]
        assert tuple(reversed(of_edge)) == names[split + 1 :]
        together = {**of_device, **of_edge}
        assert close(together, {name: whole[name] for name in together}, rtol=1e-5, atol=1e-6)
        assert close(of_cloud, in_cloud, rtol=1e-5, atol=1e-6)
        # Not only close: a layer is the same program wherever it lies.
        ordered = {name: together[name] for name in names}
        assert before is None or same_bits(before, ordered)
        before = ordered


def test_equation_8s_second_term_changes_no_gradient(stirred):
    system, params, trained, rows = stirred
    m = iteration.forward(system, params, 1, rows).edge.output.values
    large, base = system.large, system.base

    def loss(trained, m, with_plain, stops=True):
        found = cloud.losses(large, 1, base, trained, m, rows.of_small)
        if not with_plain:
            return found.sum()
        plain = cloud.losses(large, 1, base, trained, rows.ids, rows.of_large)
        return (cloud.small_model_losses(found, plain) if stops else found - plain).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=(2, 3))
    without, with_it = gradient(trained, m, False), gradient(trained, m, True)
    assert same_bits(without, with_it)
    # What it is there for: as a term of the adapters' loss it would push them away from text.
    of_adapters, of_m = gradient(trained, m, True, False)
    assert not close(of_adapters, without[0], atol=1e-4)
    assert close(of_m, without[1], atol=1e-6)


def test_a_run_is_the_same_whenever_the_plain_loss_is_computed(systems):
    never, always = systems.trained(), systems.trained(plain_loss="always")
    for one, other in zip(never, always, strict=True):
        assert same_bits(one.state.small, other.state.small)
        assert same_bits(one.state.trained, other.state.trained)
    losses = always[0].record["small_losses"]
    assert len(losses) == 3
    assert "small_losses" not in never[0].record


def test_devices_losses_are_added_up_for_the_adapters(systems):
    """One step of plain gradient descent: the sum moves adapters N times as far as the mean."""
    once = {"optimizer": "sgd", "rounds": 1, "epochs": 1, "iterations": 1}
    steps = {}
    for kind in ("sum", "mean"):
        start = rounds.first_state(systems(**once, adapter_loss=kind)).trained
        (report,) = systems.trained(**once, adapter_loss=kind)
        steps[kind] = jax.tree.map(np.subtract, report.state.trained, start)
    assert close(steps["sum"], jax.tree.map(lambda x: 3 * x, steps["mean"]), rtol=1e-3, atol=1e-6)
    assert max(float(np.abs(x).max()) for x in jax.tree.leaves(steps["mean"])) > 1e-4


# What stays as it is


def test_the_frozen_base_and_the_unplugged_model_are_bit_equal_after_training(systems):
    system = systems()
    before = jax.tree.map(np.array, build.prepare(system.settings).base)
    last = systems.trained()[-1].state
    assert same_bits(before, system.base)
    texts = ["Tom has a ball.", "Lily is in the park."]
    unplugged = evaluate.text_loss(system, last.trained, texts, plugged=False)
    fresh = evaluate.text_loss(system, build.fresh_trained(system), texts, plugged=True)
    plugged = evaluate.text_loss(system, last.trained, texts, plugged=True)
    assert unplugged == fresh
    assert plugged != unplugged


def test_every_device_trains_a_small_model_of_its_own(systems):
    state = systems.trained()[-1].state
    assert set(state.small) == {"node0", "node1", "node2"}
    for other in ("node1", "node2"):
        assert not close(state.small["node0"], state.small[other], atol=1e-3)


# Split points that move


def two_rounds(systems, first, second, **changes):
    """A round with a split point, then one with another."""
    one, other = systems(splits=first, **changes), systems(splits=second, **changes)
    report = rounds.one_round(one, rounds.first_state(one))
    return rounds.one_round(other, report.state)


def moved(report, node):
    """Rows of the ledger that hold a device's layers, and no messages of batches."""
    found = []
    for row in report.transfers:
        if row.why not in ("activations", "gradients", "labels") and row.layers[0].startswith(node):
            found.append((str(row.source), str(row.destination), row.layers))
    return found


@pytest.mark.parametrize(("first", "second"), [("fixed:1", "fixed:3"), ("fixed:3", "fixed:1")])
def test_a_moved_split_point_sends_the_layers_between_and_trains_as_if_it_had_not(
    first, second, systems
):
    stayed = two_rounds(systems, first, first, backup=False)
    went = two_rounds(systems, first, second, backup=False)
    assert same_bits(stayed.state.small, went.state.small)
    assert same_bits(stayed.state.trained, went.state.trained)
    for node in ("node0", "node1", "node2"):
        between = (f"{node}/block_01", f"{node}/block_02")
        ends = ("server", node) if second == "fixed:3" else (node, "server")
        assert moved(stayed, node) == []
        assert moved(went, node) == [(*ends, between)]


def test_after_a_backup_a_growing_split_point_has_nothing_left_to_send(systems):
    grown = two_rounds(systems, "fixed:1", "fixed:3")
    shrunk = two_rounds(systems, "fixed:3", "fixed:1")
    between = ("node1/block_01", "node1/block_02")
    # With all layers on the device there is nothing to back up either.
    assert moved(grown, "node1") == []
    assert moved(shrunk, "node1") == [
        ("node1", "server", between),
        ("server", "node1", between),
    ]


def test_activations_and_gradients_are_counted_batch_by_batch(systems):
    (row, *_) = [row for row in systems.trained()[0].transfers if row.why == "activations"]
    # 2 epochs of 2 iterations of 2 rows of 40 positions of 16 numbers of 4 bytes.
    assert row.bytes == 2 * 2 * 2 * 40 * 16 * 4
    assert (str(row.source), str(row.destination)) == ("node0", "server")
    ways = {(str(r.source), str(r.destination)) for r in systems.trained()[0].transfers}
    assert {("server", "cloud"), ("cloud", "server"), ("server", "node2")} <= ways
    # A device has no link to the cloud but through the edge.
    assert not any({"cloud", f"node{node}"} == set(way) for way in ways for node in range(3))


def test_one_small_model_of_all_is_sent_to_nobody_who_trained_it(systems):
    first, second = systems.trained(arm="scct_shared")
    rest = ("shared/block_01", "shared/block_02")
    # The first device brings the edge its layers; each gets them back as a backup.
    assert moved(first, "shared") == [
        ("node0", "server", rest),
        *(("server", f"node{node}", rest) for node in range(3)),
    ]
    assert moved(second, "shared") == moved(first, "shared")[1:]
    assert first.state.network.latest["shared/block_00"] == 1
    # What keeps it one: each device's gradients up, and their mean down.
    synchronised = [
        row for row in first.transfers if len(row.layers) > 1 and row.why == "gradients"
    ]
    ends = [(str(row.source), str(row.destination)) for row in synchronised]
    assert ends[:2] == [("node0", "server"), ("server", "node0")]
    assert len(ends) == 6


# Devices that come and go


def test_a_device_that_drops_comes_back_with_its_backup(systems):
    first, second, third = systems.trained(rounds=3, events="drop:1@2.1")
    assert second.record["event"] == "drop:1"
    assert same_bits(second.state.small["node1"], first.state.small["node1"])
    assert not close(second.state.small["node0"], first.state.small["node0"], atol=1e-4)
    # Its first epoch counted for the adapters, and its messages were sent.
    assert second.record["iterations"] == 2 * 2 + 2 * 2 + 2
    # Back in the next round everybody still has its layers, and it trains on.
    assert [ends for *ends, _ in moved(third, "node1")] == [["server", "node1"]]
    assert not close(third.state.small["node1"], first.state.small["node1"], atol=1e-4)


def test_a_device_that_leaves_takes_along_what_was_trained(systems):
    stays = systems.trained()
    first, second = systems.trained(events="leave:1@2.1")
    assert same_bits(first.state.small, stays[0].state.small)
    assert not close(second.state.small["node1"], first.state.small["node1"], atol=1e-4)
    assert not close(second.state.small["node1"], stays[1].state.small["node1"], atol=1e-4)
    # The edge hands over its layers before it goes.
    assert ("server", "node1", ("node1/block_01", "node1/block_02")) in moved(second, "node1")


def test_a_device_that_joins_later_brings_its_own_model(systems):
    first, second = systems.trained(events="join:2@2")
    start = rounds.first_state(systems(events="join:2@2"))
    assert first.record["node"] == [0, 1]
    assert second.record["node"] == [0, 1, 2]
    assert same_bits(first.state.small["node2"], start.small["node2"])
    assert moved(first, "node2") == []
    joins = ("node2", "server", ("node2/block_01", "node2/block_02"))
    assert moved(second, "node2")[0] == joins


@pytest.mark.parametrize("events", ["drop:1", "drop:9@2", "drop:1@0", "join:1@2.1", "drop:1@2.2"])
def test_wrong_events_are_told(systems, events):
    with pytest.raises(UserError, match="--events"):
        systems(events=events)


# Clocks


def test_three_mechanisms_are_one_training_with_three_clocks(systems):
    changes = {"splits": "descent", "rounds": 2}
    runs = [systems.trained(**changes, mechanisms=name) for name in ("scctt", "scctl", "sccts")]
    all_three = systems.trained(**changes)
    for number in range(2):
        states = [run[number].state for run in (*runs, all_three)]
        for state in states[1:]:
            assert same_bits(states[0].small, state.small)
            assert same_bits(states[0].trained, state.trained)
        seconds = all_three[number].record["clocks_s"]
        alone = [run[number].record["clock_s"] for run in runs]
        assert list(seconds.values()) == alone
        assert len(set(alone)) == 3
    assert all_three[-1].state.clock_s["scctt"] == pytest.approx(
        sum(report.record["clock_s"] for report in all_three), rel=1e-12
    )


def by_hand(course, scenario, splits, mechanism, before):
    """A round's seconds by equations 12 to 20, written out."""
    model, server = scenario.model, scenario.server
    length, width, rows = model.input_length, model.hidden, model.batch
    flops = 3 * rows * (24 * length * width**2 + 4 * length**2 * width)
    values = rows * length * width * 32
    labels = 32 * rows * (length + model.label_length)

    def rate(count, gain, power):
        band = count * server.subcarrier_hz
        return band * math.log2(1 + gain * power / (server.noise_w_per_hz * band))

    moves = []
    for device, split, held in zip(scenario.devices, splits, before, strict=True):
        each = server.subcarriers // len(scenario.devices)
        down = rate(each, device.gain, server.power_w)
        up = rate(each, device.gain, device.power_w)
        speed = down if split > held else up
        moves.append(abs(split - held) * 32 * (12 * width**2 + 4 * width) / speed)
    total = max(moves)
    for epoch in range(scenario.epochs):
        drawn = clocks.epoch_samples(course, range(len(splits)), epoch)
        epoch_scenario = dataclasses.replace(scenario, samples=drawn)
        solver = "equal" if mechanism == "scctl" else "exact"
        given = small.solve(epoch_scenario, np.array(splits), solver)
        slowest = 0.0
        for node, device in enumerate(scenario.devices):
            gain, count = drawn.gain[0, node], int(given.subcarriers[0, node])
            up, down = rate(count, gain, device.power_w), rate(count, gain, server.power_w)
            on_device = splits[node] * flops / drawn.flops_per_s[0, node]
            rest = (model.layers - splits[node]) * flops
            on_edge = rest / (given.shares[0, node] * server.flops_per_s) if rest else 0.0
            slowest = max(slowest, on_device + (values + labels) / up + values / down + on_edge)
        fibre = len(splits) * (values + labels + 32) / scenario.cloud.bits_per_s
        total += scenario.iterations * (fibre + slowest)
    return total


@pytest.mark.parametrize("mechanism", ["scctt", "scctl", "sccts"])
def test_each_clock_is_the_papers_equations(mechanism, systems):
    system = systems(splits="descent")
    there = rounds.presences(system.events, 3, 2, 1)
    course = clocks.RoundCourse(system.scenario, system.law, "descent", 0, 1, tuple(there))
    before = {0: 3, 1: 1, 2: 2}
    found = clocks.of_round(course, mechanism, before)
    splits = list(found.splits.values())
    wanted = by_hand(course, system.scenario, splits, mechanism, before.values())
    assert found.seconds == pytest.approx(wanted, rel=1e-9)
    scenario = clocks.among(system.scenario, [0, 1, 2], before)
    assert found.transfer_s == latency.transfer_s(scenario, np.array(splits)).max()


def test_absent_devices_take_no_time(systems):
    system = systems()
    alone = rounds.presences((), 3, 2, 1)
    there = [alone[0], alone[1]._replace(epochs=0), alone[2]._replace(epochs=0)]
    course = clocks.RoundCourse(system.scenario, system.law, "fixed:1", 0, 1, tuple(alone))
    nobody = course._replace(presences=tuple(one._replace(epochs=0) for one in alone))
    assert clocks.of_round(nobody, "scctt", {}).seconds == 0
    one = clocks.of_round(course._replace(presences=tuple(there)), "scctt", {})
    assert set(one.splits) == {0}
    assert 0 < one.seconds < clocks.of_round(course, "scctt", {}).seconds


# Arms


@pytest.mark.parametrize(
    "changes",
    [
        {"arm": "scct_shared"},
        {"arm": "cloudo"},
        {"arm": "cloudo_all"},
        {"arm": "small", "head": "span"},
        {"arm": "scct", "head": "span"},
        {"arm": "cloudo", "head": "span"},
    ],
    ids=lambda changes: "-".join(changes.values()),
)
def test_every_arm_trains_what_it_is_to_train(changes, systems):
    system = systems(**changes)
    start = rounds.first_state(system)
    report = systems.trained(**changes)[-1]
    small, trained = report.state.small, report.state.trained
    owners = {"scct": 3, "small": 3, "scct_shared": 1}.get(changes["arm"], 0)
    assert len(small) == owners
    moved_layers = set()
    for name, subtree in trained.items():
        if not same_bits(subtree, start.trained[name]):
            moved_layers.add(name)
    assert moved_layers == set(trained)
    assert ("span" in trained) == (changes.get("head") == "span" and changes["arm"] != "small")
    assert ("projection" in trained) == changes["arm"].startswith("scct")
    assert report.record["loss"] < systems.trained(**changes)[0].record["loss"]
    assert 0 <= report.record["f1"] <= 1
    assert math.isfinite(report.record["test_loss"])
    sent = {row.why for row in report.transfers} & {"activations", "gradients", "labels"}
    if changes["arm"] == "small":
        assert sent == set()
    else:
        assert ("gradients" in sent) == changes["arm"].startswith("scct")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arm": "scctx"}, "arm"),
        ({"arm": "small"}, "--head=span"),
        ({"mechanisms": "cloudo"}, "does not clock"),
        ({"rounds": 0}, "--rounds"),
        ({"small_width": 20}, "multiple of 16"),
    ],
)
def test_wrong_settings_are_told_in_a_line(changes, said):
    with pytest.raises(UserError, match=said) as told:
        checked(SystemSettings(**changes))
    assert "\n" not in str(told.value)


def test_more_tokens_than_positions_are_refused(systems):
    with pytest.raises(UserError, match="positions"):
        systems(max_length=80)
