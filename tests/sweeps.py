"""Settings that a test goes through: some at every run, all of them with the slow tests."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def sweep(settings: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """The settings to parametrise a test by, those marked slow that are not among the quick ones.

    Raises:
      ValueError: a quick one is none of the settings.
    """
    all_there_are = list(settings)
    unknown = [one for one in quick if one not in all_there_are]
    if unknown:
        raise ValueError(f"{unknown}: not among the settings")
    found = []
    for one in all_there_are:
        if one in quick:
            found.append(one)
            continue
        values = one if type(one) is tuple else (one,)  # a NamedTuple is one setting
        found.append(pytest.param(*values, marks=pytest.mark.slow))
    return found
