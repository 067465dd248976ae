"""Where images come from: digits (bundled), cifar10, tfds:NAME (tensorflow-datasets), npz:PATH."""

from snake_jax.data.images.dataset import Dataset
from snake_jax.data.images.digits import load_digits
from snake_jax.data.images.hold_out import HoldOut, with_test_part
from snake_jax.data.images.npz import load_npz
from snake_jax.data.images.tfds import load_tfds
from snake_jax.errors import UserError

SOURCES = ("digits", "cifar10", "tfds:NAME", "npz:PATH")


def load_dataset(spec: str, *, test_share: float = 0.0, seed: int = 0) -> Dataset:
    """The data set that `spec` (the flag --dataset) names: one of SOURCES.

    Args:
      spec: of the data set.
      test_share: share of the training examples to test on, where there is no test part; 0: a
        data set without one is refused.
      seed: of which examples those are.

    Raises:
      UserError: the name is unknown, the data is missing, broken or of the wrong form, or it has a
        test part beside `test_share`.
    """
    kind, _, rest = spec.partition(":")
    hold_out = HoldOut(test_share, seed)
    if spec == "digits":
        train, test = load_digits()
        return with_test_part("digits", train, test, "", hold_out)
    if spec == "cifar10":
        return load_tfds("cifar10", hold_out=hold_out)
    if kind == "tfds" and rest:
        return load_tfds(rest, hold_out=hold_out)
    if kind == "npz":
        return load_npz(rest, hold_out)
    raise UserError(f"--dataset={spec} is unknown; allowed: {', '.join(SOURCES)}")
