"""Where the layers of a visit lie: segments of the model on nodes, server and cloud.

A local method's chain is one segment on the visiting node. Split methods cut the model: every batch
then sends an activation over each boundary and, unless both sides have losses of their own, a
gradient back. FLOPs by place, what a place holds, and the messages follow from the chain alone.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp

from snake_jax.algorithms.visits import Visit
from snake_jax.models.layered import LayeredModel
from snake_jax.nodes import places
from snake_jax.nodes.ledger import Transfer
from snake_jax.nodes.places import Kind, Place
from snake_jax.params import LayerNames

LABEL_BYTES = 4
OF_BATCHES = ("activations", "gradients", "labels")  # why a message of a batch is sent


@dataclass(frozen=True)
class Role:
    """A place as a visit sees it, before it is known which node that is.

    Attributes:
      kind: of the place.
      index: among the visit's nodes: 0 is the visiting one, j the j-th of `Visit.others`. Of
        another kind of place, which of them.
    """

    kind: Kind
    index: int = 0


ON_NODE = Role("node")
ON_SERVER = Role("server")
ON_CLOUD = Role("cloud")


class Segment(NamedTuple):
    """Layers `start` to `stop` (exclusive) of the order, on the place of a role."""

    role: Role
    start: int
    stop: int


Chain = tuple[Segment, ...]  # in the order of the forward pass; the first is with the data


class Message(NamedTuple):
    """What a batch sends.

    Attributes:
      source: whence.
      destination: where to.
      item: the layer whose output it is, or for which a gradient; or labels.
      bytes: of one example.
      why: activations, gradients or labels.
    """

    source: Role
    destination: Role
    item: str
    bytes: int
    why: str


def place_of(role: Role, visit: Visit) -> Place:
    """The place that a role stands for in a visit."""
    if role.kind != "node":
        return Place(role.kind, role.index)
    nodes = (visit.node, *visit.others)
    return places.node(nodes[role.index])


def cuts(chain: Chain) -> tuple[int, ...]:
    """The indices of the layers before which the model is cut."""
    return tuple(segment.start for segment in chain[1:])


def held(chain: Chain, names: Sequence[str], role: Role) -> LayerNames:
    """The layers that a role holds, in model order."""
    found: list[str] = []
    for segment in chain:
        if segment.role == role:
            found.extend(names[segment.start : segment.stop])
    return tuple(found)


def roles(chain: Chain) -> tuple[Role, ...]:
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

    # Up the chain goes the output of the last layer below each boundary.
    sizes = _output_bytes(model, compute_dtype)
    sent = []
    for low, high in pairwise(chain):
        top = low.stop - 1
        name = model.layer_names[top]
        sent.append(Message(low.role, high.role, name, sizes[top], "activations"))
    forward = list(sent)

    # The loss is where the last segment is, and labels are where the data is. A node has no link to
    # the cloud but through the server, where that has a part too.
    last = chain[-1].role
    route = [ON_NODE]
    if last == ON_CLOUD and ON_SERVER in roles(chain):
        route.append(ON_SERVER)
    if last != ON_NODE:
        route.append(last)
    for source, destination in pairwise(route):
        sent.append(Message(source, destination, "labels", LABEL_BYTES, "labels"))

    # A gradient is as large as the output that it is for, and goes the other way.
    if gradients:
        for message in reversed(forward):
            source, destination = message.destination, message.source
            sent.append(Message(source, destination, message.item, message.bytes, "gradients"))
    return tuple(sent)


def is_beyond_server(message: Message) -> bool:
    """Whether it goes between server and cloud."""
    return {message.source, message.destination} == {ON_SERVER, ON_CLOUD}


def round_trips(sent: Sequence[Message]) -> int:
    """How often a batch makes a party wait for another's answer."""
    return sum(message.why == "gradients" for message in sent)


def transfers(sent: Sequence[Message], visit: Visit, examples: int) -> list[Transfer]:
    """The ledger's rows for a visit's messages, all batches together."""
    if not examples:
        return []
    rows = []
    for message in sent:
        source = place_of(message.source, visit)
        destination = place_of(message.destination, visit)
        total = message.bytes * examples
        rows.append(Transfer(visit.turn, source, destination, (message.item,), total, message.why))
    return rows


@functools.lru_cache(maxsize=8)
def _output_bytes(model: LayeredModel, compute_dtype: str) -> list[int]:
    """Bytes of each layer's output for one example."""
    dtype = jnp.dtype(compute_dtype)
    x = jax.ShapeDtypeStruct((1, *model.input_shape), dtype)
    params = jax.eval_shape(model.init, jax.random.key(0))
    found = []
    for index in range(len(model.layers)):
        layer = functools.partial(model.apply, start=index, stop=index + 1)
        x = jax.eval_shape(layer, params, x)
        found.append(math.prod(x.shape) * dtype.itemsize)
    return found
