"""How nodes are emulated: what makes one program of several visits that train the same layers.

An emulation is a way to compile an epoch for many nodes, and the places of its arrays. Nodes lie
along leading axes of what each has of its own: trained layers, optimizer states, batches, key.
Frozen layers, layers as received, examples and learning rate are there once (on every device). A
place without a visit gets no batches.

- `vmap`: all nodes in one batch on one device; to fill an accelerator that a small network leaves
idle.
- `pmap`, `shard_map`: nodes spread evenly over all devices, on each one after the other
(`lax.map`). They run alike:
  in jax 0.10 pmap is built on shard_map.

Measured (`python -m experiments.bench emulation`, its output under experiments/results): FedAvg
over 16 nodes of the little `cnn` on two CPU cores takes 0.56 s a round in the loop, 0.67 with vmap,
0.53 and 0.54 with pmap and shard_map on two emulated devices. With unequal data vmap computes the
batches that a node lacks too, and then chooses between two results, where `lax.map` skips them. So
vmap is for nodes with about equal data.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from snake_jax import processes
from snake_jax.params import PyTree

Epoch = Callable[..., Any]  # see `steps.local_epoch`

_AXES = (0, 0, None, None, None, 0, 0, None)  # of its arguments: which have a node axis
_DONATED = (0, 1)


class Emulation(NamedTuple):
    """How many nodes are one program.

    Attributes:
      jit: compiles an epoch for many nodes.
      lead: leading axes of what each node has, for at least so many nodes; none where the program
        is of one.
      nodes: where such arrays lie; None: wherever jax puts them.
      shared: where arrays lie that all nodes read.
      home: where results are brought.
    """

    jit: Callable[[Epoch], Any]
    lead: Callable[[int], tuple[int, ...]]
    nodes: Sharding | None = None
    shared: Sharding | None = None
    home: jax.Device | None = None

    def spread(self, tree: PyTree, lead: tuple[int, ...]) -> PyTree:
        """A copy of the tree for each node, which a program may consume."""
        if not lead:
            return _copied(tree)
        return _spread(processes.put(tree, self.shared), lead, self.nodes)

    def gather(self, tree: PyTree, lead: tuple[int, ...], count: int) -> list[PyTree]:
        """The trees of the first `count` nodes."""
        if not lead:
            return [tree]
        return _split(processes.whole(tree, self.home), lead, count)


ALONE = Emulation(jit=lambda epoch: jax.jit(epoch, donate_argnums=_DONATED), lead=lambda count: ())


def _vmap() -> Emulation:
    return Emulation(
        jit=lambda epoch: jax.jit(jax.vmap(epoch, in_axes=_AXES), donate_argnums=_DONATED),
        lead=lambda count: (count,),
    )


def _pmap() -> Emulation:
    devices = len(jax.devices())
    return Emulation(
        lambda epoch: jax.pmap(_one_by_one(epoch), in_axes=_AXES, donate_argnums=_DONATED),
        lambda count: (devices, -(-count // devices)),
        *_places(),
    )


def _shard_map() -> Emulation:
    devices, (nodes, shared, home) = len(jax.devices()), _places()
    places = tuple(shared if axis is None else nodes for axis in _AXES)
    specs = tuple(place.spec for place in places)

    def compiled(epoch: Epoch) -> Any:
        spread = jax.shard_map(
            _one_by_one(epoch),
            mesh=nodes.mesh,
            in_specs=specs,
            out_specs=nodes.spec,
            check_vma=False,
        )
        return jax.jit(spread, in_shardings=places, out_shardings=nodes, donate_argnums=_DONATED)

    return Emulation(compiled, lambda count: (-(-count // devices) * devices,), nodes, shared, home)


def _places() -> tuple[NamedSharding, NamedSharding, jax.Device]:
    """Over all devices along the first axis, a copy on every device, and the first device."""
    mesh = Mesh(np.array(jax.devices()), ("nodes",))
    return (
        NamedSharding(mesh, PartitionSpec("nodes")),
        NamedSharding(mesh, PartitionSpec()),
        jax.devices()[0],
    )


def _one_by_one(epoch: Epoch) -> Epoch:
    def nodes(*args: PyTree) -> PyTree:
        def node(own: list[PyTree]) -> PyTree:
            rest = iter(own)
            return epoch(
                *(
                    arg if axis is None else next(rest)
                    for arg, axis in zip(args, _AXES, strict=True)
                )
            )

        return jax.lax.map(
            node, [arg for arg, axis in zip(args, _AXES, strict=True) if axis is not None]
        )

    return nodes


@jax.jit
def _copied(tree: PyTree) -> PyTree:
    return jax.tree.map(jax.numpy.copy, tree)


@partial(jax.jit, static_argnums=(1, 2))
def _spread(tree: PyTree, lead: tuple[int, ...], place: Sharding | None) -> PyTree:
    copies = jax.tree.map(lambda w: jax.numpy.broadcast_to(w, (*lead, *w.shape)), tree)
    return copies if place is None else jax.lax.with_sharding_constraint(copies, place)


@partial(jax.jit, static_argnums=(1, 2))
def _split(tree: PyTree, lead: tuple[int, ...], count: int) -> list[PyTree]:
    flat = jax.tree.map(lambda w: w.reshape(-1, *w.shape[len(lead) :]), tree)
    return [jax.tree.map(lambda w, i=i: w[i], flat) for i in range(count)]


# By the value of --executor.
EMULATIONS: dict[str, Callable[[], Emulation]] = {
    "loop": lambda: ALONE,
    "vmap": _vmap,
    "pmap": _pmap,
    "shard_map": _shard_map,
}
