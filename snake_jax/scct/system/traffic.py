"""What the batches of a round send over both links, and what each place computes.

Over the radio a device sends its smashed data v and labels and gets the gradient of v; over the
fibre the edge sends m and the labels and gets the gradient of m. (The paper's equation 17 has
losses come back, from which no small model could learn.) Inputs leave a device only where equation
6 is computed in every iteration, or where the cloud alone trains.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax.costs.layers import products
from snake_jax.nodes.ledger import Transfer
from snake_jax.nodes.places import CLOUD, SERVER, Place
from snake_jax.nodes.places import node as node_place
from snake_jax.params import Params, num_bytes, select
from snake_jax.scct.system import batches, cloud, holding, small_model
from snake_jax.scct.system.build import System
from snake_jax.scct.system.clocks import Splits
from snake_jax.scct.system.holding import owner_of
from snake_jax.scct.system.membership import Presence

_NUMBER_BYTES = 4  # of float32 and of an id


class PlaceFlops(TypedDict):
    """FLOPs by place."""

    device: int
    edge: int
    cloud: int


def of_round(
    system: System,
    small: Mapping[str, Params],
    splits: Splits,
    there: Sequence[Presence],
    number: int,
) -> list[Transfer]:
    """A row for each device, link and kind of message.

    Args:
      system: the run.
      small: small models by owner.
      splits: of the devices that take part.
      there: who does, for how long.
      number: of the round, from 0.
    """
    settings, rows = system.settings, list[Transfer]()
    if settings.arm == "small":
        return rows
    names = system.encoder.layer_names
    for node, one in enumerate(there):
        count = one.epochs * settings.iterations
        if not count:
            continue
        owner = owner_of(settings.arm, node)
        route: list[tuple[Place, Place, str]] = [
            (node_place(node), SERVER, holding.item(owner, names[-1])),
            (SERVER, CLOUD, holding.item("cloud", cloud.PROJECTION)),
        ]
        if settings.has_small:
            split = splits[node]
            route[0] = (*route[0][:2], holding.item(owner, names[split]))
        for kind, size in _sizes(system).items():
            for source, destination, item in route:
                ends = (destination, source) if kind == "gradients" else (source, destination)
                rows.append(Transfer(number, *ends, (item,), count * size, kind))
        if owner == "shared":
            rows += _synchronised(small[owner], names, splits[node], node, number, count)
    return rows


def _sizes(system: System) -> dict[str, int]:
    """Bytes of an iteration's messages over one link, by kind."""
    settings, data = system.settings, system.data[0].train
    batch = settings.batch_size
    label_numbers = 2 if system.large.head == "span" else settings.max_answer
    ids = batch * data.large.ids.shape[1] * _NUMBER_BYTES
    labels = batch * label_numbers * _NUMBER_BYTES
    if not settings.has_small:
        return {"activations": ids, "labels": labels}
    # The plain text goes along where the cloud reads it in every iteration.
    if settings.plain_loss == "always":
        labels += ids
    values = batch * data.small.ids.shape[1] * system.encoder.width * _NUMBER_BYTES
    return {"activations": values, "labels": labels, "gradients": values}


def _synchronised(
    params: Params, names: Sequence[str], split: int, node: int, number: int, count: int
) -> list[Transfer]:
    """One small model of all: a device's gradients go to the edge, and their mean comes back."""
    own = names[: split + 1]
    items = tuple(holding.item("shared", name) for name in own)
    size = count * num_bytes(select(params, own))
    here = node_place(node)
    return [
        Transfer(number, here, SERVER, items, size, "gradients"),
        Transfer(number, SERVER, here, items, size, "gradients"),
    ]


def flops(system: System, trained: Params, splits: Splits, there: Sequence[Presence]) -> PlaceFlops:
    """FLOPs of a round's steps by place: products of matrices, both passes, as they are traced."""
    block, in_cloud = iteration_flops(system, trained)
    found: PlaceFlops = {"device": 0, "edge": 0, "cloud": 0}
    for node, one in enumerate(there):
        count = one.epochs * system.settings.iterations
        if system.settings.has_small and count:
            found["device"] += count * block * splits[node]
            found["edge"] += count * block * (system.encoder.num_blocks - splits[node])
        found["cloud"] += count * in_cloud
    return found


# Tracing takes longer than an iteration; what it counts depends on shapes alone.
_COUNTED: dict[tuple[object, ...], tuple[int, int]] = {}


def iteration_flops(system: System, trained: Params) -> tuple[int, int]:
    """FLOPs of one device's batch: through a block of the small model, and in the cloud."""
    key = (system.settings, system.encoder, system.large)
    if key not in _COUNTED:
        _COUNTED[key] = _block_flops(system), _cloud_flops(system, trained)
    return _COUNTED[key]


def _block_flops(system: System) -> int:
    """Forward, then forward again and back."""
    if not system.settings.has_small:
        return 0
    encoder = system.encoder
    rows = batches.rows(system.data[0].train, np.zeros(system.settings.batch_size, int))
    params = jax.eval_shape(encoder.init, jax.random.key(0))
    hidden = jax.eval_shape(encoder.embed, params["embed"], rows.small)
    weights = params[encoder.layer_names[1]]
    forward = functools.partial(small_model.block, encoder)
    backward = functools.partial(small_model.block_gradient, encoder)
    return products(forward, weights, hidden) + products(backward, weights, hidden, hidden.values)


def _cloud_flops(system: System, trained: Params) -> int:
    """Both passes of one device's batch through the large model."""
    settings = system.settings
    if not settings.has_large:
        return 0
    rows = batches.rows(system.data[0].train, np.zeros(settings.batch_size, int))
    step = functools.partial(cloud.gradients, system.large, 1, system.base, trained)
    if not settings.has_small:
        return products(step, rows.ids, rows.of_large)
    shape = (*rows.small.ids.shape, system.encoder.width)
    return products(step, jax.ShapeDtypeStruct(shape, jnp.float32), rows.of_small)
