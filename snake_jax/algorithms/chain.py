"""Where the layers of a visit lie: segments of the model on the visiting node, on the server, on
other nodes.

A local method's chain is one segment on the visiting node. Split methods cut the model: every batch
then sends an activation over each boundary and, unless both sides have losses of their own, a
gradient back. FLOPs by place, what a place holds, and the messages follow from the chain alone.
"""

import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax.algorithms.visits import Visit
from snake_jax.models.layered import LayeredModel
from snake_jax.nodes.ledger import SERVER, Transfer, place

LABEL_BYTES = 4
ON_NODE, ON_SERVER = 0, -1  # roles; role j > 0: the j-th other node of the visit


class Segment(NamedTuple):
    """Layers `start` to `stop` (exclusive) of the order, on the place that a visit's role stands
    for.
    """

    role: int
    start: int
    stop: int


Chain = tuple[Segment, ...]  # in the order of the forward pass; the first is with the data


class Message(NamedTuple):
    """What a batch sends: from role to role, which layer's output (or labels), bytes for each
    example, and why.
    """

    source: int
    destination: int
    item: str
    bytes: int
    why: str


def place_of(role: int, visit: Visit) -> str:
    """The name of a role's place in the ledger."""
    return SERVER if role == ON_SERVER else place((visit.node, *visit.others)[role])


def cuts(chain: Chain) -> tuple[int, ...]:
    """The indices of the layers before which the model is cut."""
    return tuple(segment.start for segment in chain[1:])


def held(chain: Chain, names: Sequence[str], role: int) -> tuple[str, ...]:
    """The layers that a role holds, in model order."""
    return tuple(
        name
        for segment in chain
        if segment.role == role
        for name in names[segment.start : segment.stop]
    )


def roles(chain: Chain) -> tuple[int, ...]:
    """Each role once, in the order of the forward pass."""
    return tuple(dict.fromkeys(segment.role for segment in chain))


def messages(
    chain: Chain, model: LayeredModel, compute_dtype: str, gradients: bool
) -> tuple[Message, ...]:
    """What a batch sends, in the order of sending; nothing for a chain of one segment.

    Args:
      chain: of the visit.
      model: whose outputs cross the boundaries.
      compute_dtype: of activations and gradients.
      gradients: whether gradients come back.
    """
    if len(chain) == 1:
        return ()
    sizes = _output_bytes(model, compute_dtype)
    names = model.layer_names
    forward = [
        Message(low.role, high.role, names[low.stop - 1], sizes[low.stop - 1], "activations")
        for low, high in pairwise(chain)
    ]
    labels = (
        [Message(ON_NODE, chain[-1].role, "labels", LABEL_BYTES, "labels")]
        if chain[-1].role != ON_NODE
        else []
    )
    back = [
        m._replace(source=m.destination, destination=m.source, why="gradients")
        for m in reversed(forward)
    ]
    return (*forward, *labels, *(back if gradients else ()))


def round_trips(sent: Sequence[Message]) -> int:
    """How often a batch makes a party wait for another's answer."""
    return sum(message.why == "gradients" for message in sent)


def transfers(sent: Sequence[Message], visit: Visit, examples: int) -> list[Transfer]:
    """The ledger's rows for a visit's messages, all batches together."""
    return [
        Transfer(
            visit.turn,
            place_of(message.source, visit),
            place_of(message.destination, visit),
            (message.item,),
            message.bytes * examples,
            message.why,
        )
        for message in sent
        if examples
    ]


@functools.lru_cache(maxsize=8)
def _output_bytes(model: LayeredModel, compute_dtype: str) -> list[int]:
    """Bytes of each layer's output for one example."""
    x = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.dtype(compute_dtype))
    params = jax.eval_shape(model.init, jax.random.key(0))
    found = []
    for index in range(len(model.layers)):
        x = jax.eval_shape(lambda p, x, i=index: model.apply(p, x, i, i + 1), params, x)
        found.append(int(np.prod(x.shape)) * jnp.dtype(compute_dtype).itemsize)
    return found
