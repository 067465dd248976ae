"""What SCCT takes of device, edge and cloud, by shapes: no weight is read or made.

`snake-jax profile --algorithm=scct`. Memory is what a place holds through an iteration: frozen
weights, what trains with its gradients and optimizer states, and what the small model's layers keep
of their inputs for the backward pass. What happens within a layer, and within the large model, is
the compiler's and not counted.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from snake_jax.costs import memory
from snake_jax.costs.layers import products
from snake_jax.models import serial
from snake_jax.models.encoder import Encoder, Texts
from snake_jax.models.language import Hidden, LanguageModel
from snake_jax.models.span import Spans
from snake_jax.params import Params, PyTree, num_bytes, num_params, select
from snake_jax.scct.system import cloud, small_model
from snake_jax.scct.system.cloud import Answers, CloudBatch, Large
from snake_jax.scct.system.small_model import NamedRule

_NUMBER_BYTES = 4


class SystemWork(NamedTuple):
    """What is profiled.

    Attributes:
      encoder: the small model.
      model: the large one.
      nodes: devices.
      batch: examples of a device in an iteration.
      length: tokens of an input.
      answer: tokens of an answer.
      adapter_width: of serial adapters.
      optimizer: of both.
    """

    encoder: Encoder
    model: LanguageModel
    nodes: int
    batch: int
    length: int
    answer: int
    adapter_width: int
    optimizer: str


class PlaceRow(NamedTuple):
    """A place, with a split point.

    Attributes:
      split: blocks on the device; 0 in the cloud, which they do not concern.
      place: device, edge (all devices' layers) or cloud.
      params: that it holds.
      trained: that train.
      state_bytes: weights, gradients and optimizer states.
      kept_bytes: inputs of layers, for the backward pass.
      flops: of an iteration, both passes.
      sent_bytes: that it sends in an iteration, up and down.
    """

    split: int
    place: str
    params: int
    trained: int
    state_bytes: int
    kept_bytes: int
    flops: int
    sent_bytes: int


def rows(work: SystemWork) -> list[PlaceRow]:
    """Device and edge for every split point, then the cloud."""
    params = jax.eval_shape(work.encoder.init, jax.random.key(0))
    block = _block_flops(work, params)
    found = []
    for split in range(1, work.encoder.num_blocks + 1):
        found += [_device(work, params, split, block), _edge(work, params, split, block)]
    return [*found, _cloud(work)]


def _device(work: SystemWork, params: Params, split: int, block: int) -> PlaceRow:
    """One device: embedding and its blocks."""
    own = select(params, work.encoder.layer_names[: split + 1])
    state = memory.trained_bytes(own, NamedRule(work.optimizer).make())
    ids = work.batch * work.length * _NUMBER_BYTES
    kept = ids + split * _values_bytes(work)
    sent = _values_bytes(work) + _label_bytes(work)
    count = num_params(own)
    return PlaceRow(split, "device", count, count, state.total, kept, split * block, sent)


def _edge(work: SystemWork, params: Params, split: int, block: int) -> PlaceRow:
    """The edge: the other blocks, of every device."""
    own = select(params, work.encoder.layer_names[split + 1 :])
    blocks = work.encoder.num_blocks - split
    state = memory.trained_bytes(own, NamedRule(work.optimizer).make())
    kept = blocks * _values_bytes(work)
    # m and labels go on to the cloud, the gradient of v back to the device.
    sent = 2 * _values_bytes(work) + _label_bytes(work)
    count = work.nodes * num_params(own)
    return PlaceRow(
        split,
        "edge",
        count,
        count,
        work.nodes * state.total,
        work.nodes * kept,
        work.nodes * blocks * block,
        work.nodes * sent,
    )


def _cloud(work: SystemWork) -> PlaceRow:
    """The cloud: the frozen large model, its adapters, the projection."""
    model, hidden = work.model, work.model.architecture.hidden_size
    base = jax.eval_shape(model.init, jax.random.key(0))
    names = model.layer_names[1:-1]

    def fresh(key: jax.Array) -> Params:
        kernel = jnp.zeros((work.encoder.width, hidden))
        projection = {"kernel": kernel, "bias": jnp.zeros(hidden)}
        adapters = serial.init(key, names, hidden, work.adapter_width)
        return {**adapters, cloud.PROJECTION: projection}

    trained = jax.eval_shape(fresh, jax.random.key(0))
    state = memory.trained_bytes(trained, NamedRule(work.optimizer).make())
    row_count = work.nodes * work.batch
    m = jax.ShapeDtypeStruct((row_count, work.length, work.encoder.width), jnp.float32)
    batch = jax.eval_shape(functools.partial(_batch, work, row_count))
    step = functools.partial(cloud.gradients, Large(model, "generate"), work.nodes)
    return PlaceRow(
        split=0,
        place="cloud",
        params=num_params(base) + num_params(trained),
        trained=num_params(trained),
        state_bytes=num_bytes(base) + state.total,
        kept_bytes=work.nodes * _values_bytes(work),
        flops=products(step, base, trained, m, batch),
        sent_bytes=work.nodes * _values_bytes(work),
    )


def _block_flops(work: SystemWork, params: Params) -> int:
    """Of one device's batch through one block: forward, then forward again and back."""
    shape = (work.batch, work.length)

    def embedded(weights: PyTree) -> Hidden:
        texts = Texts(jnp.zeros(shape, jnp.int32), jnp.zeros(shape[0], jnp.int32))
        return work.encoder.embed(weights, texts)

    hidden = jax.eval_shape(embedded, params["embed"])
    weights = params[work.encoder.layer_names[1]]
    forward = functools.partial(small_model.block, work.encoder)
    backward = functools.partial(small_model.block_gradient, work.encoder)
    return products(forward, weights, hidden) + products(backward, weights, hidden, hidden.values)


def _batch(work: SystemWork, row_count: int) -> CloudBatch:
    """What the cloud's loss needs, all zeros: its shapes are wanted."""
    numbers = jnp.zeros(row_count, jnp.int32)
    ids = jnp.zeros((row_count, work.answer), jnp.int32)
    answers = Answers(inputs=ids, targets=ids, weights=jnp.zeros(ids.shape))
    spans = Spans(numbers, numbers, jnp.zeros(row_count))
    return CloudBatch(numbers, answers, jnp.zeros((row_count, work.length), bool), spans)


def _values_bytes(work: SystemWork) -> int:
    """A device's batch between two layers, or its gradient."""
    return work.batch * work.length * work.encoder.width * _NUMBER_BYTES


def _label_bytes(work: SystemWork) -> int:
    return work.batch * work.answer * _NUMBER_BYTES
