"""Methods against each other: where they must coincide they do, bit for bit; frozen layers stay;
the ledger adds up.
"""

import jax
import numpy as np
import pytest

from snake_jax.algorithms.fedavg import FEDAVG
from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.algorithms.schedule import Plan
from snake_jax.algorithms.visits import Outcome, Visit
from snake_jax.config import ImageConfig, TextConfig
from snake_jax.engines.contract import run_visits
from snake_jax.errors import UserError
from snake_jax.params import num_params
from snake_jax.runs import loop
from tests.helpers import close, same_bits

SMALL = {
    "model": "mlp",
    "width": 0.25,
    "dataset": "digits",
    "nodes": 3,
    "cycles": 2,
    "eval_every": 100,
}


def run(**flags):
    """All reports of a run and its executor."""
    setup = loop.prepare(ImageConfig(**{**SMALL, **flags}))
    executor = loop.make_engine(setup)
    state = loop.initial_state(setup)
    return list(loop.train(setup, executor, state, lambda state: None)), executor, state


def final(**flags):
    """The parameters that a run ends with."""
    return run(**flags)[0][-1].state.params


def test_with_one_node_and_all_layers_snake_fedavg_sequential_and_centralised_are_one():
    flags = {"nodes": 1, "distill": "off", "local_epochs": 2, "augment": "crop_flip"}
    snake = final(algorithm="snake", always_train="all", **flags)
    assert same_bits(snake, final(algorithm="snake", layers_per_visit=9, **flags))
    for other in ("fedavg", "sequential", "centralised"):
        assert same_bits(snake, final(algorithm=other, **flags)), other


def test_snake_is_sequential_where_all_layers_train_and_a_cycle_is_a_visit_to_each_node():
    flags = {"lr_schedule": "constant", "distill": "on"}
    snake = final(algorithm="snake", always_train="all", cycles=6, **flags)
    assert same_bits(snake, final(algorithm="sequential", cycles=2, **flags))


def test_client_server_and_peer_to_peer_train_the_same():
    assert same_bits(final(mode="client_server"), final(mode="peer_to_peer", cached=False))


@pytest.mark.parametrize("frozen_dtype", ["float32", "int8"])
def test_frozen_layers_are_bit_identical_after_a_visit(frozen_dtype):
    reports, _, state = run(always_train="last", frozen_dtype=frozen_dtype)
    before = state.params
    for report in reports:
        after, trained = report.state.params, report.record["layers"]
        assert all(same_bits(before[name], after[name]) == (name not in trained) for name in before)
        before = after


def test_one_program_serves_an_assignment_in_all_cycles_and_on_nodes_with_unlike_data():
    traces = []
    setup = loop.prepare(
        ImageConfig(**{**SMALL, "partition": "dirichlet_split", "alpha": 0.5, "local_epochs": 2})
    )
    assert len({len(shard) for shard in setup.data.shards}) == 3
    counted = setup.model.layers[0]._replace(
        apply=lambda *args, inner=setup.model.layers[0].apply: (traces.append(1), inner(*args))[1]
    )
    model = setup.model._replace(layers=(counted, *setup.model.layers[1:]))
    setup = setup._replace(job=setup.job._replace(model=model))
    executor, state = loop.make_engine(setup), loop.initial_state(setup)
    # Else the last of them may be traced, beside the rounds, at any moment.
    executor.expect(loop.planned(setup), state.params, wait=True)
    reports = loop.train(setup, executor, state, lambda state: None)
    records = [next(reports).record for _ in range(2)]  # the first cycle: two middle layers
    after_first, programs = len(traces), executor.compilations.programs
    records += [report.record for report in reports]
    assert len(records) == 4
    assert (
        (len(traces), executor.compilations.programs) == (after_first, programs) == (after_first, 3)
    )


def test_every_example_is_seen_once_an_epoch():
    reports, _, _ = run(local_epochs=2, batch_size=50)
    sizes = [479, 479, 479]
    assert [r.record["examples"] for r in reports] == [2 * sizes[r.record["node"]] for r in reports]
    assert [r.record["iterations"] for r in reports] == [20] * 4


def test_seeds_decide():
    assert same_bits(final(seed=3), final(seed=3))
    assert not same_bits(final(seed=3), final(seed=4))


def test_an_interruption_loses_nothing_that_was_learnt():
    flags = {"interrupt": "1@0.5", "partition": "iid"}
    whole, _, _ = run()
    uploaded, _, _ = run(**flags)
    lost, _, _ = run(**flags, interruption="lost")
    assert [r.record["event"] for r in uploaded] == ["", "interrupted", "takeover", "", ""]
    assert [r.record["iterations"] for r in uploaded] == [15, 7, 8, 15, 15]
    assert [r.record["iterations"] for r in lost] == [15, 7, 15, 15, 15]
    assert same_bits(uploaded[0].state.params, whole[0].state.params)
    assert not same_bits(
        uploaded[1].state.params, whole[0].state.params
    )  # what the node had learnt is handed in
    assert same_bits(
        lost[1].state.params, whole[0].state.params
    )  # or the model is as it was before
    assert lost[1].record["bytes_up"] == 0 < uploaded[1].record["bytes_up"]


def test_a_share_of_a_visit_covers_its_first_batches():
    whole, _, _ = run(nodes=2, cycles=1, distill="off", momentum=0.0)
    parts, _, _ = run(nodes=2, cycles=1, distill="off", momentum=0.0, interrupt="0@0")
    assert parts[0].record["iterations"] == 0
    assert parts[0].record["loss"] is None
    assert parts[1].record["iterations"] == whole[0].record["iterations"]


def test_a_carried_optimizer_state_is_used_and_paid_for():
    fresh, _, _ = run(mode="peer_to_peer")
    carried, _, _ = run(mode="peer_to_peer", carry_optimizer_state=True)
    up = []
    for reports in (fresh, carried):
        up.append([report.record["bytes_up"] for report in reports])
    assert same_bits(fresh[0].state.params, carried[0].state.params)
    assert not same_bits(fresh[1].state.params, carried[1].state.params)
    assert all(a < b for a, b in zip(up[0][1:], up[1][1:], strict=True))


def test_a_visit_without_improvement_ends_early():
    patient, _, _ = run(local_epochs=4, learning_rate=1e-6)
    brief, _, _ = run(local_epochs=4, learning_rate=1e-6, early_stop=0.5)
    assert [r.record["iterations"] for r in patient] == [60] * 4
    assert [r.record["iterations"] for r in brief] == [30] * 4


def test_distillation_turns_itself_on_by_the_divergence_of_the_labels():
    alike = loop.prepare(ImageConfig(**SMALL, partition="iid"))
    unlike = loop.prepare(ImageConfig(**SMALL, partition="dirichlet", alpha=0.3))
    assert (alike.distilled, unlike.distilled) == (False, True)
    assert alike.verdict.why == "within chance at --distill_level=0.01"
    assert unlike.verdict.why == "beyond chance at --distill_level=0.01"
    for measure, bound in (("js", 0.99), ("kl", 2.0)):
        flags = {"partition": "dirichlet", "alpha": 0.3, "distill_measure": measure}
        near = loop.prepare(ImageConfig(**SMALL, **flags, distill_threshold=bound))
        far = loop.prepare(ImageConfig(**SMALL, **flags, distill_threshold=bound / 10))
        assert (near.distilled, far.distilled) == (False, True)
        assert near.verdict.why == f"at most --distill_threshold={bound:g} above chance"


def merged(plan, params, memory, outcomes):
    """A round of FedAvg's merge."""
    total = FEDAVG.merge.init(plan, (), params, memory)
    for outcome in outcomes:
        total = FEDAVG.merge.add(total, outcome)
    return FEDAVG.merge.finish(plan, (), params, memory, total)


def test_fedavg_weights_by_examples():
    def result(value, held):
        layers = {"a": {"w": np.full(3, value, np.float32)}}
        return Outcome(Visit(0, 0, 0, ("a",)), layers, {}, 0.0, True, 1, 1, held, 0.0)

    params = {"a": {"w": np.zeros(3, np.float32)}}
    plan = Plan(ImageConfig(), ("a",), ())
    mean, _ = merged(plan, params, {}, [result(1.0, 30), result(5.0, 10)])
    np.testing.assert_allclose(mean["a"]["w"], 2.0)
    with_momentum = plan._replace(config=ImageConfig(server_momentum=0.5))
    velocity = FEDAVG.memory(with_momentum.config, params)
    first, velocity = merged(with_momentum, params, velocity, [result(2.0, 1)])
    second, velocity = merged(with_momentum, first, velocity, [result(2.0, 1)])
    np.testing.assert_allclose(first["a"]["w"], 2.0)
    np.testing.assert_allclose(second["a"]["w"], 3.0)  # nothing new, and half of the step before


def test_fedavg_is_the_mean_of_its_nodes_runs():
    reports, executor, state = run(algorithm="fedavg", cycles=1)
    setup = loop.prepare(ImageConfig(**{**SMALL, "algorithm": "fedavg"}))
    visits = [Visit(0, 0, node, setup.model.layer_names) for node in range(3)]
    alone = [
        run_visits(executor, [v], state.params, {}, setup.config.learning_rate)[0] for v in visits
    ]
    mean = jax.tree.map(
        lambda *w: sum(x.astype(np.float64) for x in w) / 3,
        *(jax.device_get(r.layers) for r in alone),
    )
    assert close(reports[0].state.params, mean)


def test_the_ledger_of_the_runs_is_the_hand_count():
    names = ("fc1", "fc2", "fc3", "fc4")
    params = loop.initial_state(loop.prepare(ImageConfig(**SMALL))).params
    size = {name: 4 * num_params(params[name]) for name in names}
    whole, ends = sum(size.values()), size["fc1"] + size["fc4"]
    sent = lambda reports: [(r.record["bytes_up"], r.record["bytes_down"]) for r in reports]  # noqa: E731
    assert sent(run(cached=False)[0]) == [
        (ends + size[m], whole) for m in ("fc2", "fc3", "fc2", "fc3")
    ]
    # A node's first visit sends all; at the fourth, node0 lacks what the two others trained: fc3,
    # fc2, the ends.
    cached = [whole, whole, whole, ends + size["fc2"] + size["fc3"]]
    assert sent(run()[0]) == [
        (ends + size[m], d) for m, d in zip(("fc2", "fc3", "fc2", "fc3"), cached, strict=True)
    ]
    peers = sent(run(mode="peer_to_peer", cached=False)[0])
    assert peers == [(0, whole), (whole, 0), (whole, 0), (whole, 0)]
    assert sent(run(algorithm="fedavg", cached=False)[0]) == [(3 * whole, 3 * whole)] * 2
    assert sent(run(algorithm="fedavg")[0]) == [(3 * whole, 3 * whole)] * 2
    assert sent(run(algorithm="centralised")[0]) == [(0, 0)] * 2


def test_divergence_stops_with_the_visit_named_and_the_last_good_state_kept():
    setup = loop.prepare(ImageConfig(**{**SMALL, "learning_rate": 1e9, "clip_norm": 0.0}))
    executor, state, kept = loop.make_engine(setup), loop.initial_state(setup), []
    with pytest.raises(loop.Diverged, match=r"visit 0 \(node 0, layers fc1, fc2, fc4\) diverged"):
        list(loop.train(setup, executor, state, kept.append))
    assert same_bits(kept[0].params, state.params)


def test_skipping_goes_on_from_the_last_good_state():
    reports, _, state = run(learning_rate=1e9, clip_norm=0.0, on_divergence="skip")
    assert [r.record["event"] for r in reports] == ["skipped"] * 4
    assert same_bits(reports[-1].state.params, state.params)
    assert reports[-1].record["bytes_up"] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"algorithm": "fedavg", "interrupt": "1"},
            "--interrupt=1: fedavg has no use for it; it is for snake, sequential",
        ),
        (
            {"algorithm": "fedavg", "carry_optimizer_state": True},
            "--carry_optimizer_state=True: fedavg has no use",
        ),
        ({"algorithm": "centralised", "distill": "on"}, "--distill=on: centralised has no use"),
        ({"algorithm": "fedavg", "mode": "peer_to_peer"}, "--mode=peer_to_peer: fedavg has no use"),
        (
            {"server_momentum": 0.5},
            "--server_momentum=0.5: snake has no use for it; it is for fedavg",
        ),
        ({"algorithm": "sequential", "order": "reverse"}, "it is for snake"),
        ({"interrupt": "1,4"}, "there is no visit 4; the last is 3"),
        (
            {"algorithm": "fedavg", "nodes_per_round": 4},
            "--nodes_per_round=4 is more than --nodes=3",
        ),
        ({"always_train": "fc1,fc9"}, "no layer fc9; say none, or of fc1, fc2, fc3, fc4"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        loop.prepare(ImageConfig(**{**SMALL, **flags}))


def test_algorithms_are_listed_under_their_names():
    assert {name: a.name for name, a in ALGORITHMS.items()} == {name: name for name in ALGORITHMS}


@pytest.mark.parametrize("algorithm", ["snake", "fedavg"])
def test_gradients_of_parts_make_the_step_of_the_whole_batch(algorithm):
    """Accumulation computes a step in parts: fewer activations at a time, the same step."""
    flags = {"algorithm": algorithm, "cycles": 1, "local_epochs": 1, "train_examples": 192}
    whole, _, _ = run(batch_size=32, **flags)
    parts, _, _ = run(batch_size=8, accumulate=4, **flags)
    assert [r.record["iterations"] for r in parts] == [r.record["iterations"] for r in whole]
    assert [r.record["train_flops"] for r in parts] == [r.record["train_flops"] for r in whole]
    assert close(parts[-1].state.params, whole[-1].state.params, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["fedavg", "centralised", "sequential"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "nf4"])
def test_the_base_under_adapters_has_a_precision_in_every_method(algorithm, dtype):
    """Case R5: with adapters something is frozen whatever the method."""
    flags = {"algorithm": algorithm, "lora_rank": 2, "frozen_dtype": dtype, "limit": 30}
    assert loop.prepare(TextConfig(**flags)).config.frozen_dtype == dtype
    with pytest.raises(UserError, match="has no use for it"):
        loop.prepare(TextConfig(**flags | {"lora_rank": 0, "frozen_dtype": "nf4"}))
