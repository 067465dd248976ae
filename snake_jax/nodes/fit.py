"""Whether a node is fit to serve a run: what it can do, how much data it holds, and of which kind.

The Process Controller decides "in terms of computational capability, resource availability, and
data relevance & quality" (snake_learning_magazine, "Key Enabling Components"). How a node's labels
are spread is told only where nodes consent (`--share_labels`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from snake_jax.config import RunConfig
from snake_jax.data.divergence import MEASURES
from snake_jax.data.node_quality import NodeQuality, said
from snake_jax.errors import UserError
from snake_jax.nodes.fleet import Fleet


def refused(
    config: RunConfig, fleet: Fleet, counts: np.ndarray, quality: Sequence[NodeQuality] = ()
) -> dict[int, str]:
    """`{node: why}` of the nodes that are not admitted.

    Args:
      config: of the run.
      fleet: what nodes can do, as stated.
      counts: `[K, C]` examples of each label at each node.
      quality: of each node's data, as it found it; empty: none looked.

    Raises:
      UserError: labels are to be compared that nodes do not tell.
    """
    if config.max_label_divergence and not config.share_labels:
        raise UserError(
            f"--max_label_divergence={config.max_label_divergence:g} compares the nodes' labels, "
            "which they do not tell: say --share_labels too, or leave it out"
        )
    # Of many nodes it takes a while to look at each.
    of_node = config.min_examples, config.min_flops_per_s, config.min_memory_bytes
    of_data = config.max_label_divergence, config.max_dropped
    if not any((*of_node, *of_data)):
        return {}
    found = {}
    for node in range(min(config.nodes, len(counts))):
        why = _why(config, fleet, counts, node)
        if not why and config.max_dropped and node < len(quality):
            share = quality[node].dropped_share
            if share > config.max_dropped:
                why = (
                    f"had to drop {100 * share:.3g} % of its data, more than "
                    f"--max_dropped={config.max_dropped:g}"
                )
        if why:
            found[node] = why
    return found


def _why(config: RunConfig, fleet: Fleet, counts: np.ndarray, node: int) -> str:
    """Why this node is refused; empty where it is not."""
    held = int(counts[node].sum())
    if held < config.min_examples:
        return f"holds {held} examples, fewer than --min_examples={config.min_examples}"
    figures = fleet.nodes[node]
    for flag in ("flops_per_s", "memory_bytes"):
        asked, has = getattr(config, f"min_{flag}"), getattr(figures, flag)
        if has < asked:
            return f"has {flag} {has:.4g}, less than --min_{flag}={asked:.4g}"
    if config.max_label_divergence and held:
        apart = float(MEASURES[config.distill_measure](counts[node], counts.sum(0)))
        if apart > config.max_label_divergence:
            return (
                f"has labels {apart:.3f} from all nodes', over "
                f"--max_label_divergence={config.max_label_divergence:g}"
            )
    return ""


def described(
    config: RunConfig, counts: np.ndarray, node: int, quality: Sequence[NodeQuality] = ()
) -> str:
    """What is said of a node that is admitted."""
    if node >= len(counts):
        return ""
    text = f"it holds {int(counts[node].sum())} examples"
    found = said(quality[node]) if node < len(quality) else ""
    if found:
        text = f"{text} ({found})"
    if not config.share_labels:
        return text
    return f"{text}, by label {' '.join(str(int(count)) for count in counts[node])}"


@dataclass(frozen=True)
class About(Sequence[str]):
    """What is said of each node that is admitted, put into words when it is asked for: of many
    nodes few are ever asked about.

    Attributes:
      config: of the run.
      counts: `[K, C]` examples of each label at each node.
      quality: of each node's data, as it found it; empty: none looked.
    """

    config: RunConfig
    counts: np.ndarray
    quality: Sequence[NodeQuality] = ()

    def __len__(self) -> int:
        """How many nodes there are."""
        return self.config.nodes

    @overload
    def __getitem__(self, node: int) -> str: ...
    @overload
    def __getitem__(self, node: slice) -> tuple[str, ...]: ...
    def __getitem__(self, node: int | slice) -> str | tuple[str, ...]:
        """Of the node of this number."""
        if isinstance(node, slice):
            return tuple(self[number] for number in range(len(self))[node])
        return described(self.config, self.counts, range(len(self))[node], self.quality)
