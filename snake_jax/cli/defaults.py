"""The defaults that a run has without having been asked.

They are printed, since what is not typed is easily overlooked.
"""

import dataclasses

from absl.flags import FlagValues

from snake_jax.config import RunConfig, TextConfig
from snake_jax.runs.setup import Setup

# What most decides a result or its cost, in the order in which it is told.
_TOLD = (
    "learning_rate",
    "optimizer",
    "local_epochs",
    "batch_size",
    "lora_rank",
    "frozen_dtype",
    "compute_dtype",
)


def said_of_defaults(setup: Setup, flags: FlagValues) -> str:
    """One line with the settings that were left at their defaults and apply to this run.

    Empty where all of them were given.

    Args:
      setup: of the run.
      flags: as they were given.
    """
    config: RunConfig = setup.config
    fields = {field.name for field in dataclasses.fields(config)}
    parts = []
    for name in _TOLD:
        if name not in fields or not flags[name].using_default_value:
            continue
        if name == "frozen_dtype":
            if stored := frozen(setup):
                parts.append(f"--frozen_dtype={config.frozen_dtype} ({stored})")
        else:
            parts.append(f"--{name}={getattr(config, name)}")
    return f"by default: {', '.join(parts)}" if parts else ""


def frozen(setup: Setup) -> str:
    """What does not train at a node, and so is stored in `--frozen_dtype`; empty: all trains."""
    config: RunConfig = setup.config
    if isinstance(config, TextConfig) and config.lora_rank:
        return "how the base under the adapters is stored at a node"
    if "frozen_dtype" in setup.algorithm.flags:
        return "how layers that do not train are stored at a node"
    return ""
