"""The rule by which a claim's verdict follows from its runs.

A claim says that one method is better than another. Both are run with the same seeds, so a seed
gives one difference, in the direction of the claim, and n seeds a mean and a spread. The test is
Student's paired t-test, two-sided, at 5 %:

  holds           the mean is above the margin, and significantly
  does not hold   the mean is below the margin, and significantly
  cannot tell     anything else; fewer than three seeds; or a difference in the claim's favour while
                  the learning rate of the rival lies at an edge of its grid, since another rate
                  might serve it better

Each is a test of its own, not corrected for the number of claims: of twenty differences that are
nothing, one reads as significant.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

HOLDS, DOES_NOT_HOLD, CANNOT_TELL = "holds", "does not hold", "cannot tell"
LEAST_SEEDS = 3
SIGNIFICANCE = 0.05


class Paired(NamedTuple):
    """Differences of runs with the same seeds.

    Attributes:
      seeds: how many.
      mean: of the differences.
      deviation: of the differences, with n - 1; 0 of a single one.
      p: probability of so large a mean by chance; None where there are too few seeds to say.
    """

    seeds: int
    mean: float
    deviation: float
    p: float | None


def paired(differences: Sequence[float], margin: float = 0.0) -> Paired:
    """The paired test of differences against a margin.

    Args:
      differences: one a seed, at least one.
      margin: that the mean is compared with.
    """
    from scipy import special  # slow to load, and most launches need none of it

    count = len(differences)
    mean = statistics.fmean(differences)
    if count == 1:
        return Paired(1, mean, 0.0, None)
    deviation = statistics.stdev(differences)
    if count < LEAST_SEEDS:
        return Paired(count, mean, deviation, None)

    # t = (mean - margin) / (s / sqrt(n)) has n - 1 degrees of freedom. Without any spread every
    # distance from the margin is significant, and none is not.
    distance = mean - margin
    if deviation == 0:
        return Paired(count, mean, 0.0, 1.0 if distance == 0 else 0.0)
    t = distance / (deviation / math.sqrt(count))
    p = 2 * float(special.stdtr(count - 1, -abs(t)))
    return Paired(count, mean, deviation, p)


def verdict(found: Paired, margin: float = 0.0, rival_at_edge: bool = False) -> str:
    """HOLDS, DOES_NOT_HOLD or CANNOT_TELL, by the rule above.

    Args:
      found: differences in the direction of the claim.
      margin: that the claim asks for.
      rival_at_edge: whether the rival's learning rate lies at an edge of its grid.
    """
    if found.p is None or found.p >= SIGNIFICANCE:
        return CANNOT_TELL
    if found.mean < margin:
        return DOES_NOT_HOLD
    return CANNOT_TELL if rival_at_edge else HOLDS


def differences(
    runs: Sequence[Mapping[str, Any]], rivals: Sequence[Mapping[str, Any]], key: str
) -> list[float]:
    """One number of runs minus that of their rivals, for each seed that both have."""
    theirs = {numbers["seed"]: numbers[key] for numbers in rivals}
    found = []
    for numbers in runs:
        if numbers["seed"] in theirs:
            found.append(numbers[key] - theirs[numbers["seed"]])
    return found


def sentence(found: Paired, claim: str, unit: str, rival_at_edge: bool = False) -> str:
    """A comparison in words: mean, spread, seeds and verdict.

    Args:
      found: differences, in the direction of the claim.
      claim: what a positive difference means, as `higher`.
      unit: of the differences.
      rival_at_edge: see `verdict`.
    """
    seeds = f"{found.seeds} seeds" if found.seeds > 1 else "one seed"
    spread = f" (deviation {found.deviation:.2f})" if found.seeds > 1 else ""
    tested = "" if found.p is None else f", p = {found.p:.2g}"
    edge = ", the other's learning rate at the edge of its grid" if rival_at_edge else ""
    outcome = verdict(found, rival_at_edge=rival_at_edge)
    difference = f"{found.mean:+.2f} {unit}{spread}, {seeds}{tested}{edge}"
    return f"{difference}; that it is {claim}: {outcome}"
