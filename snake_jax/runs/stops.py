"""When a visit or a run ends because it is good enough: thresholds of training and of test metrics.

Nodes exit "upon reaching the designated training epochs, predefined threshold training metrics, or
detecting trivial performance improvement" (snake_learning_magazine, "Updated Parameter Transmission
and Node Management"). A visit goes by the training loss or accuracy of its epochs, which its node
sees; a run by scores on the test data. What ended it is kept with the state: a run that goes on has
ended too.
"""

import math
from collections.abc import Sequence

from snake_jax.algorithms.schedule import epochs_of
from snake_jax.algorithms.visits import Outcome
from snake_jax.config import ImageConfig, RunConfig, TextConfig
from snake_jax.engines.contract import Scores
from snake_jax.errors import UserError
from snake_jax.runs.records import Record


def check(config: RunConfig) -> None:
    """Refuses a threshold of visits where it would end none.

    Raises:
      UserError: visits have one epoch.
    """
    most = max(epochs_of(config, node) for node in range(config.nodes))
    flags = ["visit_loss"]
    if isinstance(config, TextConfig):
        flags.append("visit_perplexity")
    else:
        flags.append("visit_accuracy")
    for flag in flags:
        value = getattr(config, flag)
        if value and most == 1:
            raise UserError(
                f"--{flag}={value:g}: a visit ends between its epochs, and has one; say "
                "--local_epochs=2 or more, or leave it out"
            )


def why_ends(config: RunConfig, scores: Scores | None) -> str:
    """Why a run of these scores is over; empty where it is not, or was not evaluated."""
    if scores is None:
        return ""
    loss = scores.loss
    if config.stop_loss and loss <= config.stop_loss:
        return f"test loss {loss:.4g} is at most --stop_loss={config.stop_loss:g}"
    if isinstance(config, ImageConfig):
        accuracy = scores.accuracy
        if config.stop_accuracy and accuracy is not None and accuracy >= config.stop_accuracy:
            return f"accuracy {accuracy:.4g} is at least --stop_accuracy={config.stop_accuracy:g}"
    # Of logarithms, since a perplexity may be past all numbers.
    perplexity = getattr(config, "stop_perplexity", 0.0)
    if perplexity and loss <= math.log(perplexity):
        return f"perplexity {math.exp(loss):.4g} is at most --stop_perplexity={perplexity:g}"
    return ""


def of_visits(outcomes: Sequence[Outcome]) -> Record:
    """What a line of metrics says of visits that ended before their last epoch."""
    ended = {}
    for outcome in outcomes:
        if outcome.ended:
            ended[str(outcome.visit.node)] = outcome.ended
    return {"visits_ended": ended} if ended else {}


def summary(lines: Sequence[Record]) -> Record:
    """What summary.json says of a run that a threshold ended."""
    return {"ended": lines[-1]["ended"]} if lines and "ended" in lines[-1] else {}
