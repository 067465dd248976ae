"""fedjax's federated averaging over the same network, written for its `for_each_client` on the jit
backend.

XLA's own convolution, as any fedjax model has; its pmap backend needs `jax.device_put_replicated`,
which jax 0.10 has not.

  python -m experiments.bench.fedjax_side WORK.npz CHECKED.npz '{}'
"""

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import fedjax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench.work import Done, Line, load


def apply(params: dict[str, tuple[jax.Array, jax.Array]], x: jax.Array) -> jax.Array:
    """Images [B,H,W,3] to logits."""
    layers = list(params.values())
    for kernel, bias in layers:
        if kernel.ndim == 4:
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.lax.reduce_window(
                jax.nn.relu(x + bias), -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
            )
        else:
            x = x.reshape(x.shape[0], -1) @ kernel + bias
            x = x if kernel is layers[-1][0] else jax.nn.relu(x)
    return x


def main(work_file: str, checked_file: str, _: str) -> None:
    """Does the rounds that are asked for."""
    line, work = Line(Path(checked_file)), load(Path(work_file))
    x, y, nodes = work.normalised(), work.labels, range(len(work.shards))

    def loss(params: Any, batch: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(
            apply(params, batch["x"]), batch["y"]
        ).mean()

    def gradient(params: Any, batch: Any, key: jax.Array) -> Any:
        grads = jax.grad(loss)(params, batch)
        if not work.clip_norm:
            return grads
        return optax.clip_by_global_norm(work.clip_norm).update(grads, optax.EmptyState())[0]

    client = fedjax.optimizers.sgd(work.learning_rate, work.momentum)
    hparams = fedjax.ShuffleRepeatBatchHParams(work.batch_size, num_epochs=1, skip_shuffle=True)
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        gradient, client, fedjax.optimizers.sgd(learning_rate=1.0), hparams
    )
    state, key, number = (
        algorithm.init(jax.tree.map(jnp.asarray, work.params)),
        jax.random.key(0),
        0,
    )
    versions = {"fedjax": importlib.metadata.version("fedjax"), "jax": jax.__version__}
    line.ready(work.params, variant="jit backend", versions=versions)
    while line.asked():
        orders = [work.order(number, node) for node in nodes]
        clients = [
            (node, fedjax.ClientDataset({"x": x[order], "y": y[order]}), key)
            for node, order in enumerate(orders)
        ]
        state, _told = algorithm.apply(state, clients)
        params = jax.block_until_ready(state.params)
        steps = sum(-(-len(order) // work.batch_size) for order in orders)
        done = Done(None, steps, sum(map(len, orders)))
        line.answer(done, lambda: jax.tree.map(np.asarray, params))  # noqa: B023
        number += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
