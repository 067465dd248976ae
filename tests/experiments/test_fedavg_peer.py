"""FedAvg in PyTorch beside ours: both sides run once, on one division, until the target."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import fedavg_peer as peer
from snake_jax.errors import UserError

pytest.importorskip("torch")


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """Flags of the smallest study, on classes that are easily told; the file of its results."""
    rng = np.random.default_rng(0)
    labels = np.arange(1000) % 4
    images = rng.integers(0, 60, (1000, 4, 4, 1), dtype=np.uint8)
    images[np.arange(1000), labels, labels] = 250
    data = tmp_path / "images.npz"
    np.savez(
        data,
        train_x=images[:800],
        train_y=labels[:800],
        test_x=images[800:],
        test_y=labels[800:],
    )
    output = tmp_path / "peer.json"
    words = [f"--dataset=npz:{data}", f"--output={output}", "--seeds=0", "--most_rounds=60"]
    peer.FLAGS(["peer", *words, "--partitions=iid", "--rate=0.215"])
    return output


def test_both_sides_reach_the_target_and_are_run_once(
    asked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer.main([])
    rows = json.loads(asked.read_text())["rows"]
    assert [row["side"] for row in rows] == ["ours", "pytorch"]
    for row in rows:
        assert row["accuracies"][-1] >= 0.97 > max(row["accuracies"][:-1])
        assert len(row["accuracies"]) - 1 < row["rounds"] <= len(row["accuracies"])

    capsys.readouterr()
    peer.main([])
    assert json.loads(asked.read_text())["rows"] == rows
    assert "seed 0" not in capsys.readouterr().out


def test_a_division_that_is_not_published_is_one_line(asked: Path) -> None:
    peer.FLAGS.partitions = ["dirichlet"]
    with pytest.raises(UserError, match="--partitions=dirichlet: want some of iid, pathological"):
        peer.main([])
