"""Rounds of SCCT: epochs of iterations, what is sent, who holds what, and how long it took.

A round is a pure function of the state, the settings and the data, so a run that is killed goes on
from its last round's end with the same bits.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from snake_jax.nodes.ledger import Network, Transfer, bytes_up_down
from snake_jax.params import Params
from snake_jax.scct.system import batches, build, clocks, evaluate, holding, iteration, traffic
from snake_jax.scct.system.build import System
from snake_jax.scct.system.clocks import Clock, RoundCourse, Splits
from snake_jax.scct.system.holding import owner_of
from snake_jax.scct.system.iteration import Working
from snake_jax.scct.system.membership import Presence, presences
from snake_jax.training.optimizers import OptimizerStates

Record = dict[str, Any]


class SystemState(NamedTuple):
    """All that a run carries from round to round.

    Attributes:
      small: small models by owner: each device's backup of the last round's end.
      trained: what trains in the cloud.
      states: its optimizer states, by layer. Those of small models begin anew with every round, so
        that layers alone move when split points do.
      network: who holds what.
      splits: of the last round, by mechanism and node.
      clock_s: simulated seconds so far, by mechanism.
      rounds: finished so far.
    """

    small: Mapping[str, Params]
    trained: Params
    states: OptimizerStates
    network: Network
    splits: Mapping[str, Splits]
    clock_s: Mapping[str, float]
    rounds: int


class RoundReport(NamedTuple):
    """A finished round: a line of metrics, what was sent, the state after it."""

    record: Record
    transfers: list[Transfer]
    state: SystemState


class Trained(NamedTuple):
    """What a round's epochs came to.

    Attributes:
      working: parameters after them.
      left: small models of devices that left before the end, as they took them along.
      losses: `{node: of every iteration}`.
      plain: likewise, of the plain text, where it was computed.
      iterations: of all devices together.
    """

    working: Working
    left: Mapping[str, Params]
    losses: Mapping[int, list[float]]
    plain: Mapping[int, list[float]]
    iterations: int


def first_state(system: System) -> SystemState:
    """Before the first round."""
    settings = system.settings
    holders = {}
    if settings.has_small:
        holders = {node: owner_of(settings.arm, node) for node in range(settings.nodes)}
    small = {}
    for node, owner in holders.items():
        if owner not in small:
            small[owner] = build.fresh_small(system, node)
    trained = build.fresh_trained(system)
    network = holding.start(small, holders, trained)
    seconds = dict.fromkeys(settings.clocks, 0.0)
    return SystemState(small, trained, {}, network, {}, seconds, 0)


def train(system: System, state: SystemState) -> Iterator[RoundReport]:
    """The rounds that `state` has not finished."""
    while state.rounds < system.settings.rounds:
        report = one_round(system, state)
        state = report.state
        yield report


def one_round(system: System, state: SystemState) -> RoundReport:
    """A round: split points, epochs, backups; then the clocks' seconds and the evaluation."""
    settings, number = system.settings, state.rounds + 1
    started = time.monotonic()
    there = presences(system.events, settings.nodes, settings.epochs, number)
    course = RoundCourse(
        system.scenario, system.law, settings.splits, settings.seed, number, tuple(there)
    )

    # Every mechanism's clock; the first one's split points are those that layers lie by.
    ticks = {}
    for mechanism in settings.clocks:
        before = state.splits.get(mechanism, {})
        ticks[mechanism] = clocks.of_round(course, mechanism, before)
    splits = ticks[settings.clocks[0]].splits

    network, moved = _placed(system, state, splits, number)
    trained = _epochs(system, state, splits, there)
    small = _kept(state, trained, there, settings.arm)
    network, backups = _backed_up(system, state, network, splits, there)
    transfers = [
        *moved,
        *traffic.of_round(system, state.small, splits, there, number - 1),
        *backups,
    ]

    state = SystemState(
        small,
        trained.working.trained,
        trained.working.states,
        network,
        {name: _with(state.splits.get(name, {}), tick.splits) for name, tick in ticks.items()},
        {name: state.clock_s[name] + tick.seconds for name, tick in ticks.items()},
        number,
    )
    record = _record(system, state, trained, transfers, ticks, there)
    record["train_s"] = time.monotonic() - started
    if number % settings.eval_every == 0 or number == settings.rounds:
        record |= _scores(system, state)
    return RoundReport(record, transfers, state)


def _placed(
    system: System, state: SystemState, splits: Splits, number: int
) -> tuple[Network, list[Transfer]]:
    """Layers to where the round's split points put them."""
    network, rows = state.network, list[Transfer]()
    if system.settings.has_small:
        size = holding.sizes(state.small, state.trained)
        for node, split in splits.items():
            lying = _lying(system, node, split)
            network, sent = holding.place(network, size, number - 1, node, lying)
            rows += sent
    return network, rows


def _lying(system: System, node: int, split: int) -> holding.Segments:
    """Where a device's layers are."""
    layers = system.encoder.layer_names
    if system.settings.arm == "small":
        layers = (*layers, "span")
        split = len(layers) - 1
    return holding.segments(owner_of(system.settings.arm, node), layers, split)


def _epochs(
    system: System, state: SystemState, splits: Splits, there: Sequence[Presence]
) -> Trained:
    """The round's epochs; small models' optimizers begin anew."""
    settings, number = system.settings, state.rounds + 1
    working = Working(state.small, {}, state.trained, state.states)
    left: dict[str, Params] = {}
    losses: dict[int, list[float]] = {}
    plain: dict[int, list[float]] = {}
    total = 0
    for epoch in range(settings.epochs):
        nodes = [node for node, one in enumerate(there) if one.epochs > epoch]
        found = []
        orders = _orders(system, number, epoch, nodes)
        for count in range(settings.iterations if nodes else 0):
            at = count * settings.batch_size
            rows = {}
            for node in nodes:
                index = orders[node][at : at + settings.batch_size]
                rows[node] = batches.rows(system.data[node].train, index)
            working, step = iteration.run(system, working, splits, rows)
            found.append(step)
        # Numbers are fetched once an epoch, so that no iteration waits for them.
        for step in jax.device_get(found):
            total += len(nodes)
            for node, loss in zip(nodes, step.losses.tolist(), strict=True):
                losses.setdefault(node, []).append(loss)
            if step.plain is not None:
                for node, loss in zip(nodes, step.plain.tolist(), strict=True):
                    plain.setdefault(node, []).append(loss)
        # Who leaves now takes its model as it is.
        for node in nodes:
            if there[node].epochs == epoch + 1 < settings.epochs and there[node].keeps:
                owner = owner_of(settings.arm, node)
                if owner in working.small:
                    left[owner] = working.small[owner]
    return Trained(working, left, losses, plain, total)


def _orders(system: System, number: int, epoch: int, nodes: Sequence[int]) -> dict[int, np.ndarray]:
    """Which of its examples each device sees in an epoch."""
    settings = system.settings
    wanted = settings.iterations * settings.batch_size
    found = {}
    for node in nodes:
        examples = len(system.data[node].train.questions)
        found[node] = batches.order(settings.seed, number, epoch, node, examples, wanted)
    return found


def _kept(
    state: SystemState, trained: Trained, there: Sequence[Presence], arm: str
) -> dict[str, Params]:
    """Small models after the round: of a device that dropped, its backup of the last one's end."""
    small = dict(trained.working.small)
    for node, one in enumerate(there):
        owner = owner_of(arm, node)
        if owner not in small or owner == "shared":
            continue
        if owner in trained.left:
            small[owner] = trained.left[owner]
        elif not one.keeps or one.epochs == 0:
            small[owner] = state.small[owner]
    return small


def _backed_up(
    system: System,
    state: SystemState,
    network: Network,
    splits: Splits,
    there: Sequence[Presence],
) -> tuple[Network, list[Transfer]]:
    """New versions of what trained, and the edge's layers back to their devices."""
    settings, rows = system.settings, list[Transfer]()
    size = holding.sizes(state.small, state.trained)
    lying = {}
    for node, split in splits.items():
        if settings.has_small and there[node].keeps:
            lying[node] = _lying(system, node, split)
    if settings.arm == "scct_shared":
        network, rows = holding.keep_shared(network, size, state.rounds, lying, settings.backup)
        return holding.keep_in_cloud(network, state.trained), rows
    for node, own in lying.items():
        network, sent = holding.keep(network, size, state.rounds, node, own, settings.backup)
        rows += sent
    return holding.keep_in_cloud(network, state.trained), rows


def _with(before: Splits, now: Splits) -> Splits:
    """The last known split point of every device."""
    return {**before, **now}


def _record(
    system: System,
    state: SystemState,
    trained: Trained,
    transfers: Sequence[Transfer],
    ticks: Mapping[str, Clock],
    there: Sequence[Presence],
) -> Record:
    """A line of metrics, with the fields that all runs have."""
    settings = system.settings
    up, down = bytes_up_down(transfers)
    nodes = [node for node, one in enumerate(there) if one.epochs]
    first = ticks[settings.clocks[0]]
    flops = traffic.flops(system, state.trained, first.splits, there)
    record: Record = {
        "visit": state.rounds - 1,
        "cycle": state.rounds - 1,
        "node": nodes,
        "layers": list(system.encoder.layer_names) if settings.has_small else [],
        "iterations": trained.iterations,
        "examples": trained.iterations * settings.batch_size,
        "bytes_up": up,
        "bytes_down": down,
        "train_flops": sum(flops.values()),
        "server_flops": flops["edge"] + flops["cloud"],
        "place_flops": flops,
        "loss": _mean_of(trained.losses),
        "losses": {str(node): float(np.mean(some)) for node, some in trained.losses.items()},
        "learning_rate": settings.small_rate,
        "clock_s": first.seconds,
        "clocks_s": {name: tick.seconds for name, tick in ticks.items()},
        "transfer_s": {name: tick.transfer_s for name, tick in ticks.items()},
        "splits": {name: _words(tick.splits) for name, tick in ticks.items()},
        "event": _event(there, settings.epochs),
        "accuracy": None,
        "test_loss": None,
        "f1": None,
        "exact_match": None,
    }
    if trained.plain:
        pairs = {}
        for node, some in trained.losses.items():
            pairs[str(node)] = float(np.mean(some) - np.mean(trained.plain[node]))
        record["small_losses"] = pairs
    return record


def _words(splits: Splits) -> dict[str, int]:
    """As JSON has them."""
    return {str(node): split for node, split in splits.items()}


def _mean_of(losses: Mapping[int, list[float]]) -> float | None:
    """Over all iterations of all devices; None where nobody was there."""
    every = [loss for some in losses.values() for loss in some]
    return float(np.mean(every)) if every else None


def _event(there: Sequence[Presence], epochs: int) -> str:
    """What befell devices in the middle of a round."""
    words = []
    for node, one in enumerate(there):
        if not one.keeps:
            words.append(f"drop:{node}")
        elif 0 < one.epochs < epochs:
            words.append(f"leave:{node}")
    return ",".join(words)


def _scores(system: System, state: SystemState) -> Record:
    """What a line says of held-out questions: means, and each device's own."""
    found = []
    for node in range(system.settings.nodes):
        found.append(evaluate.device(system, state.small, state.trained, node))
    by_device = {}
    for node, of_device in enumerate(found):
        sorts = {}
        for sort, one in of_device.items():
            sorts[sort] = {"f1": one.scores.f1, "exact_match": one.scores.exact_match}
        by_device[str(node)] = sorts
    return {**evaluate.means(found), "devices": by_device}
