"""The published baseline written anew beside ours: what is asked for is run, once."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import fednova_differences as differences
from snake_jax.errors import UserError

pytest.importorskip("torch")
NODES, CLASSES = 3, 4


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """Flags of the smallest study on drawn images; the file that its results go to."""
    rng = np.random.default_rng(0)
    labels = np.arange(96) % CLASSES
    images = rng.integers(0, 256, (96, 32, 32, 3), dtype=np.uint8)
    train, test = slice(0, 72), slice(72, 96)
    data = tmp_path / "images.npz"
    np.savez(
        data,
        train_x=images[train],
        train_y=labels[train],
        test_x=images[test],
        test_y=labels[test],
    )
    shards = np.array_split(rng.permutation(72), NODES)
    partition = tmp_path / "partition.json"
    partition.write_text(json.dumps([shard.tolist() for shard in shards]))
    output = tmp_path / "differences.json"
    differences.FLAGS(
        [
            "differences",
            f"--dataset=npz:{data}",
            f"--partition={partition}",
            f"--output={output}",
            "--width=0.03",
            "--rounds=1",
            "--seeds=0",
            "--sides=published,all three",
        ]
    )
    return output


def test_each_side_is_scored_after_every_round_and_run_once(
    asked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    differences.main([])
    rows = json.loads(asked.read_text())["rows"]
    assert [row["side"] for row in rows] == ["published", "all three"]
    for row in rows:
        (scored,) = row["rounds"]
        # As bad as guessing, and no worse: nothing but a beginning was trained.
        assert scored["loss"] == pytest.approx(np.log(CLASSES), rel=0.2)
        assert 0 <= scored["accuracy"] <= 1
    # Three differences make another run of the same seed.
    assert rows[0]["rounds"] != rows[1]["rounds"]

    capsys.readouterr()
    differences.main([])
    assert json.loads(asked.read_text())["rows"] == rows
    assert capsys.readouterr().out == ""


def test_a_side_or_a_split_that_is_not_there_is_one_line(asked: Path) -> None:
    differences.FLAGS.sides = ["theirs"]
    with pytest.raises(UserError, match="--sides=theirs: want some of ours, published"):
        differences.main([])
    differences.FLAGS.partition = "nowhere.json"
    with pytest.raises(UserError, match=r"--partition=nowhere\.json.*fednova_partition"):
        differences.main([])


def test_the_network_is_the_baselines() -> None:
    network = differences._network(1.0, 10)
    assert sum(param.numel() for param in network.parameters()) == 9_750_922
    names = [type(part).__name__ for part in network]
    assert names[-8:] == [
        "Flatten", "Dropout", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Linear"
    ]  # fmt: skip
