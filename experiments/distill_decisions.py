"""How often `--distill=auto` turns distillation on, over seeds: the test against one fixed bound.

The bound is the rule that was there before: Jensen-Shannon distance above 0.1, which small nodes
with data of one distribution pass by chance. Data: the bundled digits, laid out anew by every seed.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from snake_jax.data import partition
from snake_jax.data.divergence import beyond_chance, label_divergence
from snake_jax.data.images.quality import clean
from snake_jax.data.images.sources import load_dataset

RESULTS = Path(__file__).parent / "results" / "distill_decisions.json"
SEEDS = 100
LEVEL = 0.01
BOUND = 0.1
CASES = (
    ("iid", 9, 2.0),
    ("iid", 16, 2.0),
    ("dirichlet", 9, 2.0),
    ("dirichlet", 9, 0.3),
    ("dirichlet", 16, 0.3),
)


def decisions(kind: str, nodes: int, alpha: float, seeds: Sequence[int]) -> dict[str, object]:
    """Of how many seeds each rule turns distillation on."""
    dataset, _ = clean(load_dataset("digits"))
    labels = dataset.train.labels
    by_bound = 0
    by_test = dict.fromkeys(("js", "kl"), 0)
    for seed in seeds:
        shards = partition.split_over_nodes(kind, labels, nodes, alpha, seed)
        counts = partition.label_counts(shards, labels, dataset.num_classes)
        by_bound += label_divergence(counts) > BOUND
        for measure in by_test:
            found = beyond_chance([counts], measure, LEVEL, seed)
            by_test[measure] += found.p_value <= LEVEL
    return {
        "partition": kind,
        "nodes": nodes,
        "alpha": None if kind == "iid" else alpha,
        "seeds": len(seeds),
        "examples": len(labels),
        "on_by_bound": int(by_bound),
        "on_by_test_js": int(by_test["js"]),
        "on_by_test_kl": int(by_test["kl"]),
    }


def main() -> None:
    """Counts, prints and keeps."""
    rows = []
    for case in CASES:
        rows.append(decisions(*case, range(SEEDS)))
        print(json.dumps(rows[-1]), file=sys.stderr)
    about = {"level": LEVEL, "bound": BOUND, "rows": rows}
    RESULTS.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
