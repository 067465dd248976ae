"""The rows of the comparison table: what a run reached, what that cost, the work done, the
setting.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from snake_jax.report.runs import (
    ACCURACY,
    PERPLEXITY,
    Merit,
    Run,
    along,
    before,
    best,
    common_merit,
    cost_to_reach,
    cumulative,
    curve,
    final,
    from_summary,
    setting,
    throughput,
)
from snake_jax.report.units import human, percent

_REACHED_ON = ("iterations", "tokens", "bytes", "flops", "seconds")
_SETTINGS = ("algorithm", "dataset", "nodes", "partition", "alpha", "learning_rate", "seed")
_LANGUAGE_SETTINGS = (
    "algorithm",
    "model",
    "data",
    "nodes",
    "partition",
    "lora_rank",
    "frozen_dtype",
    "max_length",
    "learning_rate",
    "seed",
)


class Row(NamedTuple):
    """A line of the table: its value for a run, how it is printed, how two runs are set against
    each other.
    """

    key: str
    label: str
    value: Callable[[Run], Any]
    show: Callable[[Any], str]
    against: str = "ratio"


Groups = list[tuple[str, list[Row]]]


def groups(runs: Sequence[Run]) -> Groups:
    """The rows under their headings; the figure of merit that all runs share leads.

    Raises:
      UserError: the runs share none.
    """
    merit = common_merit(runs)
    return [
        *(_accuracy() if merit == ACCURACY else _perplexity()),
        ("Cost", savings() if merit == ACCURACY else [*savings(), *_state()]),
        *_to_target(runs, merit),
        ("Work", list(_work(merit))),
        ("Setting", list(_setting(merit))),
    ]


def _accuracy() -> Groups:
    rows = [
        Row("final_accuracy", "final", final, percent, "difference"),
        Row("best_accuracy", "best", best, percent, "difference"),
    ]
    return [("Accuracy on the test set", rows)]


def _perplexity() -> Groups:
    rows = [
        Row("perplexity_before", "before training", before, PERPLEXITY.show),
        Row("perplexity_after", "final", final, PERPLEXITY.show),
        Row("best_perplexity", "best", best, PERPLEXITY.show),
        Row("token_accuracy", "next-token accuracy", token_accuracy, percent, "difference"),
    ]
    return [("Perplexity on held-out text", rows)]


def token_accuracy(run: Run) -> float | None:
    """Share of held-out tokens that are the model's first choice, at the last evaluation."""
    known = curve(run, "iterations", "accuracy")[1]
    return float(known[-1]) if known.size else None


def savings() -> list[Row]:
    """What a run costs its nodes and the network."""
    bytes_, flops = _total("bytes"), _total("flops")
    return [
        Row("train_flops", "training FLOPs", flops, _unit("FLOP")),
        Row(
            "flops_per_iteration",
            "  an iteration",
            _per(flops, _total("iterations")),
            _unit("FLOP"),
        ),
        Row(
            "peak_train_bytes",
            "peak memory at a node",
            partial(from_summary, key="peak_train_bytes"),
            _unit("B"),
        ),
        Row("bytes", "bytes sent, up and down", bytes_, _unit("B")),
        Row("bytes_up", "  up", lambda run: float(cumulative(run, "bytes_up")[-1]), _unit("B")),
        Row(
            "bytes_down", "  down", lambda run: float(cumulative(run, "bytes_down")[-1]), _unit("B")
        ),
        Row("bytes_per_cycle", "  a cycle or round", _per(bytes_, _cycles), _unit("B")),
        Row("bytes_per_node_visit", "  a visit of a node", _per(bytes_, _node_visits), _unit("B")),
    ]


def _state() -> list[Row]:
    return [
        Row("state_bytes", "state at a node", partial(from_summary, key="state_bytes"), _unit("B")),
        Row(
            "trainable_params",
            "trainable parameters",
            partial(from_summary, key="trainable_params"),
            _unit(),
        ),
    ]


def _to_target(runs: Sequence[Run], merit: Merit) -> Groups:
    targets = [setting(run, merit.target) for run in runs]
    # A perplexity of 0 says that there is no target; an accuracy of 0 is one.
    target = next((t for t in targets if t or (t is not None and not merit.lower_is_better)), None)
    if target is None:
        return []
    rows = [
        Row(
            f"{axis}_to_target",
            axis,
            partial(cost_to_reach, target=target, axis=axis),
            _unit(merit.axes[axis].unit),
        )
        for axis in _REACHED_ON
        if axis in merit.axes
    ]
    name = "" if merit == ACCURACY else f"{merit.field} "
    return [(f"Cost to reach {name}{merit.show(target)}", rows)]


def _work(merit: Merit) -> Iterable[Row]:
    yield Row("iterations", "iterations", _total("iterations"), _unit())
    yield Row("examples", "examples", _total("examples"), _unit())
    if "tokens" in merit.axes:
        yield Row("tokens", "tokens", _total("tokens"), _unit())
        yield Row(
            "target_tokens",
            "  with a loss",
            lambda run: float(cumulative(run, "target_tokens")[-1]),
            _unit(),
        )
        yield Row("tokens_per_s", "  a second of training", throughput, "{:,.0f}".format)
    yield Row("node_visits", "visits of a node", _node_visits, _unit())
    yield Row("cycles", "cycles or rounds", _cycles, _unit())
    yield Row("train_s", "training time", _total("seconds"), _unit("s"))
    yield Row("compile_s", "compile time", partial(from_summary, key="compile_s"), _unit("s"))
    yield Row(
        "num_compilations",
        "programs compiled",
        partial(from_summary, key="num_compilations"),
        _unit(),
    )


def _setting(merit: Merit) -> Iterable[Row]:
    yield Row("num_params", "parameters", partial(from_summary, key="num_params"), _unit(), "")
    for key in _SETTINGS if merit == ACCURACY else _LANGUAGE_SETTINGS:
        yield Row(key, key, partial(setting, key=key), str, "")


def _total(axis: str) -> Callable[[Run], float]:
    return lambda run: float(along(run, axis)[-1])


def _node_visits(run: Run) -> int:
    nodes = [record.get("node") for record in run.metrics]
    return sum(len(node) if isinstance(node, list) else 1 for node in nodes)


def _cycles(run: Run) -> int:
    return len({record.get("cycle") for record in run.metrics})


def _per(
    amount: Callable[[Run], float], count: Callable[[Run], float]
) -> Callable[[Run], float | None]:
    return lambda run: amount(run) / count(run) if count(run) else None


def _unit(unit: str = "") -> Callable[[Any], str]:
    return lambda value: human(value, unit)
