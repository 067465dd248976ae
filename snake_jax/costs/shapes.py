"""Shapes of a model and of all that a step takes, for formulas and compilers: no weights are made.

Of the costs this module alone knows how the arguments of a step lie: layers by name where the model
is one of images, blocks in stacks where it is one of language.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from snake_jax.models import layered, lora
from snake_jax.models.language import LanguageModel
from snake_jax.models.layered import LayeredModel
from snake_jax.params import LayerNames, Params, PyTree, select, without
from snake_jax.training import adapter_columns, quantization, stack
from snake_jax.training.image_step import Batches, Examples, LocalStep, local_epoch
from snake_jax.training.optimizers import init_states
from snake_jax.training.text_step import (
    ADAPTERS,
    ENDS,
    FrozenModel,
    LanguageStep,
    TextBatch,
    block_roles,
    own_dtype,
    own_items,
    train_step,
)

Model = LayeredModel | LanguageModel
Step = LocalStep | LanguageStep


class BatchShape(NamedTuple):
    """What a step takes at once.

    Attributes:
      size: images, or rows of text.
      length: tokens in a row; 0: images.
      packed: whether a row of text holds several texts.
    """

    size: int
    length: int = 0
    packed: bool = False


class StepProgram(NamedTuple):
    """A step as a program that is to be compiled.

    Attributes:
      function: of the arguments; the first two, what trains and its optimizer states, are donated.
      arguments: their shapes.
      aimed: sets in arrays of these shapes the numbers that say what trains and for how long.
      mesh: that the arguments lie over; None: one device.
      work: see `compiling.options`.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    aimed: Callable[[tuple[Any, ...]], tuple[Any, ...]]
    mesh: Mesh | None = None
    work: str = ""


@functools.lru_cache(maxsize=8)
def model_shapes(model: Model) -> Params:
    """Shapes of all layers."""
    if isinstance(model, LayeredModel):
        return layered.shapes(model)
    return jax.eval_shape(model.init, jax.random.key(0))


@functools.lru_cache(maxsize=8)
def adapter_shapes(model: LanguageModel, adapters: lora.Lora) -> PyTree:
    """Shapes of the adapters of one block; all blocks are alike."""
    block = _block_shapes(model)
    return jax.eval_shape(lambda: lora.init(jax.random.key(0), block, adapters))


def _block_shapes(model: LanguageModel) -> PyTree:
    """Shapes of a block; all are alike."""
    first, *_ = own_items(model, False)
    return model_shapes(model)[first]


def trainable_shapes(model: Model, adapters: lora.Lora | None = None) -> Params:
    """Shapes of all that may train: the layers, or adapters in the place of the blocks.

    Args:
      model: the network.
      adapters: which; None where whole layers train.
    """
    shapes = model_shapes(model)
    if adapters is None:
        return shapes
    assert isinstance(model, LanguageModel), "only language models have adapters"
    trainable = select(shapes, ENDS)
    of_block = adapter_shapes(model, adapters)
    for name in own_items(model, True):
        trainable[name] = of_block
    return trainable


def held_shapes(model: Model, adapters: lora.Lora | None = None) -> Params:
    """Shapes of all that a node holds through a visit: the model, and adapters beside it."""
    return model_shapes(model) | trainable_shapes(model, adapters)


def stored_dtype(name: str, frozen_dtype: str) -> str:
    """How a node stores an item while it does not train: adapters are not quantized.

    Args:
      name: of a layer, or of a block's adapters or some columns of theirs.
      frozen_dtype: see `quantization.freeze`.
    """
    return own_dtype(frozen_dtype, ADAPTERS in name)


def block_parts(
    model: LanguageModel, adapters: lora.Lora | None, rank: int = 0
) -> tuple[PyTree, PyTree]:
    """Shapes of what of a block does not train, `{}` where all of it does, and of what does.

    Args:
      model: the network.
      adapters: that train in the place of blocks; None: whole layers do.
      rank: how many columns of them the node trains; 0: all.
    """
    block = _block_shapes(model)
    if adapters is None:
        return {}, block
    own, read = trained_columns(adapter_shapes(model, adapters), rank)
    if read is None:
        return block, own
    return stack.Beside(block, read), own


def trained_columns(adapters: PyTree, rank: int) -> tuple[PyTree, PyTree]:
    """Shapes of a block's adapters as those of the columns that a node of a rank trains, and of
    those that it reads only; rank 0: it trains all, and there are no others (None).
    """
    most = adapter_columns.most(adapters)
    if not rank or rank >= most:
        return adapters, None

    def cut(start: int, stop: int) -> PyTree:
        return jax.eval_shape(lambda tree: adapter_columns.cut(tree, start, stop), adapters)

    return cut(0, rank), cut(rank, most)


def block_function(model: LanguageModel, adapted: bool) -> Callable[..., jax.Array]:
    """`(base, own, values, context, key, place) -> values`: a block as a step computes it.

    Update rule, storage and arithmetic have no bearing on its products.

    Args:
      model: the network.
      adapted: whether its own part are adapters.
    """
    step = LanguageStep(model, optax.identity(), 0.0, adapted=adapted)
    return step.block.apply


def recompute_of(step: Step) -> str:
    """What a step's backward pass keeps of a block, see `stack.run`; steps on images keep all."""
    return step.recompute if isinstance(step, LanguageStep) else "none"


def first_alike(step: Step, trained: Sequence[str]) -> LayerNames:
    """What trains, the first blocks in the place of others: they are alike."""
    if not isinstance(step, LanguageStep):
        return tuple(trained)
    # So many blocks from the bottom hold and compute what any other so many would.
    items = own_items(step.model, step.adapted)
    count = len(_among(items, trained))
    return (*items[:count], *_among(ENDS, trained))


def program_key(step: Step, trained: Sequence[str]) -> LayerNames:
    """What trains, up to what is one program: which of the alike blocks it is, is an argument."""
    if not isinstance(step, LanguageStep):
        return tuple(trained)
    items = own_items(step.model, step.adapted)
    count = len(_among(items, trained))
    return (*block_roles(count), *_among(ENDS, trained))


def _among(names: Sequence[str], trained: Sequence[str]) -> list[str]:
    """Those of the names that train, in their own order."""
    return [name for name in names if name in trained]


def step_program(
    step: Step,
    trained: Sequence[str],
    batch: BatchShape,
    frozen_dtype: str,
    adapters: lora.Lora | None = None,
    rank: int = 0,
) -> StepProgram:
    """One step that trains these layers.

    Args:
      step: the local step.
      trained: what trains, in the model's order.
      batch: what it trains on.
      frozen_dtype: of what does not train, see `quantization.freeze`.
      adapters: that train in the place of blocks; None: whole layers do.
      rank: how many columns of the adapters the node trains; 0: all.
    """
    if isinstance(step, LanguageStep):
        return _of_text(step, trained, batch, frozen_dtype, adapters, rank)
    return _of_images(step, tuple(trained), batch.size, frozen_dtype)


def _of_images(
    step: LocalStep, trained: LayerNames, batch_size: int, frozen_dtype: str
) -> StepProgram:
    """`image_step.local_epoch` over a single batch."""
    # What a node holds: the teacher is the trained layers as received, frozen ones are shared.
    params = model_shapes(step.model)
    trainable = select(params, trained)
    states = state_shapes(step.rule, trainable, step.layer_names)
    frozen = {}
    for name, subtree in without(params, trained).items():
        frozen[name] = _frozen(subtree, frozen_dtype)
    received = trainable if step.needs_received else {}

    # What it trains on: B images `[H, W, C]` with labels, picked in one batch of B.
    images = _shape((batch_size, *step.model.input_shape), jnp.uint8)
    labels = _shape((batch_size,), jnp.int32)
    examples = Examples(images, labels)
    index = _shape((1, batch_size), jnp.int32)
    weight = _shape((1, batch_size), jnp.float32)
    steps = _shape((), jnp.int32)
    batches = Batches(index, weight, steps)
    rate = _shape((), jnp.float32)
    arguments = trainable, states, frozen, received, examples, batches, _key_shape(), rate

    def aimed(arrays: tuple[Any, ...]) -> tuple[Any, ...]:
        *state, examples, batches, key, rate = arrays
        one_step = batches._replace(steps=jnp.int32(1))
        return *state, examples, one_step, key, rate

    return StepProgram(local_epoch(step, trained), arguments, aimed, work=step.work)


def _of_text(
    step: LanguageStep,
    trained: Sequence[str],
    batch: BatchShape,
    frozen_dtype: str,
    adapters: lora.Lora | None,
    rank: int,
) -> StepProgram:
    """`text_step.train_step` of one part."""
    shapes = model_shapes(step.model)
    base, every = block_parts(step.model, adapters)
    own, read = trained_columns(every, rank)
    items = own_items(step.model, step.adapted)
    blocks = _among(items, trained)

    # What trains: the blocks by their roles, and ends by name.
    trainable = dict.fromkeys(block_roles(len(blocks)), own)
    for name in _among(ENDS, trained):
        trainable[name] = shapes[name]
    states = state_shapes(step.rule, trainable)

    # What does not: bases of all blocks and own parts of the others, each as one stack.
    bases = _stacked(_frozen(base, frozen_dtype), len(items))
    own_stored = _frozen(every, own_dtype(frozen_dtype, step.adapted))
    others = _stacked(own_stored, len(items) - len(blocks))
    first = _shape((), jnp.int32)
    columns = None if read is None else _stacked(read, len(blocks))
    ends = {}
    for name in ENDS:
        if name not in trained:
            ends[name] = _frozen(shapes[name], frozen_dtype)
    frozen = FrozenModel(stack.FrozenBlocks(bases, others, first, columns), ends)

    # A part is a batch of its own: one of B rows of T tokens.
    ids = _shape((1, batch.size, batch.length), jnp.int32)
    weight = _shape((1, batch.size, batch.length), jnp.float32)
    segments = ids if batch.packed else None
    rows = TextBatch(ids, ids, weight, ids, segments)
    received = trainable if step.needs_received else {}
    rate = _shape((), jnp.float32)
    arguments = trainable, states, frozen, received, rows, _key_shape(), rate

    def aimed(arrays: tuple[Any, ...]) -> tuple[Any, ...]:
        trainable, states, frozen, *others = arrays
        first = jnp.int32(items.index(blocks[0]))
        stacks = frozen.blocks._replace(first=first)
        return trainable, states, frozen._replace(blocks=stacks), *others

    return StepProgram(train_step(step, tuple(trainable)), arguments, aimed, step.mesh, step.work)


def state_shapes(
    rule: optax.GradientTransformation, trainable: Params, order: Sequence[str] | None = None
) -> PyTree:
    """Shapes of the optimizer states of layers.

    Args:
      rule: their update rule.
      trainable: shapes of the layers.
      order: names of all layers of the model; None: those that train are all.
    """
    names = tuple(trainable if order is None else order)

    def states(params: Params) -> PyTree:
        return init_states(rule, params, names)

    return jax.eval_shape(states, trainable)


def zeros(program: StepProgram) -> tuple[Any, ...]:
    """Arguments to run a step with, on the default device.

    All numbers are zero but those that say what trains: others do not change its time.
    """

    def zero(leaf: Any) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        return jnp.zeros(leaf.shape, leaf.dtype)

    # All at once: one program makes them on the device, none lies on the host.
    def make() -> tuple[Any, ...]:
        return jax.tree.map(zero, program.arguments)

    return program.aimed(jax.jit(make)())


def _frozen(subtree: PyTree, dtype: str) -> PyTree:
    """Shapes of a layer as it is stored frozen."""
    freeze = functools.partial(quantization.freeze, dtype=dtype)
    return jax.eval_shape(freeze, subtree)


def _stacked(subtree: PyTree, count: int) -> PyTree:
    """Shapes of so many layers alike in one stack."""

    def stacked(leaf: Any) -> Any:
        return _shape((count, *leaf.shape), leaf.dtype)

    return jax.tree.map(stacked, subtree)


def _key_shape() -> Any:
    return jax.eval_shape(jax.random.key, 0)


def _shape(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)
