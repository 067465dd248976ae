"""What a run is before it begins: its configuration checked, its data, network and plan, and its
task.

`classification` and `tuning` make one from a configuration; `runner`, `costs` and `workdir` go on
from there and know no task.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

from snake_jax.algorithms import base, schedule
from snake_jax.algorithms.base import Algorithm
from snake_jax.algorithms.chain import Chain
from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.algorithms.schedule import Plan
from snake_jax.algorithms.traffic import Exchange
from snake_jax.algorithms.visits import Outcome, Round
from snake_jax.config import RunConfig
from snake_jax.errors import UserError
from snake_jax.models.layered import Layer
from snake_jax.nodes import ledger
from snake_jax.nodes.fleet import Fleet
from snake_jax.nodes.ledger import Sizes
from snake_jax.params import Params, PyTree, select
from snake_jax.train.optimizers import OptimizerStates, init_states, update_rule


class Task(NamedTuple):
    """What kind of model a run trains on what kind of data; all are functions of the setup.

    Attributes:
      params: all that may train, at the start, in full precision.
      like: the shapes of `params`, made without reading or computing anything.
      executor: carries out visits; puts data on the device.
      work: `Outcome -> {role: FLOPs}`.
      sizes: bytes of everything that may travel.
      record: what a line of metrics says besides, from the round's results and scores.
      summary: what summary.json says besides, from the executor and the lines.
    """

    params: Callable[["Setup"], Params]
    like: Callable[["Setup"], Params]
    executor: Callable[["Setup"], Any]
    work: Callable[["Setup"], Callable[[Outcome], Mapping[int, int]]]
    sizes: Callable[["Setup"], Sizes]
    record: Callable[[Sequence[Outcome], tuple[float | None, float | None]], dict[str, Any]]
    summary: Callable[["Setup", Any, Sequence[dict[str, Any]]], dict[str, Any]]


class Setup(NamedTuple):
    """A checked configuration with its data, network and plan.

    Attributes:
      task: what kind of run it is.
      config: as given.
      algorithm: the method.
      dataset: images, cleaned, or text.
      quality: what cleaning did, one line.
      shards: each node's indices into the training examples, as the method trains on them.
      divergence: between the nodes' label distributions, by `config.distill_measure`.
      distilled: whether visits distill.
      model: the network, a `LayeredModel` or a `LanguageModel`.
      plan: what the schedule depends on.
      chain: where the layers of a visit lie.
      auxiliary: layers that train beside the model's.
      fleet: what nodes and server can do, for assignments and for the clock.
      adapters: names of what trains in the place of blocks.
    """

    task: Task
    config: Any
    algorithm: Algorithm
    dataset: Any
    quality: str
    shards: Sequence[Any]
    divergence: float
    distilled: bool
    model: Any
    plan: Plan
    chain: Chain
    auxiliary: tuple[Layer, ...]
    fleet: Fleet
    adapters: tuple[str, ...] = ()

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The model's order, and after it auxiliary layers and adapters."""
        return (
            self.model.layer_names + tuple(layer.name for layer in self.auxiliary) + self.adapters
        )


def check_fit(config: RunConfig, algorithm: Algorithm) -> None:
    """Flags that the algorithm has no use for are refused rather than ignored."""
    special = {flag for other in ALGORITHMS.values() for flag in other.flags}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in special - algorithm.flags and value not in (field.default, "off"):
            users = ", ".join(
                other.name for other in ALGORITHMS.values() if field.name in other.flags
            )
            raise UserError(
                f"--{field.name}={value}: {algorithm.name} has no use for it; it is for {users}"
            )
    for flag in ("nodes_per_round", "parallel"):
        if (value := getattr(config, flag)) > config.nodes:
            raise UserError(f"--{flag}={value} is more than --nodes={config.nodes}")
    if config.parallel > 1:
        _check_parallel(config)
    schedule.interruptions(config)
    algorithm.check(config)


def _check_parallel(config: RunConfig) -> None:
    if config.mode == "peer_to_peer":
        raise UserError(
            f"--parallel={config.parallel}: the server averages the nodes; leave "
            f"--mode=client_server"
        )
    if config.interrupt or config.fault_rate:
        raise UserError(
            f"--parallel={config.parallel}: an idle node can take over for one node; leave "
            f"--interrupt out"
        )
    if config.assign != "serpentine":
        raise UserError(
            f"--parallel={config.parallel}: nodes side by side take turns; leave "
            f"--assign=serpentine"
        )
    if config.carry_optimizer_state:
        raise UserError(
            f"--parallel={config.parallel}: side by side there is no one state to carry on"
        )


def check_interruptions(setup: Setup) -> None:
    """Refuses interruptions of visits that there are not."""
    last = planned(setup)[-1][-1].turn
    if late := [turn for turn in schedule.interruptions(setup.config) if turn > last]:
        raise UserError(
            f"--interrupt={setup.config.interrupt}: there is no visit {late[0]}; the last is {last}"
        )


def planned(setup: Setup) -> list[Round]:
    """All rounds of the run, in order, where nothing fails but what the flags ask for."""
    return base.planned(setup.algorithm, setup.plan)


def exchange_of(setup: Setup, sizes: Sizes | None = None) -> Exchange:
    """What the traffic of the setup's method depends on.

    Args:
      setup: of the run.
      sizes: bytes of layers and optimizer states; None: as the task counts them.
    """
    companions = setup.algorithm.companions
    sizes = setup.task.sizes(setup) if sizes is None else sizes
    sizes = with_companions(sizes, setup.layer_names, companions)
    if setup.config.carry_optimizer_state:
        companions = (*companions, ledger.OPTIMIZER)
    names = setup.model.layer_names
    beside = setup.layer_names[len(names) :]
    return Exchange(setup.config, sizes, setup.chain, names, beside, companions)


def with_companions(sizes: Sizes, names: Sequence[str], kinds: Sequence[str]) -> Sizes:
    """Bytes of layers, and of companions that are as large as their layers in full precision."""
    beside = {}
    for kind in kinds:
        for name in names:
            beside[ledger.companion(name, kind)] = sizes.full[name]
    return Sizes({**sizes.full, **beside}, {**sizes.frozen, **beside})


def make_rule(config: RunConfig) -> optax.GradientTransformation:
    """The update rule of the configuration."""
    return update_rule(config.optimizer, momentum=config.momentum, weight_decay=config.weight_decay)


def state_like(
    setup: Setup, layers_with_state: Sequence[str], nodes: Sequence[int] = ()
) -> tuple[Params, OptimizerStates, PyTree, dict[int, PyTree]]:
    """The shapes of a state's arrays, `(params, states, memory, nodes' memories)`.

    Args:
      setup: of the run.
      layers_with_state: which layers have optimizer states.
      nodes: which nodes remember something.
    """
    client = setup.algorithm.client(setup.config)

    def make() -> tuple[Params, OptimizerStates, PyTree, dict[int, PyTree]]:
        params = setup.task.like(setup)
        states = init_states(make_rule(setup.config), params, setup.layer_names)
        memory = setup.algorithm.memory(setup.config, params)
        remembered = {node: client.memory(params) for node in nodes} if client else {}
        return params, select(states, layers_with_state), memory, remembered

    return jax.eval_shape(make)
