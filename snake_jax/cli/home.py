"""`~` in the values of flags.

A shell expands it at the beginning of a word only, and `--data=~/x` has it elsewhere.
"""

import os
import re
from typing import Any

from absl.flags import FlagValues

# Flags whose values are, or hold, names of files and folders.
PLACES = frozenset(
    {
        "adapter",
        "cafile",
        "certfile",
        "compilation_cache_dir",
        "data",
        "dataset",
        "keyfile",
        "model",
        "node_file",
        "out",
        "output",
        "partition",
        "plot",
        "results",
        "solve",
        "root",
        "token_file",
        "tokenizer",
        "trace_dir",
        "workdir",
    }
)
# At the beginning, after a comma (several sources) or after a kind (`npz:`, `file:`).
_HOME = re.compile(r"(?:^|(?<=[,:]))~[\w.-]*(?=/|,|$)")


def expanded(value: str) -> str:
    """The value with the home folder in the place of `~`; `~NAME` is that of a user."""
    return _HOME.sub(lambda found: os.path.expanduser(found[0]), value)


def expand_flags(values: FlagValues) -> None:
    """Expands the flags that name places, as if the whole paths had been typed."""
    for name in PLACES & set(values):
        value: Any = values[name].value
        if isinstance(value, str):
            values[name].value = expanded(value)
