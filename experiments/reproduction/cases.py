"""What the studies of images and of language have in common: cases, scales, tuning, names."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from snake_jax.config import RunConfig


class Method(NamedTuple):
    """How a method is called in pictures and tables, and its own flags."""

    label: str
    flags: Mapping[str, Any] = {}


class Scale(NamedTuple):
    """One size of a study.

    Attributes:
      settings: of every run.
      data: the data set where none is given.
      train_examples: over all nodes; 0: as many as there are. Of language about how many rows there
        are, for estimates.
      cycles: for each number of local epochs E; rounds of averaging methods.
      seeds: of every case.
      target: accuracy or perplexity whose cost is reported; 0: none.
      grid: learning rates that `--tune` tries.
      tune_cycles: of a tuning run, with E = 1.
      validation: share of the training examples that tuning evaluates on.
      rates: learning rate of methods that were not tuned.
      step_s: seconds of a step, for the first estimate; measured where said.
    """

    settings: Mapping[str, Any]
    data: str
    train_examples: int
    cycles: Mapping[int, int]
    seeds: tuple[int, ...]
    target: float
    grid: tuple[float, ...]
    tune_cycles: int
    validation: float
    rates: Mapping[str, float]
    step_s: float


class Case(NamedTuple):
    """One run.

    Attributes:
      method: a key of the topic's methods.
      partition: of the data.
      epochs: E, passes over a node's data in a visit.
      seed: of the run.
      order: of the middle layers.
      interrupted: whether the fifth layer's visit of every cycle is taken over by an idle node.
      tried: the learning rate that a tuning run tries; None: a run of the study.
    """

    method: str
    partition: str
    epochs: int = 1
    seed: int = 0
    order: str = "sequential"
    interrupted: bool = False
    tried: float | None = None


Sources = Mapping[str, str]  # what this machine has, as {"data": "npz:DIR"}


class Given(NamedTuple):
    """What the user says of where things are; empty: the scale's.

    Attributes:
      data: images.
      text_model: folder or preset of a language model.
      text_data: sources of text.
      workdir: of the runs.
      listing: whether nothing is to run, so that no weights are needed.
    """

    data: str = ""
    text_model: str = ""
    text_data: str = ""
    workdir: Path = Path()
    listing: bool = False


SourcesOf = Callable[[str, Scale, Given], Sources]
"""(name of the scale, the scale, what the user says) to where a topic's things are."""


class Topic(NamedTuple):
    """One of the papers' two studies, or a comparison beside them.

    Attributes:
      name: of the study.
      suffix: of the names of its files that are not of one figure.
      figures: that it has.
      methods: by name.
      partitions: name to what people call it.
      scales: by name.
      of_figure: (figure, scale) to the cases that it draws, those of few local epochs first.
      config: (case, scale, sources, learning rate) to the configuration of its run, evaluated once
        a cycle.
      sources: where its things are, which raises a UserError where something has to be given.
      recorded: of the sources, those that a study.json says, for drawing anew without them.
      hold_out: (scale, sources) writes what tuning runs need.
      public: a source as it may be published, without paths of this machine.
    """

    name: str
    suffix: str
    figures: tuple[str, ...]
    methods: Mapping[str, Method]
    partitions: Mapping[str, str]
    scales: Mapping[str, Scale]
    of_figure: Callable[[str, Scale], list[Case]]
    config: Callable[[Case, Scale, Sources, float], RunConfig]
    sources: SourcesOf
    recorded: tuple[str, ...]
    hold_out: Callable[[Scale, Sources], None]
    public: Callable[[str], str]


def every_seed(cases: Iterable[Case], scale: Scale) -> list[Case]:
    """Each case with all seeds of the scale, those of a case together."""
    found = []
    for case in cases:
        found += [case._replace(seed=seed) for seed in scale.seeds]
    return found


def ordered(cases: Iterable[Case]) -> list[Case]:
    """Each case once, those of few local epochs first.

    So what is there when time runs out can be used.
    """
    return sorted(dict.fromkeys(cases), key=_epochs_and_seed)


def _epochs_and_seed(case: Case) -> tuple[int, int]:
    return case.epochs, case.seed


def of_figures(topic: Topic, figures: Iterable[str], scale: Scale) -> list[Case]:
    """The cases of several figures, in the order in which they are run."""
    found: list[Case] = []
    for figure in figures:
        found += topic.of_figure(figure, scale)
    return ordered(found)


def tuning(topic: Topic, figures: Iterable[str], scale: Scale) -> list[Case]:
    """The tuning runs: every method and partition of the figures, each rate of the grid.

    Of one seed and the least E.
    """
    pairs: dict[tuple[str, str], None] = {}  # each once, in order
    for figure in figures:
        for case in topic.of_figure(figure, scale):
            pairs[case.method, case.partition] = None
    tried = []
    for method, partition in pairs:
        for rate in scale.grid:
            case = Case(method, partition, min(scale.cycles), scale.seeds[0], tried=rate)
            tried.append(case)
    return tried


def name(case: Case, rate: float) -> str:
    """The folder of a case's run: what tells it from the others of its scale."""
    parts = [case.method, case.partition, f"e{case.epochs}"]
    if case.tried is not None:
        parts.insert(0, "tune")
    if case.order != "sequential":
        parts.append(case.order)
    if case.interrupted:
        parts.append("interrupted")
    return "_".join([*parts, f"lr{rate:g}", f"s{case.seed}"])


def cycles_of(case: Case, scale: Scale) -> int:
    """Cycles, or rounds, of a case's run."""
    return scale.cycles[case.epochs] if case.tried is None else scale.tune_cycles


def steps_of(case: Case, scale: Scale, all_examples: int = 50_000) -> int:
    """About how many steps a case's run takes: a cycle passes all data E times.

    Args:
      case: of the study.
      scale: that it is run at.
      all_examples: where the scale takes all there are; CIFAR-10 has 50,000.
    """
    examples = float(scale.train_examples or all_examples)
    if case.tried is not None:
        examples *= 1 - scale.validation
    passes = case.epochs * cycles_of(case, scale)
    return round(examples * passes / scale.settings["batch_size"])
