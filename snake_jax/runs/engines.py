"""A run's engine: in this process, or of processes that build their nodes from what they are told.

A process that plays nodes is told the configuration, and reads model and data from it as this one
did. Where that does not say all, as for arrays and methods of one's own, it is sent the job and its
own nodes' part of the data, once.
"""

import functools
from collections.abc import Callable, Sequence

import jax

from snake_jax.algorithms import pool, stand_ins
from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.algorithms.schedule import Plan
from snake_jax.algorithms.visits import Visit
from snake_jax.config import RunConfig
from snake_jax.costs.shapes import stored_dtype
from snake_jax.engines import choice as choices
from snake_jax.engines.choice import HERE, Choice
from snake_jax.engines.contract import Engine
from snake_jax.nodes.columns import WHOLE
from snake_jax.params import PyTree
from snake_jax.runs import image_inputs, loop
from snake_jax.runs.job import Config, Data, Job, Model
from snake_jax.runs.setup import Setup
from snake_jax.training import quantization


def make_engine(setup: Setup[Config, Data, Model], choice: Choice = HERE) -> Engine:
    """What carries out this setup's visits.

    Args:
      setup: of the run.
      choice: where its nodes are.

    Raises:
      UserError: the engine cannot do that, or no cluster answers.
    """
    choices.check(choice, setup.config, setup.algorithm)
    if choice.name == choices.LOCAL:
        return loop.make_engine(setup)
    engine, config = choices.room(choice), setup.config
    sending = engine.Sending(
        peer_to_peer=config.mode == "peer_to_peer",
        cached=config.cached,
        states=config.carry_optimizer_state,
        remembers=setup.algorithm.client(config) is not None,
        stored=_storing(setup.job),
        columns=setup.job.columns,
    )
    scorer = loop.make_engine(_part(setup, (), True))
    count = len(scorer.nodes())
    build = functools.partial(_build, setup)
    stand_in = functools.partial(_stand_in, setup.plan)
    if choice.pool:
        room = choices.pooled_room()
        return room.PooledEngine(count, build, scorer, sending, choice, stand_in)
    return engine.RayEngine(count, build, scorer, sending, choice, stand_in)


def _stand_in(plan: Plan, visit: Visit) -> int | None:
    """Who would take a visit over if all that flags have there in its turn are there and idle."""
    there = pool.present(plan, frozenset(plan.refused), visit.turn)
    found = stand_ins.candidates(plan, there, visit)
    return found[0] if found else None


def _storing(job: Job[Config, Data, Model]) -> Callable[[str, PyTree], PyTree] | None:
    """What makes a layer's copy as nodes store it while it is frozen; None: layers are sent in full
    precision, as they are stored so, or as what is cut into columns is put together first.
    """
    frozen_dtype = job.config.frozen_dtype
    is_sent_whole = job.config.mode == "peer_to_peer" or job.columns != WHOLE
    if frozen_dtype == "float32" or is_sent_whole:
        return None
    freeze = jax.jit(quantization.freeze, static_argnames="dtype")

    def stored(name: str, subtree: PyTree) -> PyTree:
        return freeze(subtree, dtype=stored_dtype(name, frozen_dtype))

    return stored


def _build(setup: Setup[Config, Data, Model], nodes: Sequence[int]) -> Callable[[], Engine]:
    """What makes the engine of these nodes where it is called."""
    known = ALGORITHMS.get(setup.config.algorithm) is setup.algorithm
    named = getattr(setup.config, "dataset", "")
    if known and not named.startswith(image_inputs.ARRAYS):
        return functools.partial(_opened, setup.config, nodes)
    return functools.partial(loop.make_engine, _part(setup, nodes, False))


def _opened(config: RunConfig, nodes: Sequence[int]) -> Engine:
    """The engine of these nodes, whose data it opens itself."""
    return loop.make_engine(_part(loop.prepare(config), nodes, False))


def _part(
    setup: Setup[Config, Data, Model], nodes: Sequence[int], held_out: bool
) -> Setup[Config, Data, Model]:
    """The setup of these nodes alone, with or without what is scored."""
    return setup._replace(data=setup.task.part(setup.data, nodes, held_out))
