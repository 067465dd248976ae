"""A language model as the segments that a cut makes of it, see `snake_jax.training.split`.

All blocks of a cut model train, or the adapters of all do over bases that never train: so the role
of block j is `block_j`. The embedding and the head train, or are frozen, each by itself.
"""

import functools

import jax
import jax.numpy as jnp

from snake_jax.models.language import LanguageModel
from snake_jax.params import Params
from snake_jax.training import stack
from snake_jax.training.split import Cuttable
from snake_jax.training.text_loss import token_loss
from snake_jax.training.text_step import (
    ENDS,
    FrozenModel,
    LanguageStep,
    TextBatch,
    embedded,
    finished,
    table_end,
)


def text_cuttable(step: LanguageStep) -> Cuttable:
    """The layers of a step's model, some of them at a time."""
    return Cuttable(
        layers=len(step.model.layer_names),
        trained=functools.partial(_of_segment, step.model),
        run=functools.partial(_run_segment, step),
        loss=functools.partial(_loss_of_segment, step),
        read_by_loss=(table_end(step.model),),
    )


def _blocks_of(model: LanguageModel, start: int, stop: int) -> range:
    """The numbers of the blocks among layers `start` to `stop`; layer 0 is the embedding."""
    return range(max(start, 1) - 1, min(stop, model.num_blocks + 1) - 1)


def _of_segment(model: LanguageModel, trainable: Params, start: int, stop: int) -> Params:
    """See `Cuttable.trained`."""
    roles = [f"block_{number}" for number in _blocks_of(model, start, stop)]
    if start == 0:
        roles.append("embed")
    if stop == len(model.layer_names):
        roles.append("head")
    return {role: trainable[role] for role in roles if role in trainable}


def _run_segment(
    step: LanguageStep,
    own: Params,
    frozen: FrozenModel,
    rows: TextBatch,
    key: jax.Array,
    x: jax.Array | None,
    start: int,
    stop: int,
    to_input: bool,
) -> jax.Array:
    """See `Cuttable.run`: `[B, T, D]`, or what the output matrix multiplies, `[B, T, E]`."""
    ends = frozen.ends | {name: own[name] for name in ENDS if name in own}
    values = embedded(step, ends, rows) if x is None else x

    # The segment's blocks all train, so they are a stack of their own without a frozen block. Only
    # the base, where there is one, is that of all blocks.
    blocks = _blocks_of(step.model, start, stop)
    if blocks:
        shared_block = step.block._replace(blocks=len(blocks), offset=blocks.start)
        of_blocks = [own[f"block_{number}"] for number in blocks]
        values = stack.run(
            shared_block,
            stack.stack_trees(of_blocks),
            frozen.blocks._replace(first=jnp.int32(0)),
            values,
            (rows.positions, rows.segments),
            key if step.model.stochastic else None,
            recompute=step.recompute,
            input_gradient=to_input or "embed" in own,
        )
    if stop == len(step.model.layer_names):
        values = finished(step, ends, rows, values)
    return values


def _loss_of_segment(
    step: LanguageStep,
    read: Params,
    frozen: FrozenModel,
    rows: TextBatch,
    x: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """See `Cuttable.loss`."""
    return token_loss(step, x, rows, frozen.ends | read, bool(read))
