"""Stage `large`: a Snake step of the models that people fine-tune, weights at random."""

from statistics import median

from experiments.accept import alone
from experiments.accept.outcome import Outcome, line_of
from experiments.accept.sizes import Alone
from experiments.accept.stages import Given
from experiments.bench.rows import HIGHER, LOWER, Row, measured

TABLE = "A step that has the device to itself"
NOTES = (
    "Published beside them: BAdam's peak of 23.5 GB for Llama-3-8B (arXiv 2404.02827), and "
    "torchtune's QLoRA with 7.4 GiB and 2,413 tokens/s on an RTX 4090, each with its own settings.",
    "Weights are noise. The visit is that in the middle of a cycle.",
)


def run(given: Given) -> Outcome:
    """Every model, from the least memory; one that does not run leaves the others alone."""
    rows: list[Row] = []
    failures = []
    for step in given.sizes.large:
        try:
            rows += rows_of(step, alone.seen(step, given.sizes.repeats))
        except Exception as error:
            failures.append(f"{step.subject}: {line_of(error)}")
    return Outcome(rows, failures, NOTES)


def rows_of(step: Alone, seen: alone.Seen) -> list[Row]:
    """Rate and peak of a step, the published ones beside them."""
    subject = step.subject
    tokens = step.batch * step.length
    rates = [tokens / sample.wall_s for sample in seen.samples]
    rows = [
        measured(TABLE, subject, "rate", rates, "tokens/s"),
        Row(TABLE, subject, "loss is finite", float(seen.finite), better=HIGHER, limit=1.0),
        Row(TABLE, subject, "compiled peak", seen.compiled_bytes / 1e9, "GB"),
    ]
    held_bytes = seen.held_bytes or seen.compiled_bytes
    if seen.held_bytes is not None:
        rows.append(Row(TABLE, subject, "measured peak", seen.held_bytes / 1e9, "GB"))
    if step.most_bytes is not None:
        share = held_bytes / step.most_bytes
        rows.append(Row(TABLE, subject, "peak / published", share, better=LOWER, limit=1.0))
    if step.rival_tokens_s is not None:
        share = median(rates) / step.rival_tokens_s
        rows.append(Row(TABLE, subject, "rate / published", share))
    return rows
