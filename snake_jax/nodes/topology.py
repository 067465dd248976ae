"""Who is whose neighbour: the graph over which nodes send to each other.

"Nodes undertake localized node discovery to form a self-organizing network, selecting next-hop
nodes" from "adjacent nodes" (snake_learning_arxiv, "Initialization", "Updated Parameter
Transmission"). A graph is undirected and connected. The server, which has the model at the start,
reaches all nodes. What goes between nodes that are no neighbours passes those on the shortest way.
"""

import functools
import json
import math
import os
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from snake_jax import streams
from snake_jax.errors import UserError

COMPLETE = "complete"
KINDS = (COMPLETE, "ring", "grid", "random")
FILE = "file:"

Graph = tuple[tuple[int, ...], ...]
"""The neighbours of each node, in order; empty: all are each other's."""


def is_kind(kind: str) -> bool:
    """Whether a word says a graph."""
    return kind in KINDS or kind.startswith(FILE)


@functools.lru_cache(maxsize=64)
def make(kind: str, nodes: int, degree: int, seed: int) -> Graph:
    """The graph that `--topology` says.

    Args:
      kind: complete; ring; grid, of rows as long as their number or one longer; random, a ring in
        drawn order and drawn edges beside it; or file:PATH, JSON with `{"edges": [[0, 1], ...]}`.
      nodes: how many.
      degree: of a random graph: neighbours of a node, in the mean.
      seed: of a random graph.

    Raises:
      UserError: there is no such graph, or it is not connected.
    """
    if kind == COMPLETE:
        return ()
    if kind == "ring":
        edges = [(node, (node + 1) % nodes) for node in range(nodes)]
    elif kind == "grid":
        edges = _grid(nodes)
    elif kind == "random":
        edges = _random(nodes, degree, seed)
    elif kind.startswith(FILE):
        edges = _read(kind.removeprefix(FILE), nodes)
    else:
        raise UserError(f"--topology={kind}: want {', '.join(KINDS)} or file:PATH (JSON)")
    graph = _of_edges(nodes, edges)
    reached = _distances(graph, 0)
    missing = [node for node in range(nodes) if node not in reached]
    if missing:
        raise UserError(
            f"--topology={kind}: no way leads from node 0 to node {missing[0]}; add an edge"
        )
    return graph


def neighbours(graph: Graph, node: int, nodes: int) -> tuple[int, ...]:
    """Who a node sends to; alone it has nobody."""
    if graph:
        return graph[node]
    return tuple(other for other in range(nodes) if other != node)


@functools.lru_cache(maxsize=4096)
def path(graph: Graph, source: int, destination: int) -> tuple[int, ...]:
    """The nodes on the shortest way from one to another, both included; of several ways that which
    passes nodes of lower numbers.
    """
    if not graph:
        return (source, destination)
    away = _distances(graph, destination)
    found = [source]
    while found[-1] != destination:
        here = found[-1]
        found.append(next(node for node in graph[here] if away[node] == away[here] - 1))
    return tuple(found)


def distance(graph: Graph, source: int, destination: int) -> int:
    """How many hops lie between two nodes."""
    if source == destination:
        return 0
    return len(path(graph, source, destination)) - 1


def _distances(graph: Graph, start: int) -> dict[int, int]:
    """`{node: hops from the start}` of all that can be reached."""
    found = {start: 0}
    waiting = deque([start])
    while waiting:
        here = waiting.popleft()
        for node in graph[here]:
            if node not in found:
                found[node] = found[here] + 1
                waiting.append(node)
    return found


def _of_edges(nodes: int, edges: Iterable[tuple[int, int]]) -> Graph:
    beside: list[set[int]] = [set() for _ in range(nodes)]
    for one, other in edges:
        if one != other:
            beside[one].add(other)
            beside[other].add(one)
    return tuple(tuple(sorted(found)) for found in beside)


def _grid(nodes: int) -> list[tuple[int, int]]:
    """Right and down from every node; the last row may be short."""
    columns = math.ceil(math.sqrt(nodes))
    edges = []
    for node in range(nodes):
        if (node + 1) % columns and node + 1 < nodes:
            edges.append((node, node + 1))
        if node + columns < nodes:
            edges.append((node, node + columns))
    return edges


def _random(nodes: int, degree: int, seed: int) -> list[tuple[int, int]]:
    """A ring in drawn order, which connects all, and drawn pairs until there are enough edges."""
    rng = streams.generator(seed, "topology/edges")
    order = rng.permutation(nodes).tolist()
    edges = []
    for index, node in enumerate(order):
        edges.append((node, order[(index + 1) % nodes]))
    known = {frozenset(edge) for edge in edges}

    # All other pairs in drawn order: the first of them are the chords.
    pairs = []
    for one in range(nodes):
        for other in range(one + 1, nodes):
            if frozenset((one, other)) not in known:
                pairs.append((one, other))
    wanted = max(0, nodes * degree // 2 - len(known))
    for index in rng.permutation(len(pairs))[:wanted].tolist():
        edges.append(pairs[index])
    return edges


def _read(name: str, nodes: int) -> list[tuple[int, int]]:
    """The edges of a file.

    Raises:
      UserError: it cannot be read, or is none of edges between these nodes.
    """
    where = f"--topology={FILE}{name}"
    try:
        content = json.loads(Path(os.path.expanduser(name)).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{where}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON: {' '.join(str(error).split())}") from None
    listed = content.get("edges") if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise UserError(f'{where}: want {{"edges": [[0, 1], [1, 2]]}}')
    edges = []
    for pair in listed:
        if not _is_edge(pair, nodes):
            raise UserError(f"{where}: {pair} is no pair of nodes from 0 to {nodes - 1}")
        edges.append((pair[0], pair[1]))
    return edges


def _is_edge(pair: object, nodes: int) -> bool:
    if not isinstance(pair, list) or len(pair) != 2:
        return False
    numbers = [one for one in pair if isinstance(one, int) and not isinstance(one, bool)]
    return len(numbers) == 2 and all(0 <= one < nodes for one in numbers)
