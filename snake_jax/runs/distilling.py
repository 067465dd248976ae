"""Whether visits distil: `--distill=auto` decides by the nodes' data and hyper-parameters.

The distillation module "is conditionally activated according to the measured inter-node data
distribution discrepancy (e.g., Kullback-Leibler divergence, Jensen-Shannon distance or
hyperparameter fitting differences)" (snake_learning_magazine, "Initialization"). Data decides by a
test, since small nodes differ by chance alone. The hyper-parameter that nodes have of their own is
the rank of their adapters.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from snake_jax.config import RunConfig
from snake_jax.data.divergence import Divergence, beyond_chance


class Verdict(NamedTuple):
    """Whether visits distil.

    Attributes:
      on: whether they do.
      why: in words.
      divergence: of the nodes' labels, tested; None: nothing depended on it.
    """

    on: bool
    why: str
    divergence: Divergence | None = None


def decided(
    config: RunConfig, tables: Sequence[np.ndarray], ranks: Sequence[int], useful: bool = True
) -> Verdict:
    """What `--distill` comes to for these nodes.

    Args:
      config: of the run.
      tables: `[K, C]` each, examples of each label at each node; of several seeds one each.
      ranks: of each node's adapters; empty: all alike.
      useful: whether the method has a use for distillation.

    Raises:
      UserError: no node has an example.
    """
    if not useful:
        return Verdict(False, f"--algorithm={config.algorithm} has no use for it")
    if config.distill != "auto":
        return Verdict(config.distill == "on", f"--distill={config.distill}")

    # The second trigger needs no test: hyper-parameters are what they are.
    found = beyond_chance(tables, config.distill_measure, config.distill_level, config.seed)
    if len(set(ranks)) > 1:
        listed = ", ".join(str(rank) for rank in sorted(set(ranks)))
        return Verdict(True, f"the nodes' ranks differ ({listed})", found)
    if found.p_value > config.distill_level:
        return Verdict(False, f"within chance at --distill_level={config.distill_level:g}", found)
    if found.excess <= config.distill_threshold:
        why = f"at most --distill_threshold={config.distill_threshold:g} above chance"
        return Verdict(False, why, found)
    return Verdict(True, f"beyond chance at --distill_level={config.distill_level:g}", found)


def said(verdict: Verdict, value: float, measure: str) -> str:
    """The verdict for people, after the name of what diverges: `(js) 0.083, ...`.

    Args:
      verdict: of a run.
      value: its nodes' divergence.
      measure: "js" or "kl".
    """
    text = f"({measure}) {value:.3f}"
    found = verdict.divergence
    if found is not None:
        text += f", of a random deal {found.by_chance:.3f} (p = {found.p_value:.3g})"
    return f"{text}; distillation {'on' if verdict.on else 'off'}: {verdict.why}"


def summary(verdict: Verdict) -> dict[str, Any]:
    """What summary.json says of the verdict."""
    found = verdict.divergence
    return {
        "distilled": verdict.on,
        "distilled_why": verdict.why,
        "divergence_by_chance": None if found is None else found.by_chance,
        "divergence_p_value": None if found is None else found.p_value,
    }
