"""How often auto distils: the committed counts, the page that shows them, and the script's own."""

import json
from pathlib import Path

from scipy.stats import binom

from experiments.distill_decisions import RESULTS, decisions

PAGE = Path(__file__).parents[2] / "docs" / "node_management.md"


def test_the_page_shows_the_committed_counts_and_alike_nodes_are_told_so_as_the_level_says():
    kept = json.loads(RESULTS.read_text())
    page = PAGE.read_text()
    for row in kept["rows"]:
        kind = "IID" if row["alpha"] is None else f"Dirichlet {row['alpha']}"
        counts = (row["on_by_bound"], row["on_by_test_js"], row["on_by_test_kl"])
        cells = (row["nodes"], kind, *counts)
        assert f"| {' | '.join(str(cell) for cell in cells)} |" in page
        for count in counts[1:]:
            if row["alpha"] is None:
                assert count <= binom.ppf(0.999, row["seeds"], kept["level"])
            else:
                assert count == row["seeds"]


def test_the_script_counts_over_seeds():
    row = decisions("dirichlet", 9, 0.3, range(1))
    counts = (row["seeds"], row["on_by_bound"], row["on_by_test_js"], row["on_by_test_kl"])
    assert counts == (1, 1, 1, 1)
