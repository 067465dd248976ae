"""The papers' formula for the memory of fine-tuning, and what it leaves out.

Mixed-precision AdamW takes 16 bytes a parameter: 2 of weights, 2 of gradients, and 12 of float32
weights and moments. Where one of N equal blocks trains, every parameter takes 2 and those of the
block 14 more: 2 + 14 / N. (snake_learning_arxiv, "Fine-Tuning of LLMs": 19.37 and 3.13 GB of
OPT-1.3B, which are GiB of 1.3e9 parameters.)
"""

import re
from typing import NamedTuple

# Bytes a parameter: where all trains; of what does not; of what does, beyond that.
FULL_BYTES = 16
FROZEN_BYTES = 2
TRAINED_BYTES = 14
_UNITS = {"b": 1e9, "m": 1e6}
_NOMINAL = re.compile(r"(\d+(?:\.\d+)?)([bm])$")


class Formula(NamedTuple):
    """The formula's values for a count of parameters.

    Attributes:
      counted: where the count comes from.
      params: the count.
      blocks: N.
      full_bytes: all of them train.
      block_bytes: one of N equal blocks trains.
    """

    counted: str
    params: int
    blocks: int
    full_bytes: float
    block_bytes: float


def memory(counted: str, params: int, blocks: int) -> Formula:
    """The formula for a count of parameters in N blocks."""
    full_bytes = FULL_BYTES * params
    # Every parameter is stored; those of one block, a share 1 / N of all, train too.
    block_bytes = (FROZEN_BYTES + TRAINED_BYTES / blocks) * params
    return Formula(counted, params, blocks, full_bytes, block_bytes)


def nominal_params(preset: str) -> int | None:
    """The count that a preset's name says, `opt-1.3b`; None where it says none."""
    found = _NOMINAL.search(preset)
    if found is None:
        return None
    count, unit = found.groups()
    return round(float(count) * _UNITS[unit])


def of_model(preset: str, params: int, blocks: int) -> tuple[Formula, ...]:
    """The formula for the nominal count, where a preset's name says one, and for the true one."""
    true = memory("true, by shapes", params, blocks)
    nominal = nominal_params(preset)
    if nominal is None:
        return (true,)
    return memory(f"nominal, by the name {preset}", nominal, blocks), true
