"""What fine-tuning came to, in the few lines that people of language models look for."""

from snake_jax.report.runs import Run, from_summary, last, throughput, total
from snake_jax.report.units import UNKNOWN, human, percent, significant


def closing_table(run: Run) -> str:
    """Steps, tokens a second, peak bytes, losses and what the held-out text says, a line each."""
    peak = from_summary(run, "peak_train_bytes")
    speed = throughput(run)
    rows = {
        "steps": human(total(run, "iterations")),
        "tokens": human(total(run, "tokens")),
        "tokens/s": UNKNOWN if speed is None else f"{speed:,.0f}",
        "peak bytes": UNKNOWN if peak is None else f"{peak:,} ({human(peak, 'B')})",
        "train loss": _number(run, "loss"),
        "held-out loss": _number(run, "test_loss"),
        "perplexity": _change(run),
        "token accuracy": _share(run, "accuracy"),
        "exact match": _share(run, "exact_match"),
    }
    width = max(map(len, rows))
    lines = [f"  {name.ljust(width)}  {value}" for name, value in rows.items()]
    return "\n".join(["fine-tuned", *lines])


def _number(run: Run, field: str) -> str:
    value = last(run, field)
    return UNKNOWN if value is None else f"{value:.4f}"


def _share(run: Run, field: str) -> str:
    value = last(run, field)
    return UNKNOWN if value is None else percent(value)


def _change(run: Run) -> str:
    """Before training and after it."""
    shown = []
    for key in ("perplexity_before", "perplexity_after"):
        value = from_summary(run, key)
        shown.append(UNKNOWN if value is None else significant(value))
    return " -> ".join(shown)
