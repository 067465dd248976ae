"""What is to be trained, how and over which nodes, before any data: a `Job`.

It holds no array and can be pickled, so it is what the profiler, the solver, the one who runs the
rounds and a node elsewhere need. What only a node has is the data (`snake_jax.runs.setup`). A task
says what kind of model is trained on what kind of data; nothing but its functions knows that.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from snake_jax.algorithms import base, neighbours, pool, schedule
from snake_jax.algorithms import chain as chains
from snake_jax.algorithms.base import Algorithm, Outline
from snake_jax.algorithms.chain import Chain, Message, Role
from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.algorithms.schedule import Hop, Plan
from snake_jax.algorithms.traffic import Exchange
from snake_jax.algorithms.visits import Outcome, Round
from snake_jax.config import ImageConfig, RunConfig, TextConfig, pick
from snake_jax.engines.contract import Engine, Scores
from snake_jax.errors import UserError
from snake_jax.models.language import LanguageModel
from snake_jax.models.layered import Layer, LayeredModel
from snake_jax.nodes import columns, ledger
from snake_jax.nodes.columns import WHOLE, Columns
from snake_jax.nodes.fleet import Fleet
from snake_jax.nodes.ledger import Sizes, Transfer
from snake_jax.params import Params, PyTree, select
from snake_jax.runs import privacy, stops
from snake_jax.training.image_step import Distillation
from snake_jax.training.optimizers import OptimizerStates, init_states, update_rule

if TYPE_CHECKING:
    from snake_jax.runs.setup import Setup

Config = TypeVar("Config", ImageConfig, TextConfig)
Model = TypeVar("Model", LayeredModel, LanguageModel)
Data = TypeVar("Data")
Record = dict[str, Any]
Reads = Mapping[str, Mapping[str, int]]

Visitors = tuple[Mapping[tuple[str, ...], int], Mapping[tuple[str, ...], Mapping[int, float]]]
"""`{layers: node}` of a cycle's visits where they are assigned, and `{layers: {node: seconds}}` of
the nodes that can hold the visit; either may be empty.
"""


class Task(NamedTuple, Generic[Config, Data, Model]):
    """What kind of model a run trains on what kind of data.

    Attributes:
      like: the shapes of all that may train, made without reading or computing anything.
      sizes: bytes of everything that may travel.
      work: `Outcome -> {role: FLOPs}`.
      visitors: `(job, optimizer steps of a visit at each node) -> Visitors`.
      setup: the job on its data, checked against each other.
      params: all that may train, at the start, in full precision.
      engine: what carries out visits; puts data on the device.
      part: `(data, nodes, held_out) -> data`: what these nodes hold, with or without what is
        scored, trained on with the same bits as beside all other nodes' data.
      record: what a line of metrics says besides, from the round's outcomes and scores.
      summary: what summary.json says besides, from the engine (None: not at hand) and the lines.
      reads: `{layer: {another whose weights it reads too: their bytes}}`, in full precision.
    """

    like: Callable[["Job[Config, Data, Model]"], Params]
    sizes: Callable[["Job[Config, Data, Model]"], Sizes]
    work: Callable[["Job[Config, Data, Model]"], Callable[[Outcome], Mapping[Role, int]]]
    visitors: Callable[["Job[Config, Data, Model]", Sequence[int]], Visitors]
    setup: Callable[["Job[Config, Data, Model]", Data], "Setup[Config, Data, Model]"]
    params: Callable[["Setup[Config, Data, Model]"], Params]
    engine: Callable[["Setup[Config, Data, Model]"], Engine]
    part: Callable[[Data, Sequence[int], bool], Data]
    record: Callable[[Sequence[Outcome], Scores | None], Record]
    summary: Callable[["Setup[Config, Data, Model]", Engine | None, Sequence[Record]], Record]
    reads: Callable[["Job[Config, Data, Model]"], Reads]


class Job(NamedTuple, Generic[Config, Data, Model]):
    """What is to be trained, how and over which nodes.

    Attributes:
      config: as given.
      algorithm: the method.
      model: the network.
      task: what kind of model and data it is about.
      plan: what the schedule depends on.
      chain: where the layers of a visit lie.
      fleet: what nodes and server can do, for assignments and for the clock.
      auxiliary: layers that train beside the model's.
      adapters: names of what trains in the place of blocks.
      distilled: whether visits distill; where `--distill=auto` decides, once the data is known.
      columns: how adapters are cut where nodes have unlike ranks.
    """

    config: Config
    algorithm: Algorithm
    model: Model
    task: Task[Config, Data, Model]
    plan: Plan
    chain: Chain
    fleet: Fleet
    auxiliary: tuple[Layer, ...] = ()
    adapters: tuple[str, ...] = ()
    distilled: bool = False
    columns: Columns = WHOLE

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The model's order, and after it auxiliary layers and adapters."""
        beside = tuple(layer.name for layer in self.auxiliary)
        return self.model.layer_names + beside + self.adapters


def chosen_algorithm(config: RunConfig) -> Algorithm:
    """The method that the configuration names.

    Raises:
      UserError: there is none, or a flag is set that it has no use for.
    """
    algorithm = ALGORITHMS[pick("algorithm", config.algorithm, ALGORITHMS)]
    check_fit(config, algorithm)
    return algorithm


def check_fit(config: RunConfig, algorithm: Algorithm) -> None:
    """Flags that the algorithm has no use for are refused rather than ignored.

    Raises:
      UserError: there is one, or flags contradict each other.
    """
    useless: set[str] = set()
    for other in ALGORITHMS.values():
        useless |= other.flags - algorithm.flags
    if isinstance(config, TextConfig) and config.lora_rank:
        # Beside adapters there is always something frozen: the base under them.
        useless -= {"frozen_dtype"}

    # A flag that is off, or as it is by default, asks for nothing.
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in useless and value not in (field.default, "off"):
            users = [other.name for other in ALGORITHMS.values() if field.name in other.flags]
            raise UserError(
                f"--{field.name}={value}: {algorithm.name} has no use for it; it is for "
                f"{', '.join(users)}"
            )

    # Flags that contradict each other, and what only the method itself can tell.
    for flag in ("nodes_per_round", "parallel"):
        value = getattr(config, flag)
        if value > config.nodes:
            raise UserError(f"--{flag}={value} is more than --nodes={config.nodes}")
    if config.rates == "measured" and config.assign == "serpentine":
        raise UserError(
            "--rates=measured: nodes take turns, whatever they compute; say --assign=greedy, milp "
            "or proportional too"
        )
    if config.rates == "measured" and config.assign == "segments":
        raise UserError(
            "--rates=measured: planned anew, segments would be other visits, and another number of "
            "them, than the run's turns, learning rates and programs were made for; say "
            "--assign=greedy, milp or proportional, which share out the same visits"
        )
    if config.parallel > 1:
        _check_parallel(config)
    schedule.interruptions(config)
    schedule.epochs_of(config, 0)
    stops.check(config)
    privacy.check(config, algorithm)
    algorithm.check(config)


def _check_parallel(config: RunConfig) -> None:
    """Nodes side by side leave no room for what concerns one node at a time."""
    flag = f"--parallel={config.parallel}"
    if config.mode == "peer_to_peer":
        raise UserError(f"{flag}: the server averages the nodes; leave --mode=client_server")
    if config.interrupt or config.fault_rate:
        raise UserError(f"{flag}: an idle node can take over for one node; leave --interrupt out")
    if config.assign != "serpentine":
        raise UserError(f"{flag}: nodes side by side take turns; leave --assign=serpentine")
    if config.carry_optimizer_state:
        raise UserError(f"{flag}: side by side there is no one state to carry on")


def check_interruptions(job: Job) -> None:
    """Refuses interruptions of visits that there are not, and those that nobody can take over.

    Raises:
      UserError: there is one.
    """
    named = schedule.interruptions(job.config)
    if not named:
        return
    last_turn = outline(job).turns - 1
    for turn in named:
        if turn > last_turn:
            raise UserError(
                f"--interrupt={job.config.interrupt}: there is no visit {turn}; the last is "
                f"{last_turn}"
            )


def check_pool(job: Job) -> None:
    """Refuses flags by which nobody would be there, or that name what there is not.

    Raises:
      UserError: there is one.
    """
    if job.plan.refused or job.config.leave or job.config.join:
        everybody = job.plan._replace(
            refused={}, config=dataclasses.replace(job.config, leave="", join="")
        )
        pool.check(job.plan, base.outline(job.algorithm, everybody).turns)


def hop_of(job: Job) -> Hop | None:
    """What hops cost, where each next node is chosen among neighbours by that."""
    if job.config.assign != "greedy" or not neighbours.is_graph(job.config):
        return None
    sizes = job.task.sizes(job)
    return Hop(job.fleet, bytes_of(sizes.full, job.layer_names, job.columns))


def planned(job: Job) -> list[Round]:
    """All rounds of the run, in order, where nothing fails but what the flags ask for."""
    return base.planned_rounds(job.algorithm, job.plan)


def outline(job: Job, done: int = 0) -> Outline:
    """What the run is as planned, without all its rounds; `done` of them are finished."""
    return base.outline(job.algorithm, job.plan, done)


def exchange_of(job: Job, sizes: Sizes | None = None) -> Exchange:
    """What the traffic of the job's method depends on.

    Args:
      job: of the run.
      sizes: bytes of layers and optimizer states; None: as the task counts them.
    """
    companions = job.algorithm.companions
    if sizes is None:
        sizes = job.task.sizes(job)
    sizes = with_companions(sizes, job.layer_names, companions, job.columns)
    if job.config.carry_optimizer_state:
        companions = (*companions, ledger.OPTIMIZER)
    names = job.model.layer_names
    beside = job.layer_names[len(names) :]
    read = {layer: tuple(others) for layer, others in job.task.reads(job).items()}
    return Exchange(job.config, sizes, job.chain, names, beside, companions, read, job.columns)


def batch_messages(job: Job) -> tuple[Message, ...]:
    """What every batch sends over the cuts."""
    chain = job.chain
    if len(chain) == 1:
        return ()

    # Below the lowest layer that trains nothing waits for a gradient.
    names = job.model.layer_names
    trained = set(job.plan.layer_names)
    lowest = 0
    for index, name in enumerate(names):
        if chains.is_trained(name, trained):
            lowest = index
            break
    gradients = not job.algorithm.local_losses
    dtype = compute_dtype(job.config).name
    sent = list(chains.messages(chain, job.model, dtype, gradients, lowest))

    # Weights that train at one place and are multiplied with at another too.
    for reader, others in job.task.reads(job).items():
        for owner, num_bytes in others.items():
            if owner in trained:
                at = chains.role_of(chain, names.index(owner))
                read_at = chains.role_of(chain, names.index(reader))
                sent += chains.shared(chain, owner, at, read_at, num_bytes)
    return tuple(sent)


def compute_dtype(config: RunConfig) -> np.dtype:
    """Of activations and of weights while they are computed with."""
    if config.compute_dtype != "auto":
        return jnp.dtype(config.compute_dtype)
    if jax.default_backend() == "cpu":
        return jnp.dtype("float32")
    return jnp.dtype("bfloat16")


def planned_transfers(
    job: Job, sizes: Sizes | None = None
) -> Iterator[tuple[Round, list[Transfer]]]:
    """What each planned round sends, where nothing is lost: by the functions that fill a ledger.

    Args:
      job: of the run.
      sizes: see `exchange_of`.
    """
    exchange = exchange_of(job, sizes)
    traffic = job.algorithm.traffic
    network = ledger.start(items(job))
    for visits in planned(job):
        transfers: list[Transfer] = []
        for visit in visits:
            network, delivered = traffic.deliveries(exchange, network, visit)
            transfers += delivered
        network, returned = traffic.commit(exchange, network, visits, visits)
        transfers += returned
        yield visits, transfers


def items(job: Job) -> tuple[str, ...]:
    """All that may travel at the start: layers, and the method's companions of each."""
    names = job.layer_names
    beside = []
    for kind in job.algorithm.companions:
        for name in names:
            beside.append(ledger.companion(name, kind))
    return (*columns.all_parts(job.columns, names), *beside)


def bytes_of(items: Mapping[str, int], layers: Sequence[str], cut: Columns) -> int:
    """The bytes of layers, all parts of each."""
    return sum(items[item] for item in columns.all_parts(cut, layers))


def with_companions(
    sizes: Sizes, names: Sequence[str], kinds: Sequence[str], cut: Columns = WHOLE
) -> Sizes:
    """Bytes of layers, and of companions that are as large as their layers in full precision.

    Args:
      sizes: bytes of layers and optimizer states.
      names: of the layers.
      kinds: of companions that each layer has.
      cut: how adapters are.
    """
    beside = {}
    for kind in kinds:
        for name in names:
            item = ledger.companion(name, kind)
            beside[item] = bytes_of(sizes.full, (name,), cut)
    return Sizes({**sizes.full, **beside}, {**sizes.frozen, **beside})


def make_rule(config: RunConfig) -> optax.GradientTransformation:
    """The update rule of the configuration."""
    return update_rule(config.optimizer, momentum=config.momentum, weight_decay=config.weight_decay)


def distillation_of(job: Job) -> Distillation | None:
    """How visits distill; None where they do not."""
    if not job.distilled:
        return None
    return Distillation(job.config.distill_temperature, job.config.distill_weight)


def state_like(
    job: Job, layers_with_state: Sequence[str], nodes: Sequence[int] = ()
) -> tuple[Params, OptimizerStates, PyTree, dict[int, PyTree]]:
    """The shapes of a state's arrays, `(params, states, memory, nodes' memories)`.

    Args:
      job: of the run.
      layers_with_state: which layers have optimizer states.
      nodes: which nodes remember something.
    """
    client = job.algorithm.client(job.config)

    def make(params: Params) -> tuple[Params, OptimizerStates, PyTree, dict[int, PyTree]]:
        states = init_states(make_rule(job.config), params, job.layer_names)
        memory = job.algorithm.memory(job.config, params)
        remembered = {}
        if client:
            remembered = {node: client.memory(params) for node in nodes}
        return params, select(states, layers_with_state), memory, remembered

    return jax.eval_shape(make, job.task.like(job))
