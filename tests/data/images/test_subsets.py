"""A part of a data set: so many examples, none of them in two places, the same for the same
seed.
"""

import numpy as np
import pytest

from snake_jax.config import ImageConfig
from snake_jax.data.images.dataset import Split, channel_stats, make_dataset
from snake_jax.data.images.subsets import subsample
from snake_jax.errors import UserError
from snake_jax.runs import loop


def numbered(count=100, classes=4):
    """Images that carry their own number."""

    def split(start, count):
        numbers = np.arange(start, start + count)
        images = np.zeros((count, 4, 4, 3), np.uint8)
        images[:, 0, 0, 0] = numbers
        return Split(images, (numbers % classes).astype(np.int32))

    return make_dataset("numbered", split(0, count), split(count, 20))


def numbers(split):
    return split.images[:, 0, 0, 0].tolist()


def test_without_options_it_is_the_same_data_set():
    data = numbered()
    assert subsample(data) is data


def test_so_many_training_examples_in_order_and_the_test_set_untouched():
    data = numbered()
    part = subsample(data, train_examples=30, seed=3)
    assert len(set(numbers(part.train))) == 30
    assert numbers(part.train) == sorted(numbers(part.train))
    assert part.test is data.test
    assert (part.mean, part.std) == channel_stats(part.train.images)


def test_all_examples_are_a_part_too():
    assert numbers(subsample(numbered(), train_examples=100).train) == list(range(100))


def test_the_validation_part_takes_the_test_sets_place_and_does_not_train():
    part = subsample(numbered(), train_examples=50, validation=0.2, seed=1)
    assert (len(part.train.labels), len(part.test.labels)) == (40, 10)
    assert not set(numbers(part.train)) & set(numbers(part.test))
    assert sorted(numbers(part.train) + numbers(part.test)) == numbers(
        subsample(numbered(), train_examples=50, seed=1).train
    )
    assert (part.mean, part.std) == channel_stats(part.train.images)


def test_images_keep_their_labels():
    for split in subsample(numbered(), train_examples=50, validation=0.5)[1:3]:
        assert split.labels.tolist() == [number % 4 for number in numbers(split)]


def test_the_seed_decides():
    draws = [
        numbers(subsample(numbered(), train_examples=30, validation=0.2, seed=seed).train)
        for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train_examples": 101}, "--train_examples=101: numbered has 100 training examples"),
        (
            {"train_examples": 4, "validation": 0.1},
            "--validation=0.1 of 4 training examples is less than one",
        ),
        ({"train_examples": 1}, "1 training examples of one class"),
    ],
)
def test_too_much_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        subsample(numbered(), **options)


def test_a_run_is_prepared_on_the_part():
    config = ImageConfig(model="mlp", nodes=3, train_examples=300, validation=0.1)
    setup = loop.prepare(config)
    assert (len(setup.data.dataset.train.labels), len(setup.data.dataset.test.labels)) == (270, 30)
    assert sum(map(len, setup.data.shards)) == 270
    with pytest.raises(UserError, match="must be at most"):
        ImageConfig(validation=0.6)
