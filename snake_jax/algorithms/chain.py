"""Where the layers of a visit lie: segments of the model on nodes, server and cloud.

A local method's chain is one segment on the visiting node. Split methods cut the model: every batch
then sends an activation over each boundary and, unless both sides have losses of their own, a
gradient back. FLOPs by place, what a place holds, and the messages follow from the chain alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import jax.numpy as jnp

from snake_jax.algorithms.visits import Visit
from snake_jax.nodes import places
from snake_jax.nodes.ledger import Transfer
from snake_jax.nodes.places import Kind, Place
from snake_jax.params import LayerNames

LABEL_BYTES = 4
SHARED = "shared"  # weights that two places multiply with, and their gradient, once a step
OF_BATCHES = ("activations", "gradients", "labels", SHARED)  # why a message of a batch is sent


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
      bytes: of one image or token; of one step where weights are shared.
      why: activations, gradients, labels or SHARED.
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


def owned(chain: Chain, names: Sequence[str], items: Sequence[str], role: Role) -> tuple[str, ...]:
    """Of items those that lie on a role, in their order.

    Args:
      chain: of the visit.
      names: the model's order.
      items: layers, and what trains beside layers: `block_05.lora` lies where `block_05` does; what
        no layer of the model stands before (a head of a local loss) is the visiting node's.
      role: which.
    """
    layers = held(chain, names, role)
    found = []
    for item in items:
        layer, _, _ = item.partition(".")
        is_nodes_own = layer not in names and role == ON_NODE
        if layer in layers or is_nodes_own:
            found.append(item)
    return tuple(found)


def is_trained(layer: str, items: Iterable[str]) -> bool:
    """Whether a layer, or what lies beside it, is among the items that train."""
    return any(item.partition(".")[0] == layer for item in items)


def role_of(chain: Chain, index: int) -> Role:
    """Where the layer of this index lies."""
    return next(segment.role for segment in chain if segment.start <= index < segment.stop)


def roles(chain: Chain) -> tuple[Role, ...]:
    """Each role once, in the order of the forward pass."""
    return tuple(dict.fromkeys(segment.role for segment in chain))


class Sized(Protocol):
    """A model whose layers' outputs have known sizes."""

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The order."""

    def output_sizes(self) -> tuple[int, ...]:
        """Numbers in each layer's output, of an image or of a token."""


def messages(
    chain: Chain, model: Sized, compute_dtype: str, gradients: bool, lowest: int = 0
) -> tuple[Message, ...]:
    """What a batch sends, in the order of sending; nothing for a chain of one segment.

    Args:
      chain: of the visit.
      model: whose outputs cross the boundaries.
      compute_dtype: of activations and gradients.
      gradients: whether gradients come back.
      lowest: index of the lowest layer that trains: none comes back below it.
    """
    if len(chain) == 1:
        return ()

    # Up the chain goes the output of the last layer below each boundary.
    itemsize = jnp.dtype(compute_dtype).itemsize
    sizes = model.output_sizes()
    sent = []
    back = []
    for low, high in pairwise(chain):
        top = low.stop - 1
        name = model.layer_names[top]
        num_bytes = sizes[top] * itemsize
        sent.append(Message(low.role, high.role, name, num_bytes, "activations"))
        # A gradient is as large as the output that it is for, and goes the other way.
        if gradients and top >= lowest:
            back.append(Message(high.role, low.role, name, num_bytes, "gradients"))

    # The loss is where the last segment is, and labels are where the data is.
    for source, destination in pairwise(_route(chain, ON_NODE, chain[-1].role)):
        sent.append(Message(source, destination, "labels", LABEL_BYTES, "labels"))
    return (*sent, *reversed(back))


def shared(
    chain: Chain, item: str, owner: Role, reader: Role, num_bytes: int
) -> tuple[Message, ...]:
    """What a step sends where weights that train at one place are multiplied with at another too.

    So an output matrix that is the embedding's, which lies elsewhere: its gradient goes to the
    embedding's place, and the new matrix back.
    """
    if owner == reader:
        return ()
    sent = []
    for ends in ((reader, owner), (owner, reader)):
        for source, destination in pairwise(_route(chain, *ends)):
            sent.append(Message(source, destination, item, num_bytes, SHARED))
    return tuple(sent)


def _route(chain: Chain, source: Role, destination: Role) -> tuple[Role, ...]:
    """The places that a message passes; between a node and the cloud lies the server.

    It does where it has a part of the chain.
    """
    if source == destination:
        return (source,)
    ends = (source, destination)
    if ON_CLOUD in ends and ON_SERVER not in ends and ON_SERVER in roles(chain):
        return (source, ON_SERVER, destination)
    return ends


def is_beyond_server(message: Message) -> bool:
    """Whether it goes between server and cloud."""
    return {message.source, message.destination} == {ON_SERVER, ON_CLOUD}


def round_trips(sent: Sequence[Message]) -> int:
    """How often a batch makes a party wait for another's answer."""
    return sum(message.why == "gradients" for message in sent)


def transfers(
    sent: Sequence[Message], visit: Visit, examples: int, steps: int = 0
) -> list[Transfer]:
    """The ledger's rows for a visit's messages, all batches together.

    Args:
      sent: by a batch.
      visit: whose.
      examples: images or tokens that it trained on.
      steps: that it made.
    """
    if not examples:
        return []
    rows = []
    for message in sent:
        source = place_of(message.source, visit)
        destination = place_of(message.destination, visit)
        total = message.bytes * (steps if message.why == SHARED else examples)
        rows.append(Transfer(visit.turn, source, destination, (message.item,), total, message.why))
    return rows
