"""What differential privacy a run guarantees, and what it does not cover.

The guarantee is for one example of a node, an image or a row of text: an outcome is about as likely
where that example gives no gradient. Examples are shuffled and every one is in one batch of an
epoch, which is no Poisson sampling. So no amplification by sampling is counted: an epoch is one
Gaussian mechanism for each of its node's examples, since its other steps do not read the example.
K epochs are K such mechanisms, one after the other. Examples lie on one node each, so a node's
epsilon is of the epochs of its own visits alone.
"""

import importlib.util
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from snake_jax.algorithms.base import Algorithm, all_on_node
from snake_jax.algorithms.visits import Round, Visit
from snake_jax.config import RunConfig, TextConfig
from snake_jax.errors import UserError
from snake_jax.training.privacy import Privacy

Epoch = tuple[int, int]
"""A turn, and a pass over the data in it: visits that share a turn share its order of examples, and
each example is in one batch of each pass.
"""
UNPROTECTED = (
    "losses, accuracies and perplexities, label counts and divergence, pixel statistics, numbers "
    "of examples and lengths of rows, the seed (who knows it knows the noise)"
)
"""What a run releases of examples without noise."""


def privacy_of(config: RunConfig) -> Privacy | None:
    """How much an example may say in a step; None: whatever its gradient is."""
    return Privacy(config.dp_clip, config.dp_noise) if config.dp_clip else None


def check(config: RunConfig, algorithm: Algorithm) -> None:
    """Refuses what would break the guarantee, or cannot be computed example by example.

    Raises:
      UserError: there is something.
    """
    if not config.dp_clip:
        if config.dp_noise:
            raise UserError(
                f"--dp_noise={config.dp_noise}: noise covers gradients of a known greatest norm; "
                "set --dp_clip too, as 1"
            )
        return
    flag = f"--dp_clip={config.dp_clip}"
    if algorithm.chain is not all_on_node:
        raise UserError(
            f"{flag}: --algorithm={algorithm.name} sends activations of examples over its cuts, "
            "which no noise covers; take a method that does not cut the model"
        )
    reason = _refused(config)
    if reason:
        raise UserError(f"{flag}: {reason}")
    if config.dp_noise and importlib.util.find_spec("dp_accounting") is None:
        raise UserError(
            f"--dp_noise={config.dp_noise} needs dp-accounting, which is not installed: "
            "pip install 'snake-jax[private]'"
        )


def _refused(config: RunConfig) -> str:
    """What cannot stand beside privacy, and the way out; empty where nothing."""
    if config.early_stop:
        return "the training loss, which no noise covers, would end visits; leave --early_stop out"
    if config.node_epochs:
        return "epochs are counted by --local_epochs; leave --node_epochs out"
    if config.visit_loss or getattr(config, "visit_perplexity", 0.0):
        return (
            "the training loss, which no noise covers, would end visits; leave --visit_loss and "
            "--visit_perplexity out"
        )
    if getattr(config, "visit_accuracy", 0.0):
        return (
            "the training accuracy, which no noise covers, would end visits; leave "
            "--visit_accuracy out"
        )
    if config.leave_loss or config.leave_gain:
        return (
            "the training loss, which no noise covers, would have nodes leave; leave --leave_loss "
            "and --leave_gain out"
        )
    if config.outliers:
        return "which examples are outliers depends on all others; leave --outliers out"
    if isinstance(config, TextConfig):
        if config.packing:
            return "which texts share a row depends on all of them; say --packing=false"
        if config.mesh:
            return "gradients of single rows lie on one device; leave --mesh out"
        if config.frozen_matmul == "fused":
            return "the fused kernel takes whole batches; say --frozen_matmul=dequantize"
    return ""


def epochs(visit: Visit, local_epochs: int) -> set[Epoch]:
    """The epochs that a visit's share of its turn reaches into."""
    begin, end = visit.share
    numbers = range(math.floor(begin * local_epochs), math.ceil(end * local_epochs))
    return {(visit.turn, number) for number in numbers}


def spent_in(rounds: Iterable[Round], local_epochs: int) -> dict[int, set[Epoch]]:
    """`{node: epochs}` of these rounds; visits that were lost count as the others."""
    spent: dict[int, set[Epoch]] = {}
    for visits in rounds:
        for visit in visits:
            spent.setdefault(visit.node, set()).update(epochs(visit, local_epochs))
    return spent


def epsilon(noise: float, num_epochs: int, delta: float) -> float | None:
    """The epsilon of an example after so many epochs; None: there is no guarantee.

    K Gaussian mechanisms of noise multiplier sigma, each chosen after those before it, are together
    one of sigma / sqrt(K): Dong et al., "Gaussian Differential Privacy", JRSS B 2022 (arXiv
    1905.02383), corollary 3.3. Its epsilon is exact: Balle and Wang, "Improving the Gaussian
    Mechanism for Differential Privacy", ICML 2018 (arXiv 1805.06530), theorem 8.

    Args:
      noise: sigma.
      num_epochs: K.
      delta: the delta that epsilon is for.
    """
    if not num_epochs:
        return 0.0
    if not noise:
        return None
    # Here, since runs without privacy need no accountant.
    import dp_accounting

    return dp_accounting.get_epsilon_gaussian(noise / math.sqrt(num_epochs), delta)


def of_round(config: RunConfig, visits: Round, spent: dict[int, set[Epoch]]) -> dict[str, Any]:
    """What a round's line says: the epochs that its visits began, and the worst epsilon so far.

    Args:
      config: of the run.
      visits: of the round.
      spent: epochs of each node before the round; the round's are added to it.
    """
    if not config.dp_clip:
        return {}
    begun = []
    for visit in visits:
        of_node = spent.setdefault(visit.node, set())
        before = len(of_node)
        of_node |= epochs(visit, config.local_epochs)
        begun.append(len(of_node) - before)
    most = max(map(len, spent.values()))
    return {"dp_epochs": begun, "epsilon": epsilon(config.dp_noise, most, config.dp_delta)}


def summary(
    config: RunConfig, algorithm: Algorithm, lines: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What summary.json says of the guarantee, from the lines of `of_round`."""
    if not config.dp_clip:
        return {}
    # All data in one place is one node's.
    spent = dict.fromkeys(range(1 if algorithm.at_server else config.nodes), 0)
    for line in lines:
        node = line["node"]
        visited = node if isinstance(node, list) else [node]
        for one, count in zip(visited, line["dp_epochs"], strict=True):
            spent[one] += count
    of_nodes = [epsilon(config.dp_noise, count, config.dp_delta) for count in spent.values()]
    return {
        "epsilon": lines[-1]["epsilon"],
        "epsilon_of_nodes": of_nodes,
        "dp_delta": config.dp_delta,
        "dp_unit": "row of text" if isinstance(config, TextConfig) else "image",
        "dp_sampling": "shuffled epochs, no amplification",
        "dp_unprotected": UNPROTECTED,
    }


def said(summary: Mapping[str, Any]) -> str:
    """The guarantee in words, from a run's summary; empty where the run has none."""
    if "dp_unit" not in summary:
        return ""
    unit, delta, worst = summary["dp_unit"], summary["dp_delta"], summary["epsilon"]
    if worst is None:
        return f"differential privacy: none, since each {unit} was clipped and --dp_noise=0"
    least = min(summary["epsilon_of_nodes"])
    return (
        f"differential privacy: epsilon {worst:.4g} at delta {delta:g} for any one {unit} (of the "
        f"least visited node {least:.4g}; {summary['dp_sampling']}); not covered: "
        f"{summary['dp_unprotected']}"
    )
