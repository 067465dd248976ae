"""Links between places: over which hops a message goes, and how fast each is in a turn.

A link fades. Its gain g is that of a Rayleigh channel whose complex amplitude h moves from turn to
turn as a Gauss-Markov process, h' = m h + sqrt(1 - m^2) n with n of unit power, g = |h|^2, so that
the gain is exponential with mean 1 in every turn and turns that follow each other are alike. The
rate is that of the link's figures times log2(1 + s g) / log2(1 + s), s its signal-to-noise ratio:
1 where the gain is at its mean. A trace depends on the seed, the link and the turn alone, and is
the same in both directions.
"""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np

from snake_jax import streams
from snake_jax.config import RunConfig
from snake_jax.nodes import topology
from snake_jax.nodes.places import Place, node
from snake_jax.nodes.topology import Graph

_AT_FIRST = 64  # turns of a trace; doubled until they reach far enough
_BEYOND = 2**32 - 1  # stands for the server in a link's numbers
_LEAST = 0.01  # of a rate: nobody waits for ever


class Links(NamedTuple):
    """What lies between places.

    Attributes:
      graph: who is whose neighbour.
      snr_db: signal-to-noise ratio where the gain is at its mean, in decibels.
      memory: m; how much of a turn's amplitude is left in the next.
      fades: whether links do.
      seed: of the traces.
    """

    graph: Graph = ()
    snr_db: float = 10.0
    memory: float = 0.9
    fades: bool = False
    seed: int = 0


STEADY = Links()


def of_config(config: RunConfig) -> Links:
    """The links that the flags describe.

    Raises:
      UserError: there is no such graph.
    """
    if config.topology == topology.COMPLETE and config.fading == "none":
        return STEADY
    graph = topology.make(config.topology, config.nodes, config.neighbours, config.seed)
    fades = config.fading == "rayleigh"
    return Links(graph, config.fading_snr_db, config.fading_memory, fades, config.seed)


def hops(links: Links, source: Place, destination: Place) -> tuple[tuple[Place, Place], ...]:
    """The links that a message passes: several where two nodes are no neighbours."""
    if source.kind != "node" or destination.kind != "node":
        return ((source, destination),)
    way = topology.path(links.graph, source.index, destination.index)
    found = []
    for here, there in itertools.pairwise(way):
        found.append((node(here), node(there)))
    return tuple(found)


def rate_factor(links: Links, turn: int, source: Place, destination: Place) -> float:
    """The rate of a link in a turn, over that of its figures; links without a node do not fade."""
    ends = []
    for place in (source, destination):
        ends.append(place.index if place.kind == "node" else _BEYOND)
    if not links.fades or min(ends) == _BEYOND:
        return 1.0
    gain = _gain(links.seed, links.memory, min(ends), max(ends), turn)
    snr = 10 ** (links.snr_db / 10)
    factor = math.log2(1 + snr * gain) / math.log2(1 + snr)
    return max(_LEAST, factor)


def _gain(seed: int, memory: float, low: int, high: int, turn: int) -> float:
    """|h|^2 of a link in a turn."""
    count = _AT_FIRST
    while count <= turn:
        count *= 2
    return float(_trace(seed, memory, low, high, count)[turn])


@functools.lru_cache(maxsize=1024)
def _trace(seed: int, memory: float, low: int, high: int, count: int) -> np.ndarray:
    """`[count]` gains of a link, turn after turn. More of them begin with the same."""
    rng = streams.generator(seed, "clock/fading", low, high)
    # Real and imaginary part, of half the power each.
    noise = rng.normal(scale=math.sqrt(0.5), size=(count, 2))
    amplitudes = np.empty_like(noise)
    amplitudes[0] = noise[0]
    for turn in range(1, count):
        amplitudes[turn] = memory * amplitudes[turn - 1] + math.sqrt(1 - memory**2) * noise[turn]
    return np.square(amplitudes).sum(axis=1)
