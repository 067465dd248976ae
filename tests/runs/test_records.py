"""What summary.json says of a figure of merit and of the way to a target."""

import pytest

from snake_jax.runs import records


def lines(field, values):
    cost = dict.fromkeys(records._SUMMED, 1)
    return [{**cost, field: value, "bytes_up": 10} for value in values]


def test_accuracy_is_the_last_and_the_best_evaluation_and_what_the_target_took():
    found = records.of_accuracy(lines("accuracy", [0.2, None, 0.7, 0.6]), 0.65)
    assert (found["final_accuracy"], found["best_accuracy"]) == (0.6, 0.7)
    assert (found["iterations_to_target"], found["bytes_up_to_target"]) == (3, 30)


def test_less_perplexity_is_better():
    found = records.of_perplexity(lines("perplexity", [9.0, 5.0, None, 6.0]), 5.0)
    assert (found["perplexity_after"], found["best_perplexity"]) == (6.0, 5.0)
    assert found["iterations_to_target"] == 2


def test_a_target_never_reached_has_no_cost_and_none_at_all_is_not_spoken_of():
    missed = records.of_accuracy(lines("accuracy", [0.2, 0.3]), 0.9)
    assert missed["bytes_up_to_target"] is None
    assert "bytes_up_to_target" not in records.of_perplexity(lines("perplexity", [9.0]), 0.0)


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_a_line_without_an_evaluation_reaches_no_target(lower_is_better):
    some = lines("accuracy", [None, 0.0])
    assert records.first_reached(some, "accuracy", 0.0, lower_is_better) == 1
