"""The papers' formula for the memory of fine-tuning, and what it leaves out.

Mixed-precision AdamW takes 16 bytes a parameter: 2 of weights, 2 of gradients, and 12 of float32
weights and moments. Where one of N equal blocks trains, every parameter takes 2 and those of the
block 14 more: 2 + 14 / N. (snake_learning_arxiv, "Fine-Tuning of LLMs": 19.37 and 3.13 GB of
OPT-1.3B, which are GiB of 1.3e9 parameters.)
"""

import re
from typing import NamedTuple

FULL_BYTES, FROZEN_BYTES, TRAINED_BYTES = 16, 2, 14
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
    return Formula(
        counted,
        params,
        blocks,
        FULL_BYTES * params,
        (FROZEN_BYTES + TRAINED_BYTES / blocks) * params,
    )


def nominal_params(preset: str) -> int | None:
    """The count that a preset's name says, `opt-1.3b`; None where it says none."""
    found = _NOMINAL.search(preset)
    return round(float(found[1]) * {"b": 1e9, "m": 1e6}[found[2]]) if found else None


def of_model(preset: str, params: int, blocks: int) -> tuple[Formula, ...]:
    """The formula for the nominal count, where the name of a preset says one, and for the true
    one.
    """
    nominal = nominal_params(preset)
    named = () if nominal is None else (memory(f"nominal, by the name {preset}", nominal, blocks),)
    return *named, memory("true, by shapes", params, blocks)
