"""Why FedAvg here and Flower's fednova baseline may differ, one difference at a time.

  python -m experiments.fednova_partition --dataset=npz:DIR --output=runs/fednova_partition.json
  python -m experiments.fednova_differences --dataset=npz:DIR \\
      --partition=runs/fednova_partition.json --output=experiments/results/fednova_differences.json

The baseline is written anew in PyTorch, as its source says it is: that is the side `published`.
Each other side in PyTorch is that one with one thing done as this project does it. `ours` is
`--preset=fednova_vgg11`. All train on the same split, with VGG-11 of a quarter of the width, so
that a round takes seconds. With the same `--output` it goes on where it was.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from experiments import own_flags
from experiments.bench import results
from snake_jax.cli import launch
from snake_jax.config import ImageConfig
from snake_jax.data.images import sources
from snake_jax.data.images.dataset import Dataset
from snake_jax.errors import UserError
from snake_jax.runs import loop
from snake_jax.runs.engines import make_engine

# Its own, since experiments.fednova_partition and others name flags likewise.
FLAGS = flags.FlagValues()
DATASET = flags.DEFINE_string(
    "dataset", "cifar10", "CIFAR-10: cifar10, or npz:PATH", flag_values=FLAGS
)
PARTITION = flags.DEFINE_string(
    "partition",
    "runs/fednova_partition.json",
    "what experiments.fednova_partition wrote",
    flag_values=FLAGS,
)
OUTPUT = flags.DEFINE_string(
    "output", "", "JSON file of what came out; empty: print only", flag_values=FLAGS
)
ROUNDS = flags.DEFINE_integer("rounds", 6, "rounds of every run", lower_bound=1, flag_values=FLAGS)
SEEDS = flags.DEFINE_string(
    "seeds", "0,1,2", "a run of every side for each of them", flag_values=FLAGS
)
SIDES = flags.DEFINE_list("sides", "", "of which sides; empty: all", flag_values=FLAGS)
WIDTH = flags.DEFINE_float(
    "width",
    0.25,
    "of VGG-11's channels",
    lower_bound=0.02,
    upper_bound=1,
    flag_values=FLAGS,
)

_CHANNELS = (64, 128, 256, 256, 512, 512, 512, 512)
_POOLED = (0, 1, 3, 5, 7)
_BATCH, _EPOCHS, _RATE, _DECAY = 32, 2, 0.02, 1e-4
_DROPOUT, _PADDING = 0.5, 4
# By which the baseline divides.
_STD = (0.2023, 0.1994, 0.2010)
_EVALUATED = 500


class Way(NamedTuple):
    """How a side trains; what stands here is the baseline's.

    Attributes:
      decays_biases: whether weight decay takes in biases.
      crops_let_in: what a shifted image gets at its edge: black, or the mean colour.
      weighs: what a node's share of the mean is in: batches or examples.
    """

    decays_biases: bool = True
    crops_let_in: str = "black"
    weighs: str = "batches"


IN_TORCH = {
    "published": Way(),
    "biases do not decay": Way(decays_biases=False),
    "crops let in the mean colour": Way(crops_let_in="mean"),
    "nodes weigh by examples": Way(weighs="examples"),
    "all three": Way(False, "mean", "examples"),
}
OURS = "ours"


class Scored(NamedTuple):
    """The test set after a round."""

    loss: float
    accuracy: float


def main(_: list[str]) -> None:
    """Runs what is missing, and prints every run's rounds."""
    dataset = sources.load_dataset(DATASET.value)
    shards = _shards(Path(PARTITION.value), len(dataset.train.labels))
    output = Path(OUTPUT.value) if OUTPUT.value else None
    rows = results.kept(output)
    done = {(row["side"], row["seed"]) for row in rows}
    for seed in own_flags.seeds(SEEDS.value):
        for side in _sides():
            if (side, seed) in done:
                continue
            if side == OURS:
                run = _ours(len(shards), seed)
            else:
                run = _in_torch(dataset, shards, IN_TORCH[side], seed)
            rounds = [scored._asdict() for scored in run]
            rows.append({"side": side, "seed": seed, "width": WIDTH.value, "rounds": rounds})
            accuracy = "  ".join(f"{100 * one['accuracy']:5.1f}" for one in rounds)
            loss = "  ".join(f"{one['loss']:.3f}" for one in rounds)
            launch.say(f"{side}, seed {seed}: {accuracy} %; loss {loss}")
            command = (
                f"python -m experiments.fednova_differences --width={WIDTH.value} "
                f"--rounds={ROUNDS.value}"
            )
            results.keep(output, command, rows)


def _sides() -> list[str]:
    every = [OURS, *IN_TORCH]
    for side in SIDES.value:
        if side not in every:
            raise UserError(f"--sides={side}: want some of {', '.join(every)}")
    return SIDES.value or every


def _shards(file: Path, examples: int) -> list[np.ndarray]:
    """The split that all sides train on.

    Raises:
      UserError: there is no such file, or it is of other data.
    """
    try:
        shards = [np.asarray(shard, np.int64) for shard in json.loads(file.read_text())]
    except (OSError, ValueError) as error:
        raise UserError(
            f"--partition={file}: {error}; python -m experiments.fednova_partition "
            f"--output={file} writes it"
        ) from error
    if not shards or max(int(shard.max()) for shard in shards) >= examples:
        raise UserError(f"--partition={file}: it is not of --dataset={DATASET.value}")
    return shards


def _ours(nodes: int, seed: int) -> Iterator[Scored]:
    """`--preset=fednova_vgg11`, narrower and on the baseline's split."""
    config = ImageConfig(
        algorithm="fedavg",
        model="vgg11",
        width=WIDTH.value,
        dataset=DATASET.value,
        nodes=nodes,
        partition=f"file:{PARTITION.value}",
        cycles=ROUNDS.value,
        local_epochs=_EPOCHS,
        batch_size=_BATCH,
        learning_rate=_RATE,
        lr_schedule="constant",
        momentum=0.0,
        weight_decay=_DECAY,
        clip_norm=0.0,
        dropout=_DROPOUT,
        init="torch",
        augment="crop_flip",
        pixel_std=",".join(str(value) for value in _STD),
        seed=seed,
    )
    setup = loop.prepare(config)
    engine = make_engine(setup)
    try:
        for report in loop.train(setup, engine, loop.initial_state(setup), lambda state: None):
            yield Scored(report.record["test_loss"], report.record["accuracy"])
    finally:
        engine.close()


def _in_torch(
    dataset: Dataset, shards: Sequence[np.ndarray], way: Way, seed: int
) -> Iterator[Scored]:
    """The baseline: a mean of the nodes' models after two epochs each, round after round."""
    import torch

    torch.manual_seed(seed)
    classes = int(dataset.train.labels.max()) + 1
    model = _network(WIDTH.value, classes)
    to_model = _normaliser(dataset)
    images = torch.from_numpy(dataset.train.images).permute(0, 3, 1, 2)
    labels = torch.from_numpy(dataset.train.labels.astype(np.int64))
    weights = [param.detach().clone() for param in model.parameters()]
    for _ in range(ROUNDS.value):
        mean = [torch.zeros_like(weight) for weight in weights]
        counts = [_count(shard, way) for shard in shards]
        for shard, count in zip(shards, counts, strict=True):
            # Every node starts from the last mean, and from an optimizer without memory.
            with torch.no_grad():
                torch._foreach_copy_(list(model.parameters()), weights)
            _train(model, _optimizer(model, way), images, labels, shard, way, to_model)
            share = count / sum(counts)
            with torch.no_grad():
                torch._foreach_add_(mean, list(model.parameters()), alpha=share)
        weights = mean
        with torch.no_grad():
            torch._foreach_copy_(list(model.parameters()), weights)
        yield _score(model, dataset, to_model)


def _count(shard: np.ndarray, way: Way) -> int:
    """What a node's model weighs."""
    if way.weighs == "examples":
        return len(shard)
    return math.ceil(len(shard) / _BATCH)


def _network(width: float, classes: int) -> Any:
    """VGG-11 with dropout before its two hidden dense layers; the baseline's initial weights:
    convolutions normal by fan-out with biases 0, dense layers as PyTorch has them.
    """
    from torch import nn

    parts: list[nn.Module] = []
    inputs = 3
    for number, channels in enumerate(_CHANNELS):
        outputs = max(1, round(channels * width))
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        assert convolution.bias is not None
        nn.init.zeros_(convolution.bias)
        parts += [convolution, nn.ReLU()]
        if number in _POOLED:
            parts.append(nn.MaxPool2d(2))
        inputs = outputs
    parts.append(nn.Flatten())
    for _ in range(2):
        parts += [nn.Dropout(_DROPOUT), nn.Linear(inputs, inputs), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(inputs, classes))


def _optimizer(model: Any, way: Way) -> Any:
    import torch

    groups = []
    for param in model.parameters():
        decays = param.ndim > 1 or way.decays_biases
        groups.append({"params": [param], "weight_decay": _DECAY if decays else 0.0})
    return torch.optim.SGD(groups, lr=_RATE)


def _normaliser(dataset: Dataset) -> Callable[[Any], Any]:
    """From bytes `[B, 3, H, W]` to what the network takes."""
    import torch

    mean = torch.tensor(dataset.mean).reshape(1, -1, 1, 1)
    std = torch.tensor(_STD).reshape(1, -1, 1, 1)
    return lambda pixels: (pixels.float() / 255 - mean) / std


def _train(
    model: Any,
    optimizer: Any,
    images: Any,
    labels: Any,
    shard: np.ndarray,
    way: Way,
    to_model: Callable[[Any], Any],
) -> None:
    """A node's epochs; the last batch of one may be short, and counts as any other."""
    import torch
    from torch import nn

    model.train()
    members = torch.from_numpy(shard)
    for _ in range(_EPOCHS):
        for chosen in members[torch.randperm(len(members))].split(_BATCH):
            x = _augmented(images[chosen], way, to_model)
            loss = nn.functional.cross_entropy(model(x), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _augmented(pixels: Any, way: Way, to_model: Callable[[Any], Any]) -> Any:
    """Each image shifted by up to four pixels each way, and mirrored half of the time."""
    import torch

    sides = (_PADDING,) * 4
    if way.crops_let_in == "mean":
        # Zero is the mean colour once images are normalised.
        padded = torch.nn.functional.pad(to_model(pixels), sides)
    else:
        padded = to_model(torch.nn.functional.pad(pixels, sides))
    count, _, height, width = pixels.shape
    offsets = torch.randint(0, 2 * _PADDING + 1, (2, count, 1))
    rows = torch.arange(height) + offsets[0]
    columns = torch.arange(width) + offsets[1]
    mirrored = torch.rand(count, 1) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    example = torch.arange(count)[:, None, None]
    # The gather puts the channels last.
    return padded[example, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _score(model: Any, dataset: Dataset, to_model: Callable[[Any], Any]) -> Scored:
    import torch
    from torch import nn

    model.eval()
    images = torch.from_numpy(dataset.test.images).permute(0, 3, 1, 2)
    labels = torch.from_numpy(dataset.test.labels.astype(np.int64))
    loss, correct = 0.0, 0
    with torch.no_grad():
        for pixels, truth in zip(images.split(_EVALUATED), labels.split(_EVALUATED), strict=True):
            logits = model(to_model(pixels))
            loss += float(nn.functional.cross_entropy(logits, truth, reduction="sum"))
            correct += int((logits.argmax(1) == truth).sum())
    return Scored(loss / len(labels), correct / len(labels))


if __name__ == "__main__":
    launch.run(main, parser=own_flags.parser(FLAGS, __doc__))
