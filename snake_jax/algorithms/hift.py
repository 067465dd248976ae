"""HiFT: group after group of layers of one model in one place, each group's optimizer states kept.

Liu et al., "HiFT: A Hierarchical Full Parameter Fine-Tuning Strategy", EMNLP 2024 (arXiv
2401.15207), Algorithm 1: groups of `--layers_per_visit` layers train one after the other, upwards,
downwards or in an order drawn (`--order`); a group's states wait on the host until its next turn
(`--carry_optimizer_state`), and the learning rate changes when all groups had theirs. That is
BAdam's schedule with states that are kept. In the paper a turn is one batch: `--periods` visits
share a pass, so with as many as a pass has steps it is here. There every group trains, those of
embedding and head too; here, of language models, these train at every visit or never
(`--always_train`).
"""

from snake_jax.algorithms.badam import BADAM
from snake_jax.config import RunConfig
from snake_jax.errors import UserError


def _check(config: RunConfig) -> None:
    """States are kept, else it would be BAdam.

    Raises:
      UserError: they are not.
    """
    if not config.carry_optimizer_state:
        raise UserError(
            "--algorithm=hift keeps the optimizer states of every group; say "
            "--carry_optimizer_state, or --algorithm=badam, which drops them"
        )


HIFT = BADAM._replace(name="hift", check=_check, flags=BADAM.flags | {"carry_optimizer_state"})
