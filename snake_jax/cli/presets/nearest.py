"""The nearest of the names that there are, for a word that is none of them."""

import difflib
from collections.abc import Iterable


def guess(word: str, names: Iterable[str]) -> str:
    """`; did you mean NAME?`, or nothing where no name is near."""
    found = difflib.get_close_matches(word, list(names), n=1)
    return f"; did you mean {found[0]}?" if found else ""
