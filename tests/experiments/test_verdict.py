"""The rule by which verdicts follow from differences over seeds, counted by hand."""

import pytest

from experiments.reproduction.verdict import (
    CANNOT_TELL,
    DOES_NOT_HOLD,
    HOLDS,
    differences,
    paired,
    sentence,
    verdict,
)


def test_the_paired_test_is_students():
    # Mean 2, deviation 1, t = 2 / (1 / sqrt(3)) = 3.4641; tables: p = 0.0742 at two degrees.
    found = paired([1.0, 2.0, 3.0])
    assert found[:3] == (3, 2.0, 1.0)
    assert found.p == pytest.approx(0.0742, abs=5e-5)
    assert paired([1.0, 2.0, 3.0], margin=2.0).p == 1.0
    # Of four degrees of freedom 2.776 is significant at 5 %.
    assert paired([x + 2.776 * (2.5 / 5) ** 0.5 for x in (-2, -1, 0, 1, 2)]).p == pytest.approx(
        0.05, abs=1e-4
    )


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([5.0], CANNOT_TELL),
        ([5.0, 5.1], CANNOT_TELL),
        ([5.0, 5.1, 4.9], HOLDS),
        ([-5.0, -5.1, -4.9], DOES_NOT_HOLD),
        ([5.0, -5.1, 4.9], CANNOT_TELL),
        ([1.0, 1.0, 1.0], HOLDS),
        ([0.0, 0.0, 0.0], CANNOT_TELL),
    ],
)
def test_a_verdict_follows_from_mean_spread_and_seeds(differences, expected):
    assert verdict(paired(differences)) == expected


def test_a_margin_is_what_the_claim_asks_for():
    found = paired([0.03, 0.031, 0.029], margin=0.05)
    assert verdict(found, margin=0.05) == DOES_NOT_HOLD
    assert verdict(paired([0.03, 0.031, 0.029])) == HOLDS


def test_a_rival_whose_rate_lies_at_the_edge_of_its_grid_decides_nothing_in_a_claims_favour():
    assert verdict(paired([5.0, 5.1, 4.9]), rival_at_edge=True) == CANNOT_TELL
    assert verdict(paired([-5.0, -5.1, -4.9]), rival_at_edge=True) == DOES_NOT_HOLD


def test_runs_are_compared_with_their_rivals_of_the_same_seed():
    ours = [{"seed": 2, "accuracy": 0.5}, {"seed": 0, "accuracy": 0.4}, {"seed": 7, "accuracy": 1}]
    theirs = [{"seed": 0, "accuracy": 0.25}, {"seed": 2, "accuracy": 0.75}]
    assert differences(ours, theirs, "accuracy") == pytest.approx([-0.25, 0.15])


def test_a_comparison_is_told_with_spread_seeds_and_verdict():
    assert sentence(paired([2.5]), "higher", "points") == (
        "+2.50 points, one seed; that it is higher: cannot tell"
    )
    assert sentence(paired([5.0, 5.5, 4.5]), "higher", "points", True) == (
        "+5.00 points (deviation 0.50), 3 seeds, p = 0.0033, the other's learning rate at the edge "
        "of its grid; that it is higher: cannot tell"
    )
