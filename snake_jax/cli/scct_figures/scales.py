"""How large the studies behind the figures are."""

from collections.abc import Callable
from typing import NamedTuple

Note = Callable[[str], None]
"""Says a line of where a long study stands."""


class StudySize(NamedTuple):
    """The size of a study.

    Attributes:
      nodes: N, for each of which figures 6 and 9 have something to show; 7 takes the last.
      subcarriers: K.
      samples: Q, of a scenario; as many fresh ones beside them.
      seeds: of the scenarios, each searched with the same seed.
      map_nodes: N of the map.
      map_samples: Q of the map.
      map_factors: of the map: how many times Table III's rates the devices compute.
      map_splits: of the map: common split points of SCCTS.
    """

    nodes: tuple[int, ...]
    subcarriers: int
    samples: int
    seeds: tuple[int, ...]
    map_nodes: int
    map_samples: int
    map_factors: tuple[float, ...]
    map_splits: tuple[int, ...]


SCALES = {
    "smoke": StudySize(
        nodes=(2, 3),
        subcarriers=12,
        samples=2,
        seeds=(0,),
        map_nodes=2,
        map_samples=2,
        map_factors=(0.1, 1.0),
        map_splits=(1, 6),
    ),
    "cpu": StudySize(
        nodes=(10, 20, 30),
        subcarriers=200,
        samples=100,
        seeds=(0, 1, 2),
        map_nodes=10,
        map_samples=20,
        map_factors=tuple(2.0**power for power in range(-6, 4)),
        map_splits=tuple(range(1, 13)),
    ),
}


class Study(NamedTuple):
    """What a figure is asked for.

    Attributes:
      scale: how large it is.
      cloud_flops_per_s: of figure 9; 0: the cloud takes no time, as the paper has it.
      note: says a line of where it stands.
    """

    scale: StudySize
    cloud_flops_per_s: float
    note: Note
