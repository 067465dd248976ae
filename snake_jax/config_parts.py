"""Parts of a run's configuration that belong together: privacy, and what few methods read.

`snake_jax.config.RunConfig` is made of these and of its own fields; flags, files and `--help` know
no difference.
"""

import dataclasses

from snake_jax.field_rules import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """Differential privacy of the nodes' examples (`snake_jax.training.privacy`)."""

    dp_clip: float = option(
        0.0, "differential privacy: greatest norm of an example's gradient; 0: off", low=0
    )
    dp_noise: float = option(
        0.0, "differential privacy: noise multiplier, the noise's deviation over dp_clip", low=0
    )
    dp_delta: float = option(
        1e-5, "differential privacy: the delta that epsilon is told for", above=0, high=0.5
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Settings of single methods, and of how all are compared."""

    evaluate_nodes: float = option(
        0.0,
        "share of each node's own examples that it holds out, and the model is scored on beside "
        "the test data; 0: none",
        low=0,
        high=0.5,
    )

    snakes: int = option(
        1, "snake: so many train disjoint parts of the layers at the same time", low=1
    )
    periods: int = option(
        1,
        "badam, lisa: visits that share the passes over the data, so that layers change within one",
        low=1,
    )
