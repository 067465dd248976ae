"""A seeded part of a data set: fewer examples, and a validation part in the test set's place."""

import numpy as np

from snake_jax import streams
from snake_jax.data.images.dataset import Dataset, channel_stats, take
from snake_jax.errors import UserError


def subsample(
    dataset: Dataset, *, train_examples: int = 0, validation: float = 0.0, seed: int = 0
) -> Dataset:
    """The data set with `train_examples` of its training examples, a share of which is tested on.

    Both parts are drawn uniformly, so classes come as they come; what is left keeps its order, and
    the channel statistics are those of the examples left to train on. With neither option the data
    set is returned as it is.

    Args:
      dataset: cleaned.
      train_examples: how many to draw; 0: all.
      validation: share of those that is held out of training and evaluated on.
      seed: of both draws, in independent streams.

    Raises:
      UserError: there are fewer examples, or a part of fewer than one example or two classes would
        be left.
    """
    if not train_examples and not validation:
        return dataset
    train, test = dataset.train, dataset.test
    count = len(train.labels)
    if train_examples > count:
        raise UserError(
            f"--train_examples={train_examples}: {dataset.name} has {count} training examples"
        )

    # The validation part is a share of what the smaller training set has, so this comes first.
    if train_examples:
        order = streams.generator(seed, "images/part").permutation(count)
        train = take(train, np.sort(order[:train_examples]))
    if validation:
        order = streams.generator(seed, "images/validation").permutation(len(train.labels))
        held = round(validation * len(order))
        if not held:
            raise UserError(
                f"--validation={validation:g} of {len(order)} training examples is less than one"
            )
        test = take(train, np.sort(order[:held]))
        train = take(train, np.sort(order[held:]))

    if len(np.unique(train.labels)) < 2:
        raise UserError(
            f"--train_examples={train_examples} --validation={validation:g} leave {dataset.name} "
            f"{len(train.labels)} training examples of one class; classification needs two or more"
        )
    mean, std = channel_stats(train.images)
    return dataset._replace(train=train, test=test, mean=mean, std=std)
