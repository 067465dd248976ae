"""What a run asks of the engine: orders in, outcomes out one by one, a method's client beside the
steps, and what is refused.
"""

import pickle

import jax
import numpy as np
import pytest

from snake_jax.algorithms.visits import Lost, Visit
from snake_jax.engines.build import check, image_engine
from snake_jax.engines.contract import Held, Holdings, run_round, run_visits
from snake_jax.engines.epochs import VisitSettings
from snake_jax.errors import UserError
from snake_jax.params import select
from snake_jax.training.optimizers import update_rule
from tests.clients import drift
from tests.helpers import close, random_examples, same_bits, small_model, small_step

pytestmark = pytest.mark.usefixtures("quick_compilation")
SHARDS = [np.arange(8), np.arange(8, 12), np.arange(12, 24)]
LAYERS, RATE = ("fc2", "fc4"), 0.05
SETTINGS = VisitSettings(
    local_epochs=1, batch_size=16, frozen_dtype="float32", early_stop=0.0, seed=7
)


def make(emulation="loop", settings=SETTINGS, **step):
    model, params = small_model("mlp")
    step = small_step(model, **step)
    train, test = random_examples(24), random_examples(9, seed=1)
    return image_engine(step, train, test, SHARDS, settings, emulation), params


def plain(**changes):
    """Descent without momentum, so that one step is told by its gradient."""
    return {"rule": update_rule("sgd", momentum=0.0, weight_decay=0.0), **changes}


def visits(count=3, layers=LAYERS):
    return [Visit(node, 0, node, layers) for node in range(count)]


def orders_of(engine, some, params, memory=None, shared=None, version=0):
    """Orders of a round whose layers the engine is told to be of this version; memory by node."""
    layers = {name: Held(version, value) for name, value in params.items()}
    remembered = {node: Held(4, value) for node, value in enumerate(memory or [])}
    holdings = Holdings(layers, {}, remembered, Held(2, shared or {}))
    engine.hold(holdings)
    return [holdings.order(visit, RATE) for visit in some]


def trained_groups(engine):
    """The numbers of visits that the engine trains together, as it does."""
    groups, inner = [], engine._train

    def train(program, orders, parts):
        groups.append(len(orders))
        return inner(program, orders, parts)

    engine._train = train
    return groups


def test_in_the_loop_a_visit_is_begun_when_the_outcome_before_it_is_asked_for():
    engine, params = make()
    groups = trained_groups(engine)
    for order in orders_of(engine, visits(), params):
        engine.submit(order)
    assert groups == []
    seen = []
    for done in range(3):
        seen.append(engine.next().visit)
        # A network this small leaves the device room for one further visit.
        assert groups == [1] * min(done + 2, 3)
    assert seen == visits()
    assert engine.next() is None


def test_side_by_side_a_group_is_trained_once_and_handed_out_one_by_one():
    engine, params = make("vmap")
    groups = trained_groups(engine)
    other = Visit(3, 0, 0, ("fc3",))
    for order in orders_of(engine, [*visits(), other], params):
        engine.submit(order)
    assert [engine.next().visit for _ in range(4)] == [*visits(), other]
    assert groups == [3, 1]


def test_orders_from_unlike_weights_share_no_program():
    engine, params = make("vmap")
    moved = jax.tree.map(lambda w: 1.5 * w, params)
    alone = []
    for version, some in enumerate((params, moved)):
        alone.append(
            run_round(engine, orders_of(engine, visits(1), some, version=version))[0].layers
        )
    for version, some in enumerate((params, moved)):
        (order,) = orders_of(engine, visits(1), some, version=version)
        engine.submit(order)
    assert [same_bits(engine.next().layers, wanted) for wanted in alone] == [True, True]


def test_outcomes_arrive_in_any_order_and_a_lost_node_is_said():
    class Late:
        """Hands out the last first, and then nothing."""

        def __init__(self, lost):
            self.orders, self.lost = [], lost
            self.submit = self.orders.append

        def next(self, timeout_s=None):
            if self.lost and len(self.orders) == 1:
                return Lost(self.orders.pop().visit, "its power went")
            engine.submit(self.orders.pop())
            return engine.next()

    engine, params = make()
    orders = orders_of(engine, visits(), params)
    assert [done.visit for done in run_round(Late(False), orders)] == visits()
    with pytest.raises(RuntimeError, match="its power went"):
        run_round(Late(True), orders)


@pytest.mark.parametrize("emulation", ["loop", "vmap"])
def test_states_that_nothing_keeps_are_not_brought_back(emulation):
    engine, params = make(emulation)
    assert [done.states for done in run_visits(engine, visits(), params, {}, RATE)] == [{}] * 3
    engine, _ = make(emulation, SETTINGS._replace(carry_optimizer_state=True))
    for done in run_visits(engine, visits(), params, {}, RATE):
        assert done.states.keys() == done.layers.keys()


def test_what_was_submitted_is_forgotten_on_closing():
    engine, params = make()
    engine.submit(orders_of(engine, visits(1), params)[0])
    engine.close()
    assert engine.next() is None


# Parts of a batch


def test_two_parts_of_two_images_are_a_batch_of_four():
    whole, params = make(settings=SETTINGS._replace(batch_size=4, local_epochs=2))
    parts, _ = make(settings=SETTINGS._replace(batch_size=2, local_epochs=2, accumulate=2))
    uneven = visits(1) + [Visit(1, 0, 2, LAYERS, (0.0, 0.6))]
    for a, b in zip(
        *(run_visits(e, uneven, params, {}, RATE) for e in (whole, parts)), strict=True
    ):
        assert close(a.layers, b.layers)
        assert (a.iterations, a.examples) == (b.iterations, b.examples)
        assert a.iterations > 1
        np.testing.assert_allclose(a.loss, b.loss, rtol=1e-5)


# A method's client


def memories(params, seed=3):
    """Random memories of three nodes, and what the server tells them."""
    rng = np.random.default_rng(seed)
    noise = lambda w: rng.normal(size=w.shape).astype(np.float32)  # noqa: E731
    return [jax.tree.map(noise, params) for _ in range(4)]


@pytest.mark.parametrize("emulation", ["loop", "vmap", "pmap", "shard_map"])
def test_a_client_corrects_every_step_and_remembers(emulation):
    free, params = make(**plain())
    bound, _ = make(emulation, **plain(client=drift()))
    *memory, shared = memories(params)
    before = run_visits(free, visits(), params, {}, RATE)
    after = run_round(bound, orders_of(bound, visits(), params, memory, shared))
    received = select(params, LAYERS)
    for node, (a, b) in enumerate(zip(before, after, strict=True)):
        assert b.iterations == 1
        gradient = jax.tree.map(lambda old, new: (old - new) / RATE, received, a.layers)
        wanted = jax.tree.map(
            lambda new, c, own: new - RATE * (c - own),
            a.layers,
            select(shared, LAYERS),
            select(memory[node], LAYERS),
        )
        assert close(b.layers, wanted)
        # After one step a node remembers its gradient, and of other layers what it did before.
        assert close(select(b.memory, LAYERS), gradient, rtol=1e-3, atol=1e-4)
        others = [name for name in params if name not in LAYERS]
        assert same_bits(select(b.memory, others), select(memory[node], others))
        change = jax.tree.map(np.subtract, select(b.memory, LAYERS), select(memory[node], LAYERS))
        assert close(b.report, change)


def test_a_correction_comes_before_the_norm_is_clipped():
    engine, params = make(**plain(client=drift(), clip_norm=1e-3))
    *memory, shared = memories(params)
    (done,) = run_round(engine, orders_of(engine, visits(1), params, memory, shared))
    moved = jax.tree.map(lambda a, b: (a - b) / RATE, select(params, LAYERS), done.layers)
    norm = np.sqrt(sum((np.asarray(leaf) ** 2).sum() for leaf in jax.tree.leaves(moved)))
    np.testing.assert_allclose(norm, 1e-3, rtol=2e-2)


@pytest.mark.parametrize("emulation", ["loop", "vmap"])
def test_programs_of_a_client_are_compiled_ahead_where_the_server_s_word_is_known(emulation):
    engine, params = make(emulation, **plain(client=drift()))
    *memory, shared = memories(params)
    engine.expect([tuple(visits())], params)
    assert engine.compilations.programs == 1, "the evaluation"
    engine.expect([tuple(visits())], params, shared=shared)
    assert engine.compilations.programs == 2
    run_round(engine, orders_of(engine, visits(), params, memory, shared))
    assert engine.compilations.programs == 2


# What is refused


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"mesh": True}, "a mesh has all devices work for one node; leave --mesh out"),
        ({"unlike_ranks": True}, "nodes of one program have one rank; leave --rank out"),
        ({"cache_prefix": "host"}, "say --cache_prefix=off"),
    ],
)
def test_what_nodes_side_by_side_cannot_have_is_refused_in_one_line(how, reason):
    check("loop", **how)
    check("vmap")
    with pytest.raises(UserError) as error:
        check("vmap", **how)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


# What orders name


def test_an_order_is_small_whatever_it_names():
    engine, params = make()
    (order,) = orders_of(engine, visits(1), params)
    assert set(order.layers) == set(params)
    assert all(isinstance(leaf, int | float | str) for leaf in jax.tree.leaves(order))
    again = pickle.loads(pickle.dumps(order))
    assert again == order
    assert len(pickle.dumps(order)) < 1000


def test_an_order_keeps_what_it_named_when_newer_versions_come():
    engine, params = make()
    (wanted,) = run_round(engine, orders_of(engine, visits(1), params))
    (order,) = orders_of(engine, visits(1), params)
    engine.submit(order)
    orders_of(engine, visits(1), jax.tree.map(lambda w: 1.5 * w, params), version=1)
    assert same_bits(engine.next().layers, wanted.layers)


def test_a_version_that_is_not_held_is_an_error_and_no_other_values():
    engine, params = make()
    (order,) = orders_of(engine, visits(1), params)
    orders_of(engine, visits(1), params, version=1)
    with pytest.raises(ValueError, match="version 0 is wanted, version 1 is held"):
        engine.submit(order)
