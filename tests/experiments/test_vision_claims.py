"""What runs of figures 5, 7 and 8 say of the papers' claims, by seeds, epochs and tuning."""

from pathlib import Path

import pytest

from experiments.reproduction import tested, vision, vision_claims
from experiments.reproduction.cases import Case
from experiments.reproduction.runs import Study
from experiments.reproduction.verdict import CANNOT_TELL, DOES_NOT_HOLD, HOLDS

SCALE = vision.SCALES["cpu"]._replace(cycles={1: 10, 3: 4}, seeds=(0, 1, 2))


def study_of(rates=None):
    nowhere = Path("nowhere")
    return Study(vision.TOPIC, "cpu", SCALE, {"data": "cifar10"}, nowhere, nowhere, rates or {})


def rows_of(accuracies, to_target=None):
    """A row for each seed of each case of `{case: accuracies}`."""
    rows = []
    for case, values in accuracies.items():
        for seed, value in enumerate(values):
            row = {**case._asdict(), "seed": seed, "finished": True, "final_accuracy": value}
            row["iterations_per_node_to_target"] = (to_target or {}).get(case)
            row["bytes_to_target"] = None
            if case in (to_target or {}):
                row["bytes_to_target"] = 1e6 * to_target[case]
            rows.append(row)
    return rows


def test_frameworks_are_compared_for_each_number_of_local_epochs():
    runs = {
        Case("snake", "iid", 1): (0.40, 0.41, 0.42),
        Case("fedavg", "iid", 1): (0.41, 0.42, 0.43),
        Case("accelerated_fl", "iid", 1): (0.38, 0.39, 0.401),
        Case("snake", "iid", 3): (0.30, 0.31, 0.32),
        Case("fedavg", "iid", 3): (0.40, 0.41, 0.42),
    }
    goal = {Case("snake", "iid", 1): 70, Case("fedavg", "iid", 1): 140}
    lines = vision_claims.told(study_of(), "5", rows_of(runs, goal))
    said = {(line.claim.text, line.side): (line.found.mean, line.verdict) for line in lines}
    few, many = "Snake Learning, E = 1", "Snake Learning, E = 3"
    assert said == {
        ("Snake is above 95 % of FL", few): (pytest.approx(41 - 0.95 * 42), HOLDS),
        ("Snake is above FL", few): (pytest.approx(-1), DOES_NOT_HOLD),
        ("Snake is above Accelerated FL", few): (pytest.approx(1.967, abs=1e-3), HOLDS),
        ("Snake reaches 35 % after fewer iterations of a node", few): (70, HOLDS),
        ("Snake reaches 35 % after fewer bytes", few): (70, HOLDS),
        ("Snake is above 95 % of FL", many): (pytest.approx(31 - 0.95 * 41), DOES_NOT_HOLD),
        ("Snake is above FL", many): (pytest.approx(-10), DOES_NOT_HOLD),
    }
    # Where FL's rate lies at an edge, only what speaks against Snake can be told.
    edge = {"fedavg/iid": {"chosen": 0.1, "at_the_edge_of_the_grid": True}}
    lines = vision_claims.told(study_of(edge), "5", rows_of(runs))
    assert [line.verdict for line in lines] == [
        CANNOT_TELL,
        DOES_NOT_HOLD,
        HOLDS,
        DOES_NOT_HOLD,
        DOES_NOT_HOLD,
    ]


def test_an_interrupted_layer_is_held_to_the_papers_share_on_either_data():
    snake = Case("snake", "iid", 1)
    runs = {}
    for partition in ("iid", "dirichlet"):
        runs[snake._replace(partition=partition)] = (0.50, 0.51, 0.52)
        interrupted = snake._replace(partition=partition, interrupted=True)
        runs[interrupted] = (0.492, 0.5018, 0.5116)
    iid, dirichlet = vision_claims.told(study_of(), "7", rows_of(runs))
    # 98.4 % of what it is else: below 98.8, above 97.8.
    assert (iid.claim.share, iid.verdict) == (0.988, DOES_NOT_HOLD)
    assert (dirichlet.claim.share, dirichlet.verdict) == (0.978, HOLDS)


def test_orders_are_compared_as_the_papers_do():
    snake = Case("snake", "iid", 1)
    runs = {snake: (0.50, 0.51, 0.52)}
    runs[snake._replace(order="random")] = (0.499, 0.511, 0.519)
    runs[snake._replace(order="reverse")] = (0.48, 0.491, 0.50)
    above, alike = vision_claims.told(study_of(), "8", rows_of(runs))
    assert (above.claim.text, above.verdict) == ("sequential order is above reverse", HOLDS)
    assert (alike.claim.margin, alike.verdict) == (-1, HOLDS)
    assert vision_claims.told(study_of(), "2", rows_of(runs)) == []
    text = tested.claims_table([above, alike], vision.PARTITIONS)
    assert (
        "| Snake Learning, E = 1 against Snake Learning, E = 1, reverse order | +1.97 points | "
        in text
    )
