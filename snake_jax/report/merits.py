"""Figures of merit: the one number that says how good a run's model is, and how that number reads.

Everything that tables, pictures, the page and the spread over seeds ask of a figure of merit is an
attribute of `Merit`. A new one, say F1, is one more value in `MERITS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from snake_jax.report.units import percent, significant

Record = dict[str, Any]  # a JSON object: a line of metrics.jsonl, config.json or summary.json


class Curve(NamedTuple):
    """A field of the lines of metrics.jsonl that the page draws.

    Attributes:
      key: its name on the page. Two figures of merit share a key only where the field means the
        same in both, since curves of one key are drawn on one axis.
      field: of a line.
      label: as people read it.
      unit: `%` of shares in [0, 1], empty of plain numbers.
      factors: whether two values are compared by their ratio. Such a curve gets a logarithmic axis
        where it spans much.
      in_tables: whether tables show its last value too.
    """

    key: str
    field: str
    label: str
    unit: str = ""
    factors: bool = False
    in_tables: bool = False


LOSSES = (Curve("test_loss", "test_loss", "test loss"), Curve("loss", "loss", "training loss"))


# Of a model on what each node has held out itself: fields node_MERIT_mean, ..., and their labels.
NODE_FIGURES = {
    "mean": "mean over nodes' own data",
    "worst_tenth": "worst tenth of nodes",
    "spread": "spread over nodes",
}


@dataclass(frozen=True)
class Merit:
    """A figure of merit.

    Attributes:
      field: its name in a line of metrics.jsonl.
      name: as people say it.
      split: the examples that it is measured on, in a word: `test`.
      title: heads its rows in the comparison table.
      final: field of summary.json with the finished model's value.
      best: field of summary.json with the value at the best evaluation.
      target: field of config.json and summary.json with the value that the user wants to reach.
      before: field of summary.json with the value of the model that training began with; None where
        runs do not record it.
      lower_is_better: False where higher is.
      unit: `%` of a share in [0, 1], empty of a plain number.
      show: prints a value.
      beside: what else such runs measure, besides the figure of merit.
    """

    field: str
    name: str
    split: str
    title: str
    final: str
    best: str
    target: str
    before: str | None = None
    lower_is_better: bool = False
    unit: str = "%"
    show: Callable[[float], str] = percent
    beside: tuple[Curve, ...] = LOSSES

    @property
    def is_share(self) -> bool:
        """Two shares are compared by their difference in points, other values by their ratio."""
        return self.unit == "%"

    @property
    def label(self) -> str:
        """Of an axis: `test accuracy`."""
        return f"{self.split} {self.name}"

    @property
    def curves(self) -> tuple[Curve, ...]:
        """All that the page draws of such a run; its own curve leads."""
        own = Curve(self.field, self.field, self.label, self.unit, factors=not self.is_share)
        return (own, *self.beside)

    @property
    def in_tables(self) -> tuple[Curve, ...]:
        """Those of `beside` whose last value stands in tables."""
        return tuple(curve for curve in self.beside if curve.in_tables)

    def said(self, value: float) -> str:
        """As a phrase: `61.0 % accuracy`, `perplexity 12.3`."""
        return self.phrase(self.show(value))

    def phrase(self, shown: str) -> str:
        """The phrase around a value as printed, or around what stands in its place."""
        return f"{shown} {self.name}" if self.is_share else f"{self.name} {shown}"

    def wanted(self, settings: Mapping[str, Any]) -> float | None:
        """The value that a run is asked to reach; None where it is asked for none.

        Where lower is better, 0 stands for no target: nothing could reach it.
        """
        target = settings.get(self.target)
        if target == 0 and self.lower_is_better:
            return None
        return target


ACCURACY = Merit(
    field="accuracy",
    name="accuracy",
    split="test",
    title="Accuracy on the test set",
    final="final_accuracy",
    best="best_accuracy",
    target="target_accuracy",
)
# Of a language model: exp of the mean negative log-likelihood of a held-out token, in nats.
PERPLEXITY = Merit(
    field="perplexity",
    name="perplexity",
    split="held-out",
    title="Perplexity on held-out text",
    final="perplexity_after",
    best="best_perplexity",
    target="target_perplexity",
    before="perplexity_before",
    lower_is_better=True,
    unit="",
    show=significant,
    # Other keys than those of images: a mean over tokens is no mean over images.
    beside=(
        Curve("token_accuracy", "accuracy", "next-token accuracy", "%", in_tables=True),
        # Of whole texts by greedy decoding, which is not SCCT's mean over devices.
        Curve("text_exact_match", "exact_match", "exact match", "%", in_tables=True),
        Curve("token_test_loss", "test_loss", "held-out loss a token"),
        Curve("token_loss", "loss", "training loss a token"),
    ),
)
# Of answers to questions, a mean over devices: `snake_jax.data.text.answer_scores`.
F1 = Merit(
    field="f1",
    name="F1",
    split="held-out",
    title="Answers to held-out questions",
    final="final_f1",
    best="best_f1",
    target="target_f1",
    beside=(
        Curve("exact_match", "exact_match", "exact match", "%", in_tables=True),
        Curve("shared_f1", "shared_f1", "F1, shared questions", "%", in_tables=True),
        Curve("personal_f1", "personal_f1", "F1, personal questions", "%", in_tables=True),
        Curve("answer_test_loss", "test_loss", "held-out loss a device"),
        Curve("answer_loss", "loss", "training loss a device"),
    ),
)
# Where a run's lines have the fields of several, the last of those leads; where they have none, the
# first.
MERITS = (ACCURACY, PERPLEXITY, F1)


def merit_of_lines(records: Sequence[Record]) -> Merit:
    """The figure of merit whose field stands in the lines, evaluated yet or not."""
    fields: set[str] = set()
    for record in records:
        fields.update(record)
    for merit in reversed(MERITS):
        if merit.field in fields:
            return merit
    return MERITS[0]
