"""What a run is before it begins: a job, and the data that it trains on.

`image_task` and `text_task` make one from a configuration, `snake_jax.runs.front` from a user's own
model and arrays; the loop and the folder go on from there and know no task.
"""

from collections.abc import Sequence
from typing import Generic, NamedTuple

import numpy as np

from snake_jax.algorithms.base import Algorithm
from snake_jax.algorithms.chain import Chain
from snake_jax.algorithms.schedule import Plan
from snake_jax.data.node_quality import NodeQuality
from snake_jax.models.layered import Layer
from snake_jax.nodes import fit
from snake_jax.nodes.fleet import Fleet
from snake_jax.runs import distilling
from snake_jax.runs.distilling import Verdict
from snake_jax.runs.job import (
    Config,
    Data,
    Job,
    Model,
    Task,
    check_interruptions,
    check_pool,
    hop_of,
)


class Setup(NamedTuple, Generic[Config, Data, Model]):
    """A job and its data, checked against each other.

    The properties are the job's, under the same names.

    Attributes:
      job: of the run.
      data: for it.
      about_nodes: what is said of each node.
      steps: optimizer steps of a visit at each, where they are known.
      verdict: whether visits distil, and why.
    """

    job: Job[Config, Data, Model]
    data: Data
    about_nodes: Sequence[str] = ()
    steps: tuple[int, ...] = ()
    verdict: Verdict = Verdict(False, "")

    @property
    def config(self) -> Config:
        """As given."""
        return self.job.config

    @property
    def algorithm(self) -> Algorithm:
        """The method."""
        return self.job.algorithm

    @property
    def model(self) -> Model:
        """The network."""
        return self.job.model

    @property
    def task(self) -> Task[Config, Data, Model]:
        """What kind of run it is."""
        return self.job.task

    @property
    def plan(self) -> Plan:
        """What the schedule depends on."""
        return self.job.plan

    @property
    def chain(self) -> Chain:
        """Where the layers of a visit lie."""
        return self.job.chain

    @property
    def fleet(self) -> Fleet:
        """What nodes and server can do."""
        return self.job.fleet

    @property
    def auxiliary(self) -> tuple[Layer, ...]:
        """Layers that train beside the model's."""
        return self.job.auxiliary

    @property
    def distilled(self) -> bool:
        """Whether visits distill."""
        return self.job.distilled

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The model's order, and after it auxiliary layers and adapters."""
        return self.job.layer_names


def assembled(
    job: Job[Config, Data, Model],
    data: Data,
    steps: Sequence[int],
    counts: np.ndarray,
    ranks: Sequence[int] = (),
    quality: Sequence[NodeQuality] = (),
) -> Setup[Config, Data, Model]:
    """The setup of a job on this data: what only the data decides is decided, and all is checked.

    Args:
      job: without data.
      data: for it.
      steps: optimizer steps of a visit at each node.
      counts: `[K, C]` examples of each label at each node.
      ranks: of each node's adapters; empty: all alike.
      quality: of each node's data, as it found it; empty: none looked.

    Raises:
      UserError: a node cannot hold what it is to train, nobody is there to train, or an
        interruption makes no sense.
    """
    useful = "distill" in job.algorithm.flags
    verdict = distilling.decided(job.config, [counts], ranks, useful)
    job = job._replace(distilled=verdict.on)
    visitors, able = job.task.visitors(job, steps)
    refused = fit.refused(job.config, job.fleet, counts, quality)
    plan = job.plan._replace(visitors=visitors, able=able, refused=refused, hop=hop_of(job))
    job = job._replace(plan=plan)
    check_pool(job)
    check_interruptions(job)
    about = fit.About(job.config, counts, quality)
    return Setup(job, data, about, tuple(steps), verdict)
