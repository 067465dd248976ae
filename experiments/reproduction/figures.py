"""A figure from the runs that are there: PNG, Markdown and JSON in the results folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.reproduction import (
    claims,
    claims_figures,
    convergence,
    convergence_figures,
    language,
    language_figures,
    methods,
    methods_figures,
    methods_text,
    methods_text_figures,
    published,
    published_figures,
    rounds,
    rounds_figures,
    tables,
    vision,
    vision_figures,
)
from experiments.reproduction.runs import Study
from experiments.reproduction.show import Show
from snake_jax.report.figures import plot_layers

TOPICS = (vision.TOPIC, language.TOPIC)
COMPARISONS = (
    methods.TOPIC,
    methods_text.TOPIC,
    *claims.TOPICS,
    convergence.TOPIC,
    published.TOPIC,
    rounds.TOPIC,
)
"""Beside the papers' figures."""
FIGURES = tuple(sorted([*vision.TOPIC.figures, *language.TOPIC.figures]))
_SHOW: dict[str, Show] = {
    vision.TOPIC.name: vision_figures.SHOW,
    language.TOPIC.name: language_figures.SHOW,
    methods.TOPIC.name: methods_figures.SHOW,
    methods_text.TOPIC.name: methods_text_figures.SHOW,
    claims.IMAGES: claims_figures.SHOW,
    claims.TEXT: claims_figures.SHOW,
    convergence.FIGURE: convergence_figures.SHOW,
    published.FIGURE: published_figures.SHOW,
    rounds.FIGURE: rounds_figures.SHOW,
}
# Those of the comparisons: figures that the papers do not have, and so no number for.
OWN = tuple(figure for topic in COMPARISONS for figure in topic.figures)


def write(study: Study, figure: str) -> list[Path]:
    """Draws and tabulates a figure from what its runs have so far, and says which are missing.

    Returns:
      The files written; nothing where no run has anything to show.
    """
    study.results.mkdir(parents=True, exist_ok=True)
    if figure == "4":
        return _layers(study)
    cases = study.topic.of_figure(figure, study.scale)
    show = _SHOW[study.topic.name]
    found = {}
    for case in cases:
        run = study.read(case)
        if run is not None:
            found[case] = run
    if not found:
        return []

    # The picture, whose caption says what was run.
    title = show.title(study, figure)
    picture = study.results / f"{_stem(figure)}.png"
    caption = f"{title} (scale {study.scale_name}: {show.model_in_words(study, found)})"
    rows = show.numbers_of(study, figure, found)
    show.draw(study, figure, rows, found, picture, caption)

    # The numbers, and what is not there yet.
    missing = []
    for case in cases:
        if case not in found or not study.finished(case):
            missing.append(study.name(case))
    parts = [f"# {title}" if figure in OWN else f"# Figure {figure}: {title}"]
    parts += show.sections(study, figure, rows, found)
    if missing:
        parts.append(f"Not finished: {', '.join(missing)}.")
    numbers = {"rows": rows, "missing": missing, **show.further(study, figure, rows)}
    return [picture, *_files(study, figure, parts, numbers)]


def _stem(figure: str) -> str:
    """How the files of a figure are called."""
    return figure if figure in OWN else f"figure{figure}"


def _layers(study: Study) -> list[Path]:
    """Figure 4, which is counted from shapes."""
    rows = tables.layers_table()
    names = []
    shares: dict[str, list[float]] = {
        "parameters": [],
        "forward FLOPs": [],
        "visit's bytes / FL's": [],
        "visit's FLOPs / FL's": [],
        "visit's memory / FL's": [],
    }
    forward = sum(row["forward_flops"] for row in rows)
    params = sum(row["parameters"] for row in rows)
    for row in rows:
        names.append(row["layer"])
        shares["parameters"].append(row["parameters"] / params)
        shares["forward FLOPs"].append(row["forward_flops"] / forward)
        shares["visit's bytes / FL's"].append(row["visit_bytes_share"])
        shares["visit's FLOPs / FL's"].append(row["visit_flops_share"])
        shares["visit's memory / FL's"].append(row["visit_memory_share"])
    picture = plot_layers(names, shares, study.results / "figure4.png")

    # The first and the last layer train in every visit, so the mean is over the others.
    middle = rows[1:-1]
    means = {}
    for kind in ("bytes", "flops", "memory"):
        together = sum(row[f"visit_{kind}_share"] for row in middle)
        means[kind] = 100 * together / len(middle)
    text = (
        "Full-width VGG-11 for 32x32x3 images and 10 classes, counted from shapes, a batch of 32; "
        "nothing is trained. A visit trains the first layer, this one and the last, and sends "
        "these three up; its memory is weights, gradients and momentum, without activations. Full "
        "training is FL's: all layers. Mean over the middle layers: "
        f"{means['bytes']:.1f} % of the bytes, {means['flops']:.1f} % of the FLOPs, "
        f"{means['memory']:.1f} % of the memory."
    )
    parts = [f"# Figure 4: {vision_figures.TITLES['4']}", text, tables.layers_markdown(rows)]
    return [picture, *_files(study, "4", parts, {"rows": rows})]


def _files(study: Study, figure: str, parts: Sequence[str], numbers: dict[str, Any]) -> list[Path]:
    markdown = study.results / f"{_stem(figure)}.md"
    text = "\n\n".join(parts)
    markdown.write_text(text + "\n")
    content = {"figure": figure, "scale": study.scale_name, **numbers}
    plain = study.results / f"{_stem(figure)}.json"
    text = json.dumps(content, indent=1)
    plain.write_text(text + "\n")
    return [markdown, plain]
