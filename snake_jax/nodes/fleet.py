"""What places can do: rate, memory, links, energy and the hours in which they are free.

From a file or a generator. Windows are the tidal effect: devices are free off-peak, in the same
hours of every period (snake_learning_magazine, "Resource Availability"). All figures are stated,
none is measured.
"""

import itertools
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

from snake_jax import streams
from snake_jax.config import RunConfig
from snake_jax.errors import UserError
from snake_jax.nodes import links
from snake_jax.nodes.links import STEADY, Links
from snake_jax.nodes.places import Place

DAY_S = 86400.0
_GIB = 2**30
_MBIT_PER_S = 1e6 / 8
_LARGEST = 1e30
_SHORTEST_S = 60.0  # of a fleet's period


class Node(NamedTuple):
    """A node's (or the server's, or the cloud's) figures.

    Attributes:
      flops_per_s: floating-point operations in a second.
      memory_bytes: what a visit may hold.
      up_bytes_per_s: its link when it sends.
      down_bytes_per_s: its link when it receives.
      latency_s: its part of the delay of a message.
      joules_per_flop: of computing.
      joules_per_byte: of sending or receiving.
      energy_price: cost of a joule, in any unit; 1 counts joules.
      windows: `(start_s, end_s)` in the fleet's period when it is free, in order; empty: always.
    """

    flops_per_s: float
    memory_bytes: int
    up_bytes_per_s: float
    down_bytes_per_s: float
    latency_s: float
    joules_per_flop: float
    joules_per_byte: float
    energy_price: float = 1.0
    windows: tuple[tuple[float, float], ...] = ()


# A small edge device at 10 W on a home's link, a machine in a data centre at 100 W, and far away
# accelerators at 1 kW.
EDGE_FIGURES = Node(
    flops_per_s=1e11,
    memory_bytes=4 * _GIB,
    up_bytes_per_s=10 * _MBIT_PER_S,
    down_bytes_per_s=50 * _MBIT_PER_S,
    latency_s=0.02,
    joules_per_flop=1e-10,
    joules_per_byte=1e-6,
)
SERVER_FIGURES = Node(
    flops_per_s=1e13,
    memory_bytes=256 * _GIB,
    up_bytes_per_s=1000 * _MBIT_PER_S,
    down_bytes_per_s=1000 * _MBIT_PER_S,
    latency_s=0.001,
    joules_per_flop=1e-11,
    joules_per_byte=1e-8,
)
CLOUD_FIGURES = Node(
    flops_per_s=1e15,
    memory_bytes=1024 * _GIB,
    up_bytes_per_s=1000 * _MBIT_PER_S,
    down_bytes_per_s=1000 * _MBIT_PER_S,
    latency_s=0.01,
    joules_per_flop=1e-12,
    joules_per_byte=1e-8,
)


class Fleet(NamedTuple):
    """What all places can do, and when windows repeat.

    Attributes:
      nodes: in their order.
      server: always there.
      period_s: seconds after which windows repeat.
      cloud: always there, behind the server. A message between the two goes at the slower of the
        sender's up and the receiver's down rate, as one between a node and the server does.
      links: who is whose neighbour, and how links fade.
    """

    nodes: tuple[Node, ...]
    server: Node
    period_s: float = DAY_S
    cloud: Node = CLOUD_FIGURES
    links: Links = STEADY


_KEYS = ("nodes", "defaults", "server", "cloud", "period_s")
_FIGURES = tuple(name for name in Node._fields if name != "windows")
# What is divided by must not be nearly 0, and no fleet needs less than these.
_LEAST = dict.fromkeys(("flops_per_s", "memory_bytes", "up_bytes_per_s", "down_bytes_per_s"), 1.0)


def figures_of(fleet: Fleet, place: Place) -> Node:
    """What a place can do."""
    if place.kind == "server":
        return fleet.server
    if place.kind == "cloud":
        return fleet.cloud
    return fleet.nodes[place.index]


def of_config(config: RunConfig) -> Fleet:
    """The fleet that `--node_file`, or `--node_spread` and `--tidal`, describe.

    Raises:
      UserError: the file is wrong, or flags of the generator stand beside it.
    """
    # The generator's flags have nothing to say where a file says it.
    between = links.of_config(config)
    if not config.node_file:
        fleet = make_fleet(config.nodes, config.node_spread, config.seed, config.tidal)
        return fleet._replace(links=between)
    for flag, default in (("node_spread", 0), ("tidal", 1)):
        value = getattr(config, flag)
        if value != default:
            raise UserError(f"--{flag}={value}: --node_file says what nodes can do; leave one out")
    return read_fleet(config.node_file, config.nodes)._replace(links=between)


def make_fleet(count: int, spread: float, seed: int, tidal: float = 1.0) -> Fleet:
    """Nodes around `EDGE_FIGURES`, a server of `SERVER_FIGURES`, a cloud of `CLOUD_FIGURES`.

    Args:
      count: of nodes. A node's figures do not depend on it.
      spread: sigma of the lognormal factor (median 1) on each figure of each node; 0: all alike.
      seed: of the factors and phases.
      tidal: the share of a day each node is free, in one stretch whose start is drawn; in whole
        seconds, at least one.
    """
    # All alike: nothing is drawn, which of many nodes would take seconds.
    if not spread and tidal == 1.0:
        return Fleet((EDGE_FIGURES,) * count, SERVER_FIGURES, DAY_S)
    nodes = []
    for index in range(count):
        nodes.append(_drawn(seed, index, spread, tidal))
    return Fleet(tuple(nodes), SERVER_FIGURES, DAY_S)


def _drawn(seed: int, node: int, spread: float, tidal: float) -> Node:
    """One node of `make_fleet`."""
    # Each figure by a factor of its own, but none below what a fleet has to have.
    rng = streams.generator(seed, "fleet/figures", node)
    factors = rng.lognormal(0.0, spread, len(_FIGURES))
    figures: dict[str, Any] = {}
    for name, factor in zip(_FIGURES, factors, strict=True):
        figure = getattr(EDGE_FIGURES, name) * float(factor)
        figures[name] = max(_LEAST.get(name, 0.0), figure)
    figures["memory_bytes"] = int(figures["memory_bytes"])

    # From a stream of its own: the same hours whatever the spread.
    rng = streams.generator(seed, "fleet/windows", node)
    start_s = int(rng.integers(int(DAY_S)))
    length_s = max(1, round(tidal * DAY_S))
    return Node(**figures, windows=_stretch(start_s, length_s))


def _stretch(start_s: int, length_s: int) -> tuple[tuple[float, float], ...]:
    """A window in the day; where it runs past midnight, as its two parts."""
    if length_s >= DAY_S:
        return ()  # always free
    end_s = float(start_s + length_s)
    if end_s <= DAY_S:
        return ((float(start_s), end_s),)
    return ((0.0, end_s - DAY_S), (float(start_s), DAY_S))


def read_fleet(path: str, count: int) -> Fleet:
    """Reads the first `count` nodes of a YAML file, or of a JSON file if its name ends in `.json`.

    The file is a mapping with `nodes`, a list of entries. An entry has keys of `Node` and, to stand
    for several nodes alike, `count`. What it leaves out comes from `defaults`, then from
    `EDGE_FIGURES`; `server` and `cloud` likewise, from `SERVER_FIGURES` and `CLOUD_FIGURES`.
    `period_s` is the period of the windows, a day if left out:

        defaults: {memory_bytes: 2e9}
        nodes:
          - {count: 8, flops_per_s: 5e10}
          - {windows: [[0, 21600], [79200, 86400]]}

    Raises:
      UserError: the file is missing or not of this form, or has fewer nodes.
    """
    where = f"--node_file={path}"
    content = _mapping(where, _load(path), _KEYS)
    period_s = _number(f"{where}: period_s", content.get("period_s", DAY_S), _SHORTEST_S)

    # Server and cloud are always there, so they have no windows.
    given = content.get("server", {})
    server = _node(f"{where}: server", given, SERVER_FIGURES, _FIGURES, period_s)
    given = content.get("cloud", {})
    cloud = _node(f"{where}: cloud", given, CLOUD_FIGURES, _FIGURES, period_s)
    given = content.get("defaults", {})
    base = _node(f"{where}: defaults", given, EDGE_FIGURES, Node._fields, period_s)
    entries = content.get("nodes")
    if not isinstance(entries, list):
        raise UserError(
            f"{where}: nodes must be a list of entries, one a node or, with count, for several"
        )

    # A count may be huge: no more nodes are made than are asked for.
    nodes: list[Node] = []
    listed = 0
    for index, entry in enumerate(entries):
        at = f"{where}: nodes[{index}]"
        node = _node(at, entry, base, (*Node._fields, "count"), period_s)
        repeats = _repeats(f"{at}: count", entry.get("count", 1))
        wanted = min(repeats, count - len(nodes))
        nodes.extend([node] * wanted)
        listed += repeats
    if listed < count:
        raise UserError(
            f"{where}: describes {listed} nodes, fewer than --nodes={count}: add some or lower "
            f"--nodes"
        )
    return Fleet(tuple(nodes), server, period_s, cloud)


def _load(path: str) -> Any:
    """What a file says, as YAML or JSON; `~` is the home folder."""
    file = Path(os.path.expanduser(path))
    try:
        text = file.read_text(encoding="utf-8-sig")  # as some editors save it
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"--node_file={path}: {reason}; leave it empty to have nodes generated"
        ) from None
    except ValueError:
        raise UserError(f"--node_file={path}: not a text file in UTF-8") from None
    kind = "JSON" if path.endswith(".json") else "YAML"
    try:
        if kind == "JSON":
            return json.loads(text)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--node_file={path}: not {kind}: {reason}") from None


def _mapping(where: str, value: Any, known: tuple[str, ...]) -> Mapping[str, Any]:
    """A value that is a mapping of known keys.

    Raises:
      UserError: it is none.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where}: must be a mapping with keys among {', '.join(known)}")
    for key in value:
        if key not in known:
            raise UserError(f"{where}: unknown key {key}; known are {', '.join(known)}")
    return value


def _node(where: str, value: Any, base: Node, known: tuple[str, ...], period_s: float) -> Node:
    """`base` with what an entry of the file says; `known` are the keys that it may have.

    Raises:
      UserError: another key, or a value that is no figure.
    """
    # Only what an entry says replaces the base; memory is counted in whole bytes.
    given = _mapping(where, value, known)
    figures: dict[str, Any] = {}
    for name in _FIGURES:
        if name in given:
            least = _LEAST.get(name, 0.0)
            figures[name] = _number(f"{where}: {name}", given[name], least)
    if "memory_bytes" in given:
        figures["memory_bytes"] = int(figures["memory_bytes"])
    if "windows" in given:
        figures["windows"] = _windows(f"{where}: windows", given["windows"], period_s)
    return base._replace(**figures)


def _number(where: str, value: Any, least: float) -> float:
    """A finite number; also from text, because YAML takes `1e11` for text (it wants `1.0e+11`).

    Raises:
      UserError: it is none, or not from `least` to `_LARGEST`.
    """
    # What cannot be read becomes NaN, which lies between no two numbers.
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not least <= number <= _LARGEST:
        raise UserError(f"{where}: {value!r} is not a number from {least:g} to {_LARGEST:g}")
    return number


def _repeats(where: str, value: Any) -> int:
    """How many nodes an entry stands for.

    Raises:
      UserError: no whole number from 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{where}: {value!r} is not a whole number from 1")
    return value


def _windows(where: str, value: Any, period_s: float) -> tuple[tuple[float, float], ...]:
    """A node's windows in order, none outside the period, none over another.

    Raises:
      UserError: they are not so, or no list of pairs of numbers.
    """
    # The form first, so that what follows can take it for granted.
    if not isinstance(value, list) or not value:
        raise UserError(
            f"{where}: must be a list of [start_s, end_s]; leave it out where a node is always free"
        )
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError(f"{where}: every window must be a pair [start_s, end_s]")
    windows = []
    for start, end in value:
        start_s = _number(where, start, 0.0)
        end_s = _number(where, end, 0.0)
        windows.append((start_s, end_s))
    windows.sort()

    # Each by itself; then, since they are in order, each beside the next.
    for start_s, end_s in windows:
        if end_s > period_s:
            raise UserError(
                f"{where}: [{start_s:g}, {end_s:g}] ends outside the period of {period_s:g} s"
            )
        if end_s - start_s < 1:
            raise UserError(f"{where}: [{start_s:g}, {end_s:g}] must be at least a second long")
    for earlier, later in itertools.pairwise(windows):
        _, end_s = earlier
        start_s, _ = later
        if start_s < end_s:
            raise UserError(f"{where}: two windows overlap at {start_s:g} s: join them")
    return tuple(windows)
