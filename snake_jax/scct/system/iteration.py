"""One iteration: forward over device, edge and cloud, and back (Figure 4 of the paper).

Optimizers are called where the paper calls them: in the cloud as soon as its gradients are there
(equation 9), then at each edge (10), then at each device (11).
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from snake_jax.models import span
from snake_jax.params import Params, PyTree
from snake_jax.scct.system import batches, cloud, small_model
from snake_jax.scct.system.batches import DeviceRows
from snake_jax.scct.system.build import System
from snake_jax.scct.system.holding import owner_of
from snake_jax.scct.system.small_model import ForwardPass, NamedRule
from snake_jax.training.optimizers import OptimizerStates


class Working(NamedTuple):
    """What an iteration changes.

    Attributes:
      small: small models by owner.
      small_states: their optimizer states by owner; layers that have not trained yet have none.
      trained: of the cloud.
      states: its optimizer states.
    """

    small: Mapping[str, Params]
    small_states: Mapping[str, OptimizerStates]
    trained: Params
    states: OptimizerStates


class Step(NamedTuple):
    """An iteration's losses `[N]` by device: of the large model, and of the plain text if asked."""

    losses: jax.Array
    plain: jax.Array | None


class DevicePass(NamedTuple):
    """A device's forward pass: at the device, then at the edge."""

    device: ForwardPass
    edge: ForwardPass


def run(
    system: System, working: Working, splits: Mapping[int, int], rows: Mapping[int, DeviceRows]
) -> tuple[Working, Step]:
    """One iteration of the devices that rows are given of."""
    arm = system.settings.arm
    if arm == "small":
        return _alone(system, working, rows)
    if arm in ("scct", "scct_shared"):
        return _in_series(system, working, splits, rows)
    given = jnp.concatenate([one.ids for one in rows.values()])
    batch = batches.joined([one.of_large for one in rows.values()])
    working, found = _in_cloud(system, working, len(rows), given, batch)
    return working, Step(found.losses, None)


def forward(system: System, params: Params, split: int, rows: DeviceRows) -> DevicePass:
    """Equations 3 and 4: the device's layers, then the edge's on what the device sends."""
    encoder, names = system.encoder, system.encoder.layer_names
    device = small_model.forward(encoder, names[: split + 1], params, rows.small)
    edge = small_model.forward(encoder, names[split + 1 :], params, device.output)
    return DevicePass(device, edge)


def edge_gradients(
    system: System, params: Params, split: int, way: DevicePass, gradient: jax.Array
) -> tuple[Params, jax.Array]:
    """Of the edge's layers, and what it sends to the device."""
    names = system.encoder.layer_names[split + 1 :]
    return small_model.backward(system.encoder, names, params, way.edge.inputs, gradient)


def device_gradients(
    system: System, params: Params, split: int, way: DevicePass, gradient: jax.Array
) -> Params:
    """Of the device's layers."""
    names = system.encoder.layer_names[: split + 1]
    inputs = way.device.inputs
    found, _ = small_model.backward(system.encoder, names, params, inputs, gradient)
    return found


def rule_of(system: System) -> NamedRule:
    """The update rule, of both models."""
    return NamedRule(system.settings.optimizer)


def _in_series(
    system: System, working: Working, splits: Mapping[int, int], rows: Mapping[int, DeviceRows]
) -> tuple[Working, Step]:
    """SCCT: small models before the large one."""
    settings = system.settings
    ways = {}
    for node, own in rows.items():
        params = working.small[owner_of(settings.arm, node)]
        ways[node] = forward(system, params, splits[node], own)

    # Equation 5 for all devices at once; equation 6 only for a report.
    m = jnp.concatenate([way.edge.output.values for way in ways.values()])
    batch = batches.joined([own.of_small for own in rows.values()])
    plain = None
    if settings.plain_loss == "always":
        ids = jnp.concatenate([own.ids for own in rows.values()])
        text = batches.joined([own.of_large for own in rows.values()])
        large, base = system.large, system.base
        plain = cloud.measured(large, len(rows), base, working.trained, ids, text)
    working, found = _in_cloud(system, working, len(rows), m, batch)
    assert found.inputs is not None, "m came in"

    # What goes back to the edges: each device's own rows.
    parts = jnp.split(found.inputs, len(rows))
    back = dict(zip(rows, parts, strict=True))
    if settings.arm == "scct_shared":
        return _shared(system, working, splits, ways, back), Step(found.losses, plain)
    small, states = dict(working.small), dict(working.small_states)
    for node, way in ways.items():
        owner = owner_of(settings.arm, node)
        small[owner], states[owner] = _back(
            system, small[owner], states.get(owner, {}), splits[node], way, back[node]
        )
    working = working._replace(small=small, small_states=states)
    return working, Step(found.losses, plain)


def _back(
    system: System,
    params: Params,
    states: OptimizerStates,
    split: int,
    way: DevicePass,
    gradient: jax.Array,
) -> tuple[Params, OptimizerStates]:
    """Equations 10 and 11: the edge's backward pass and update, then the device's."""
    rule, rate = rule_of(system), system.settings.small_rate
    of_edge, gradient = edge_gradients(system, params, split, way, gradient)
    params, states = small_model.update(rule, rate, of_edge, states, params)
    of_device = device_gradients(system, params, split, way, gradient)
    return small_model.update(rule, rate, of_device, states, params)


def _shared(
    system: System,
    working: Working,
    splits: Mapping[int, int],
    ways: Mapping[int, DevicePass],
    back: Mapping[int, jax.Array],
) -> Working:
    """One small model of all devices: their mean gradient, and one update."""
    owner = owner_of("scct_shared", 0)
    params = working.small[owner]
    total: PyTree = None
    for node, way in ways.items():
        of_edge, gradient = edge_gradients(system, params, splits[node], way, back[node])
        of_device = device_gradients(system, params, splits[node], way, gradient)
        own = {name: {**of_device, **of_edge}[name] for name in system.encoder.layer_names}
        total = own if total is None else _added(total, own)
    mean = _times(total, 1 / len(ways))
    rule, rate = rule_of(system), system.settings.small_rate
    states = working.small_states.get(owner, {})
    params, states = small_model.update(rule, rate, mean, states, params)
    return working._replace(small={owner: params}, small_states={owner: states})


def _in_cloud(
    system: System, working: Working, devices: int, given: jax.Array, batch: cloud.CloudBatch
) -> tuple[Working, cloud.Gradients]:
    """Equations 5, 7 and 9."""
    settings, trained = system.settings, working.trained
    found = cloud.gradients(system.large, devices, system.base, trained, given, batch)
    of_trained = found.trained
    if settings.adapter_loss == "mean":
        of_trained = _times(of_trained, 1 / devices)
    rule, rate = rule_of(system), settings.adapter_rate
    trained, states = small_model.update(rule, rate, of_trained, working.states, trained)
    return working._replace(trained=trained, states=states), found


def _alone(
    system: System, working: Working, rows: Mapping[int, DeviceRows]
) -> tuple[Working, Step]:
    """A small model with a span head of its own, all on the device."""
    rule, rate = rule_of(system), system.settings.small_rate
    split = system.encoder.num_blocks
    small, states, lost = dict(working.small), dict(working.small_states), []
    for node, own in rows.items():
        owner = owner_of("small", node)
        params = small[owner]
        way = forward(system, params, split, own)
        loss, of_head, gradient = span_gradients(
            params[cloud.SPAN], way.device.output.values, own.of_small
        )
        of_layers = device_gradients(system, params, split, way, gradient)
        all_gradients = {**of_layers, cloud.SPAN: of_head}
        small[owner], states[owner] = small_model.update(
            rule, rate, all_gradients, states.get(owner, {}), params
        )
        lost.append(loss)
    working = working._replace(small=small, small_states=states)
    return working, Step(jnp.stack(lost), None)


@jax.jit
def span_gradients(
    head: PyTree, values: jax.Array, batch: cloud.CloudBatch
) -> tuple[jax.Array, PyTree, jax.Array]:
    """Loss of a span head on a small model, and gradients of the head and of the values."""

    def loss(head: PyTree, values: jax.Array) -> jax.Array:
        logits = span.scores(head, values, batch.context)
        total = span.losses(logits, batch.spans).sum()
        return total / jnp.maximum(batch.spans.weight.sum(), 1)

    found, (of_head, of_values) = jax.value_and_grad(loss, argnums=(0, 1))(head, values)
    return found, of_head, of_values


@jax.jit
def _added(one: PyTree, other: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, one, other)


@functools.partial(jax.jit, static_argnums=1)
def _times(tree: PyTree, factor: float) -> PyTree:
    return jax.tree.map(lambda x: x * factor, tree)
