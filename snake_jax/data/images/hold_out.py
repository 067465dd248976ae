"""A test part for data that has none: a share of the training examples, held out by the seed."""

from typing import NamedTuple

import numpy as np

from snake_jax import streams
from snake_jax.data.images.dataset import Dataset, Split, make_dataset, take
from snake_jax.errors import UserError


class HoldOut(NamedTuple):
    """What `--test_share` and `--seed` ask for; a share of 0 holds nothing out."""

    share: float = 0.0
    seed: int = 0


def with_test_part(
    name: str, train: Split, test: Split | None, missing: str, hold_out: HoldOut
) -> Dataset:
    """The data set with its own test part or, where it has none, with one held out of training.

    The draw is stratified: each class gives its share. What trains keeps its order.

    Args:
      name: of the data set.
      train: its training split.
      test: its test split; None: it has none.
      missing: what is not there where `test` is None, for the error.
      hold_out: the share and the seed.

    Raises:
      UserError: there is no test part and no share is given, there are both, or the share is of
        less than one example.
    """
    # A test part of its own, or a share of the training examples: one of the two.
    flag = f"--test_share={hold_out.share:g}"
    if test is not None:
        if hold_out.share:
            raise UserError(
                f"{flag}: {name} has a test part of {len(test.labels)} examples; leave the flag "
                f"out (--validation holds out of training beside it)"
            )
        return make_dataset(name, train, test)
    if not hold_out.share:
        raise UserError(
            f"{missing}; --test_share=0.1 holds a tenth of the training examples out to test on"
        )

    # The note says in the log that the data has no test part of its own.
    held = _stratified(train.labels, hold_out, flag)
    note = (
        f"{name}: {len(held)} of {len(train.labels)} training examples held out as the test part "
        f"({flag}), drawn by --seed={hold_out.seed} with the same share of each class"
    )
    kept = np.ones(len(train.labels), bool)
    kept[held] = False
    return make_dataset(name, take(train, kept), take(train, ~kept), note)


def _stratified(labels: np.ndarray, hold_out: HoldOut, flag: str) -> np.ndarray:
    """Indices of the examples held out, `round(share * N)` of them where classes are large enough.

    Every class keeps at least one example for training.
    """
    classes, counts = np.unique(labels, return_counts=True)
    wanted = round(hold_out.share * len(labels))
    if not wanted:
        raise UserError(f"{flag} of {len(labels)} training examples is less than one")

    # Each class gives the whole part of its share; what is then still wanted comes from the classes
    # with the largest rests (Hare's method), so that the sum is what was asked for.
    exact = hold_out.share * counts
    taken = np.floor(exact).astype(int)
    largest_rests = np.argsort(taken - exact, kind="stable")
    taken[largest_rests[: wanted - taken.sum()]] += 1
    taken = np.minimum(taken, counts - 1)
    if not taken.any():
        raise UserError(f"{flag}: no class has an example to spare; every class needs two or more")

    # The first of each class in a random order.
    order = streams.generator(hold_out.seed, "images/hold_out").permutation(len(labels))
    held = []
    for number, count in zip(classes, taken, strict=True):
        members = order[labels[order] == number]
        held.append(members[:count])
    return np.concatenate(held)
