"""The study of SCCT's learning at smoke scale: all arms, numbers, pictures, and again from it."""

import json

import pytest

from experiments.scct_learning import ARMS, Ask, study
from tests.launches import write_model


@pytest.mark.slow
def test_all_arms_are_compared_and_a_second_launch_does_nothing_anew(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("Tom has a ball.<|endoftext|>\nLily is in the park.")
    out = tmp_path / "out"
    model = write_model(tmp_path / "model", num_hidden_layers=2)
    ask = Ask("smoke", str(model), "", str(text), str(tmp_path / "runs"), str(out))
    study(ask)
    first = json.loads((out / "learning.json").read_text())
    assert list(first["runs"]) == [f"{arm}_0" for arm in ARMS]
    for arm in ARMS:
        run = first["runs"][f"{arm}_0"]
        assert len(run["rounds"]) == 2
        assert set(run["rounds"][-1]["devices"]) == {"0", "1"}
        assert {"personal_f1", "shared_exact_match"} <= set(run["last"])
        # The large model is what it was, unplugged, whatever was trained.
        if arm != "small":
            losses = run["other_text_loss"]
            assert losses["unplugged"] == first["runs"]["scct_0"]["other_text_loss"]["unplugged"]
            assert losses["plugged"] != losses["unplugged"]
    for figure in ("figure8.png", "figure10.png", "figure11.png"):
        assert (out / figure).stat().st_size > 10_000

    lines = {arm: (tmp_path / f"runs/{arm}_0/metrics.jsonl").read_text() for arm in ARMS}
    study(ask)
    for arm in ARMS:
        assert (tmp_path / f"runs/{arm}_0/metrics.jsonl").read_text() == lines[arm]
    assert json.loads((out / "learning.json").read_text())["runs"] == first["runs"]
    assert "scct_0" in capsys.readouterr().out
