"""What runs of figures 6 and 9 say of the papers' claims, by seeds, epochs and tuning."""

import math
from pathlib import Path

import pytest

from experiments.reproduction import language, language_claims, tested
from experiments.reproduction.runs import Study
from experiments.reproduction.verdict import CANNOT_TELL, DOES_NOT_HOLD, HOLDS

SCALE = language.SCALES["cpu"]._replace(cycles={1: 9, 3: 3}, seeds=(0, 1, 2))
LOWER = "after as many passes Snake's perplexity is lower than FL's"
DISTILLED = "distillation lowers Snake's perplexity"
GAINS = "Snake gains on FL with more local epochs"


def study_of(rates=None):
    nowhere = Path("nowhere")
    sources = {"model": "m", "data": "d"}
    return Study(language.TOPIC, "cpu", SCALE, sources, nowhere, nowhere, rates or {})


def rows_of(perplexities):
    """A row for each seed of each `{(method, E): perplexities}`, IID."""
    rows = []
    for (method, epochs), values in perplexities.items():
        for seed, value in enumerate(values):
            case = {"method": method, "partition": "iid", "epochs": epochs, "seed": seed}
            rows.append({**case, "finished": True, "perplexity_after": value})
    return rows


RUNS = {
    ("snake_full", 1): (30.0, 31.0, 32.0),
    ("distilled_full", 1): (27.0, 28.0, 28.9),
    ("fedavg_full", 1): (20.0, 20.5, 21.0),
    ("snake_full", 3): (19.0, 19.9, 20.0),
    ("fedavg_full", 3): (22.0, 22.5, 23.0),
}


def test_each_method_is_beside_fl_that_trains_alike_and_distilled_beside_undistilled():
    lines = language_claims.told(study_of(), "6", rows_of(RUNS))
    said = [(line.claim.text, line.side, line.rival, line.verdict) for line in lines]
    whole, model = "Snake Learning, whole block", "FL, whole model"
    assert said == [
        (LOWER, f"{whole}, E = 1", f"{model}, E = 1", DOES_NOT_HOLD),
        (LOWER, f"{whole}, distilled, E = 1", f"{model}, E = 1", DOES_NOT_HOLD),
        (DISTILLED, f"{whole}, distilled, E = 1", f"{whole}, E = 1", HOLDS),
        (LOWER, f"{whole}, E = 3", f"{model}, E = 3", HOLDS),
        (GAINS, f"lead of {whole}, E = 3", f"lead of {whole}, E = 1", HOLDS),
    ]
    first, *_, last = lines
    factors = (20 / 30, 20.5 / 31, 21 / 32)
    assert first.found.mean == pytest.approx(sum(map(math.log, factors)) / 3)
    more = (22 / 19, 22.5 / 19.9, 23 / 20)
    gains = [math.log(many / few) for many, few in zip(more, factors, strict=True)]
    assert last.found.mean == pytest.approx(sum(gains) / 3)
    assert f"| IID | lead of {whole}, E = 3 against lead of {whole}, E = 1 | " in (
        tested.claims_table(lines, language.PARTITIONS)
    )


def test_a_lead_over_a_rate_at_an_edge_cannot_be_told():
    edge = {"fedavg_full/iid": {"chosen": 0.01, "at_the_edge_of_the_grid": True}}
    lines = language_claims.told(study_of(edge), "6", rows_of(RUNS))
    verdicts = {(line.claim.text, line.side[-5:]): line.verdict for line in lines}
    assert verdicts[LOWER, "E = 3"] == CANNOT_TELL
    assert verdicts[LOWER, "E = 1"] == DOES_NOT_HOLD
    assert verdicts[DISTILLED, "E = 1"] == HOLDS
    assert verdicts[GAINS, "E = 3"] == CANNOT_TELL


def test_runs_that_have_not_ended_are_not_compared():
    rows = rows_of(RUNS)
    unfinished = [{**row, "finished": False} for row in rows if row["method"] == "fedavg_full"]
    rows = [row for row in rows if row["method"] != "fedavg_full"] + unfinished
    lines = language_claims.told(study_of(), "6", rows)
    assert {line.claim.text for line in lines} == {DISTILLED}
