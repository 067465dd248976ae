"""A run of the system in its folder: kept after every round, gone on with, and summed up."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import jax

from snake_jax.nodes import ledger
from snake_jax.params import PyTree, num_params
from snake_jax.runs.workdir import Workdir
from snake_jax.scct.system import rounds
from snake_jax.scct.system.build import System
from snake_jax.scct.system.iteration import rule_of
from snake_jax.scct.system.rounds import RoundReport, SystemState

Record = dict[str, Any]

_SUMMED = ("iterations", "examples", "bytes_up", "bytes_down", "train_flops", "train_s", "clock_s")


def resume(workdir: Workdir, system: System, warn: Callable[[str], None]) -> SystemState:
    """The state to go on from: that of the newest sound checkpoint, or the first.

    Raises:
      UserError: no checkpoint can be read, or the lines do not go with it.
    """
    first = rounds.first_state(system)

    def expected(meta: Record) -> PyTree:
        rule = rule_of(system).make()
        states = {name: rule.init(first.trained[name]) for name in meta["states"]}
        return dict(first.small), first.trained, states

    saved = workdir.restore(expected, warn)
    if saved is None:
        return first
    small, trained, states = jax.device_put(saved.tree)
    splits = {}
    for mechanism, of_nodes in saved.meta["splits"].items():
        splits[mechanism] = {int(node): split for node, split in of_nodes.items()}
    network = ledger.from_json(saved.meta["network"])
    clock_s = saved.meta["clock_s"]
    return SystemState(small, trained, states, network, splits, clock_s, saved.rounds)


def add(workdir: Workdir, report: RoundReport) -> None:
    """Appends a round's lines and writes its checkpoint."""
    workdir.add_lines(report.record, report.transfers)
    state = report.state
    splits = {}
    for mechanism, of_nodes in state.splits.items():
        splits[mechanism] = {str(node): split for node, split in of_nodes.items()}
    meta = {
        "states": list(state.states),
        "network": ledger.to_json(state.network),
        "splits": splits,
        "clock_s": dict(state.clock_s),
    }
    tree = (dict(state.small), state.trained, state.states)
    workdir.store(state.rounds, tree, meta)


def summary(system: System, lines: Sequence[Record], state: SystemState) -> Record:
    """The content of summary.json.

    Args:
      system: the run.
      lines: all lines of metrics; the last was evaluated.
      state: after the last round.
    """
    known = [line["f1"] for line in lines if line["f1"] is not None]
    last = lines[-1]
    scores = {}
    for name, value in last.items():
        if name.endswith(("_f1", "_exact_match")):
            scores[f"final_{name}"] = value
    small = sum(num_params(params) for params in state.small.values())
    cloud = num_params(state.trained)
    return {
        "final_f1": last["f1"],
        "best_f1": max(known),
        "final_exact_match": last["exact_match"],
        **scores,
        **{name: sum(line[name] for line in lines) for name in _SUMMED},
        "clocks_s": dict(state.clock_s),
        "num_params": num_params(system.base) + small + cloud,
        "trainable_params": small + cloud,
        "device": f"{jax.devices()[0].platform}:{jax.devices()[0].device_kind}",
        "config": asdict(system.settings),
    }
