"""How nodes are emulated: what makes one program of several visits that train the same layers.

An emulation is a way to compile a node's program for many, and the places of its arrays. Nodes lie
along leading axes of what each has of its own: trained layers, optimizer states, batches, key.
Frozen layers, layers as received, examples and learning rate are there once (on every device). A
place without a visit gets no batches.

- `scan`: nodes one after the other on one device, as in the loop and with the same bits, but in one
  call: for many small nodes, whose steps are soon done beside what a call costs the host. Of an
  unequal node's batches the missing ones are skipped; only their indices are padded.
- `vmap`: all nodes in one batch on one device; to fill an accelerator that a small network leaves
  idle.
- `pmap`, `shard_map`: nodes spread evenly over all devices, on each one after the other
  (`lax.map`). They run alike: in jax 0.10 pmap is built on shard_map.

Measured (`python -m experiments.bench emulation`, its output under experiments/results): FedAvg
over 16 nodes of the little `cnn` on two CPU cores takes 0.56 s a round in the loop, 0.67 with vmap,
0.53 and 0.54 with pmap and shard_map on two emulated devices. With unequal data vmap computes the
batches that a node lacks too, and then chooses between two results, where `lax.map` skips them. So
vmap is for nodes with about equal data.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from snake_jax import compiling, processes
from snake_jax.params import PyTree

Program = Callable[..., Any]  # see `image_step.local_epoch`, `text_step.train_step`
Axes = tuple[int | None, ...]  # of a program's arguments: 0 where each node has its own

_DONATED = (0, 1)


class Emulation(NamedTuple):
    """How many nodes are one program.

    Attributes:
      jit: `(work, program, axes)`: compiles the program of a node for many of them; of the work see
        `compiling`.
      lead: leading axes of what each node has, for at least so many nodes; none where the program
        is of one.
      nodes: where such arrays lie; None: wherever jax puts them.
      shared: where arrays lie that all nodes read.
      home: where results are brought.
    """

    jit: Callable[[str, Program, Axes], Any]
    lead: Callable[[int], tuple[int, ...]]
    nodes: Sharding | None = None
    shared: Sharding | None = None
    home: jax.Device | None = None

    def spread(self, tree: PyTree, lead: tuple[int, ...]) -> PyTree:
        """A copy of the tree for each node, which a program may consume."""
        return _spread(processes.put(tree, self.shared), lead, self.nodes)

    def gather(self, tree: PyTree, lead: tuple[int, ...], count: int) -> list[PyTree]:
        """The trees of the first `count` nodes."""
        return _split(processes.whole(tree, self.home), lead, count)

    def stack(self, trees: Sequence[PyTree], lead: tuple[int, ...]) -> PyTree:
        """One tree a node; places without a visit get that of the first."""
        count = math.prod(lead)
        filled = [*trees, *[trees[0]] * (count - len(trees))]

        def one(*leaves: jax.Array) -> jax.Array:
            return jax.numpy.stack(leaves).reshape(*lead, *leaves[0].shape)

        return processes.put(jax.tree.map(one, *filled), self.nodes)


ALONE = Emulation(
    jit=lambda work, program, axes: compiling.jit(work, program, donate_argnums=_DONATED),
    lead=lambda count: (),
)


def _scan() -> Emulation:
    def compiled(work: str, program: Program, axes: Axes) -> Any:
        return compiling.jit(work, _one_by_one(program, axes), donate_argnums=_DONATED)

    return Emulation(compiled, lambda count: (count,))


def _vmap() -> Emulation:
    def compiled(work: str, program: Program, axes: Axes) -> Any:
        return compiling.jit(work, jax.vmap(program, in_axes=axes), donate_argnums=_DONATED)

    return Emulation(compiled, lambda count: (count,))


def _pmap() -> Emulation:
    devices = len(jax.devices())
    nodes, shared, home = _places()

    def compiled(work: str, program: Program, axes: Axes) -> Any:
        by_pmap = jax.pmap(_one_by_one(program, axes), in_axes=axes)
        places = tuple(shared if axis is None else nodes for axis in axes)

        # pmap by itself takes no options of the compiler; a function of it, within jit, does.
        def spread(*args: PyTree) -> PyTree:
            return by_pmap(*args)

        return compiling.jit(
            work, spread, in_shardings=places, out_shardings=nodes, donate_argnums=_DONATED
        )

    return Emulation(compiled, lambda count: (devices, -(-count // devices)), nodes, shared, home)


def _shard_map() -> Emulation:
    devices = len(jax.devices())
    nodes, shared, home = _places()

    def compiled(work: str, program: Program, axes: Axes) -> Any:
        places = tuple(shared if axis is None else nodes for axis in axes)
        spread = jax.shard_map(
            _one_by_one(program, axes),
            mesh=nodes.mesh,
            in_specs=tuple(place.spec for place in places),
            out_specs=nodes.spec,
            check_vma=False,
        )
        return compiling.jit(
            work, spread, in_shardings=places, out_shardings=nodes, donate_argnums=_DONATED
        )

    return Emulation(compiled, lambda count: (-(-count // devices) * devices,), nodes, shared, home)


def _places() -> tuple[NamedSharding, NamedSharding, jax.Device]:
    """Over all devices along the first axis, a copy on every device, and the first device."""
    mesh = Mesh(np.array(jax.devices()), ("nodes",))
    return (
        NamedSharding(mesh, PartitionSpec("nodes")),
        NamedSharding(mesh, PartitionSpec()),
        jax.devices()[0],
    )


def _one_by_one(program: Program, axes: Axes) -> Program:
    """A device's nodes, one after the other."""

    def nodes(*args: PyTree) -> PyTree:
        def node(own: list[PyTree]) -> PyTree:
            rest = iter(own)
            full = []
            for arg, axis in zip(args, axes, strict=True):
                full.append(arg if axis is None else next(rest))
            return program(*full)

        own = [arg for arg, axis in zip(args, axes, strict=True) if axis is not None]
        return jax.lax.map(node, own)

    return nodes


@partial(jax.jit, static_argnums=(1, 2))
def _spread(tree: PyTree, lead: tuple[int, ...], place: Sharding | None) -> PyTree:
    copies = jax.tree.map(lambda w: jax.numpy.broadcast_to(w, (*lead, *w.shape)), tree)
    return copies if place is None else jax.lax.with_sharding_constraint(copies, place)


@partial(jax.jit, static_argnums=(1, 2))
def _split(tree: PyTree, lead: tuple[int, ...], count: int) -> list[PyTree]:
    flat = jax.tree.map(lambda w: w.reshape(-1, *w.shape[len(lead) :]), tree)
    return [jax.tree.map(lambda w, node=node: w[node], flat) for node in range(count)]


# By the value of --executor.
EMULATIONS: dict[str, Callable[[], Emulation]] = {
    "loop": lambda: ALONE,
    "scan": _scan,
    "vmap": _vmap,
    "pmap": _pmap,
    "shard_map": _shard_map,
}
