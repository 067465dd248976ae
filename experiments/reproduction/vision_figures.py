"""What the figures of the classification study show."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.reproduction import tables, tested, vision, vision_claims
from experiments.reproduction.cases import Case
from experiments.reproduction.run_numbers import Numbers
from experiments.reproduction.runs import Study
from experiments.reproduction.show import Found, Show
from experiments.reproduction.vision import COMPARED, METHODS, ORDERS, PARTITIONS
from snake_jax.report.figures import Line, plot_figure
from snake_jax.report.runs import Run

TITLES = {
    "2": "What each method costs, IID",
    "4": "VGG-11, layer by layer",
    "5": "Snake Learning and other frameworks, by local epochs E",
    "7": "Snake Learning, the visit of {layer} in every cycle taken over by an idle node halfway",
    "8": "Snake Learning, by the order of the middle layers",
}
_HOW_TO_READ = (
    "Differences are of runs with the same seed, in the direction of the claim: of one on a share "
    "of the other's accuracy, over that share of it."
)
_STYLES = {1: 0, 2: 1, 3: 1, 5: 2}  # line styles by E


def title(study: Study, figure: str) -> str:
    """Of a figure."""
    return TITLES[figure].format(layer=vision.interrupted_layer(study.scale))


def model_in_words(study: Study, found: Found) -> str:
    """The network, in a few words."""
    settings = study.scale.settings
    return f"{settings['model']}, width {settings['width']:g}, {settings['nodes']} nodes"


def curves(
    found: Found, partitions: Mapping[str, str], line: Callable[[Case, Sequence[Run]], Line]
) -> dict[str, list[Line]]:
    """A row of panels for each partition, in it a line for each case, its seeds together.

    Args:
      found: the runs.
      partitions: name to what people call it.
      line: (case, its runs) to how they are drawn.
    """
    drawn = {}
    for partition, called in partitions.items():
        groups: dict[Case, list[Run]] = {}
        for case, run in found.items():
            if case.partition == partition:
                any_seed = case._replace(seed=0)
                groups.setdefault(any_seed, []).append(run)
        # A partition that nothing has run on yet has no row.
        if groups:
            drawn[called] = [line(case, runs) for case, runs in groups.items()]
    return drawn


def lines(figure: str, found: Found) -> dict[str, list[Line]]:
    """The curves of a figure."""

    def line(case: Case, runs: Sequence[Run]) -> Line:
        return Line(_label(figure, case), runs, *_look(figure, case))

    return curves(found, PARTITIONS, line)


def numbers_of(study: Study, figure: str, found: Found) -> list[Numbers]:
    """The numbers of each run."""
    numbers = []
    for case, run in found.items():
        if figure == "2":
            numbers.append(tables.methods_row(study, case, run))
        else:
            numbers.append(tables.of_run(study, case, run))
    return numbers


def sections(study: Study, figure: str, numbers: Sequence[Numbers], found: Found) -> list[str]:
    """The text below the title: setting, table, comparisons."""
    if figure == "2":
        parts = [_about(study), tables.methods_markdown(numbers, study.scale.target)]
        said = tables.against_fl(numbers, study.rates)
        return [*parts, "\n".join(f"- {line}" for line in said)] if said else parts
    parts = [_about(study), tables.runs_markdown(numbers, study.scale.target)]
    lines = vision_claims.told(study, figure, numbers)
    if lines:
        text = tested.claims_table(lines, vision.PARTITIONS)
        parts += ["## Claims", _HOW_TO_READ, text]
    return parts


def further(study: Study, figure: str, rows: Sequence[Numbers]) -> dict[str, Any]:
    """The claims as the figure's JSON has them, beside the rows."""
    return tested.as_json(vision_claims.told(study, figure, rows))


def _label(figure: str, case: Case) -> str:
    if figure == "7":
        return "Interrupted" if case.interrupted else "Normal"
    if figure == "8":
        return case.order.capitalize()
    if figure == "2":
        return METHODS[case.method].label
    return tables.label(case)


def _look(figure: str, case: Case) -> tuple[int, int]:
    """Colour and style."""
    if figure == "5":
        return COMPARED.index(case.method), _STYLES.get(case.epochs, 3)
    if figure == "2":
        return list(METHODS).index(case.method), 0
    if figure == "7":
        number = 1 if case.interrupted else 0
    else:
        number = ORDERS.index(case.order)
    return number, number


def _about(study: Study) -> str:
    scale = study.scale
    settings = scale.settings
    examples = f"{scale.train_examples:,}" if scale.train_examples else "all"
    cycles = ", ".join(f"{count} for E = {epochs}" for epochs, count in scale.cycles.items())
    seeds = ", ".join(str(seed) for seed in scale.seeds)
    if scale.target == 0.6:
        goal = "the papers' target"
    else:
        goal = "this scale's target, not the papers' 60 %"
    return (
        f"Scale {study.scale_name}: {settings['model']} of width {settings['width']:g}, "
        f"{examples} training examples over {settings['nodes']} nodes, batch "
        f"{settings['batch_size']}; cycles (rounds): {cycles}; seeds {seeds}. "
        f"{100 * scale.target:.0f} % is {goal}. Iterations of all nodes count; per node is their "
        "number over the number of nodes."
    )


def draw(
    study: Study, figure: str, rows: Sequence[Numbers], found: Found, path: Path, caption: str
) -> Path:
    """Curves: a panel for each axis."""
    del rows
    return plot_figure(lines(figure, found), path, caption, study.scale.target or None)


SHOW = Show(title, model_in_words, numbers_of, sections, draw, further)
