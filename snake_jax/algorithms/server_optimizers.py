"""What the server makes of a round's mean: takes it, or steps along the way it points.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021 (arXiv 2003.00295), Algorithm 2: the mean
change Delta of the nodes' weights stands in the place of a gradient,

    m <- beta_1 m + (1 - beta_1) Delta
    v <- v + Delta^2                                        adagrad
    v <- v - (1 - beta_2) Delta^2 sign(v - Delta^2)         yogi
    v <- beta_2 v + (1 - beta_2) Delta^2                    adam
    x <- x + eta m / (sqrt(v) + tau)

with m = 0 and v = tau^2 at first; beta_1 is `--server_momentum`, eta `--server_learning_rate`, tau
`--server_tau`. Plain SGD is x <- x + eta Delta, and with momentum that of FedAvgM: Hsu et al.,
"Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
arXiv 1909.06335, section 4.3.
"""

import jax
import jax.numpy as jnp

from snake_jax.config import RunConfig
from snake_jax.params import Params, PyTree

BETA_2 = 0.99
"""Of adam and yogi; the paper's, section 5."""


def memory(config: RunConfig, params: Params) -> PyTree:
    """What the server's optimizer starts from, arrays; `{}` where it remembers nothing."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    if config.server_optimizer == "sgd":
        return zeros if config.server_momentum else {}
    least = config.server_tau**2
    return {"m": zeros, "v": jax.tree.map(lambda p: jnp.full_like(p, least), params)}


def step(
    config: RunConfig, params: Params, remembered: PyTree, mean: Params
) -> tuple[Params, PyTree]:
    """The model after a round, and what the optimizer remembers.

    Args:
      config: of the run.
      params: before the round.
      remembered: see `memory`.
      mean: of the nodes' weights after it.
    """
    if config.server_optimizer != "sgd":
        return _adaptive(config, params, remembered, mean)
    momentum, rate = config.server_momentum, config.server_learning_rate
    if not momentum and rate == 1:
        return mean, remembered
    change = jax.tree.map(jnp.subtract, mean, params)
    if momentum:
        change = jax.tree.map(lambda v, d: momentum * v + d, remembered, change)
    moved = jax.tree.map(lambda p, d: p + rate * d, params, change)
    return moved, change if momentum else remembered


def _adaptive(
    config: RunConfig, params: Params, remembered: PyTree, mean: Params
) -> tuple[Params, PyTree]:
    """A step of Algorithm 2."""
    beta_1, rate, tau = config.server_momentum, config.server_learning_rate, config.server_tau

    def second(v: jax.Array, change: jax.Array) -> jax.Array:
        squared = change * change
        if config.server_optimizer == "adagrad":
            return v + squared
        if config.server_optimizer == "yogi":
            return v - (1 - BETA_2) * squared * jnp.sign(v - squared)
        return BETA_2 * v + (1 - BETA_2) * squared

    change = jax.tree.map(jnp.subtract, mean, params)
    m = jax.tree.map(lambda m, d: beta_1 * m + (1 - beta_1) * d, remembered["m"], change)
    v = jax.tree.map(second, remembered["v"], change)
    moved = jax.tree.map(lambda p, m, v: p + rate * m / (jnp.sqrt(v) + tau), params, m, v)
    return moved, {"m": m, "v": v}
