"""fedjax's federated averaging over the same network, by its `for_each_client` on the jit backend.

XLA's own convolution, as any fedjax model has; its pmap backend needs `jax.device_put_replicated`,
which jax 0.10 has not.

  python -m experiments.bench.fedjax_side WORK.npz CHECKED.npz '{}'
"""

import functools
import importlib.metadata
import math
import sys
from pathlib import Path
from typing import Any

import fedjax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench.work import Done, Line, Work, load


def apply(params: dict[str, tuple[jax.Array, jax.Array]], x: jax.Array) -> jax.Array:
    """Images `[B, H, W, 3]` to logits `[B, classes]`.

    Convolutions with ReLU and 2x2 max pooling, then dense layers with ReLU between them.
    """
    last = list(params)[-1]
    layout = ("NHWC", "HWIO", "NHWC")
    window = (1, 2, 2, 1)
    for name, (kernel, bias) in params.items():
        if kernel.ndim == 4:
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
            x = jax.nn.relu(x + bias)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
        else:
            flat = x.reshape(x.shape[0], -1)
            x = flat @ kernel + bias
            if name != last:
                x = jax.nn.relu(x)
    return x


def averaging(work: Work) -> fedjax.FederatedAlgorithm:
    """fedjax's own federated averaging, with the work's optimizer at the clients."""

    def loss(params: Any, batch: Any) -> jax.Array:
        logits = apply(params, batch["x"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    def gradient(params: Any, batch: Any, key: jax.Array) -> Any:
        grads = jax.grad(loss)(params, batch)
        if not work.clip_norm:
            return grads
        clip = optax.clip_by_global_norm(work.clip_norm)
        clipped, _ = clip.update(grads, optax.EmptyState())
        return clipped

    # Examples come in the order of the work; the server takes the mean as it is.
    client = fedjax.optimizers.sgd(work.learning_rate, work.momentum)
    server = fedjax.optimizers.sgd(learning_rate=1.0)
    hparams = fedjax.ShuffleRepeatBatchHParams(work.batch_size, num_epochs=1, skip_shuffle=True)
    return fedjax.algorithms.fed_avg.federated_averaging(gradient, client, server, hparams)


def main(work_file: str, checked_file: str, _: str) -> None:
    """Does the rounds that are asked for."""
    line = Line(Path(checked_file))
    work = load(Path(work_file))
    images = work.normalised()
    algorithm = averaging(work)
    state = algorithm.init(jax.tree.map(jnp.asarray, work.params))
    key = jax.random.key(0)
    versions = {"fedjax": importlib.metadata.version("fedjax"), "jax": jax.__version__}
    line.ready(work.params, variant="jit backend", versions=versions)

    number = 0
    while line.asked():
        clients = []
        steps = 0
        for node, order in enumerate(work.orders[number]):
            data = fedjax.ClientDataset({"x": images[order], "y": work.labels[order]})
            clients.append((node, data, key))
            steps += math.ceil(len(order) / work.batch_size)
        state, _told = algorithm.apply(state, clients)
        params = jax.block_until_ready(state.params)
        done = Done(None, steps, work.examples)
        line.answer(done, functools.partial(jax.tree.map, np.asarray, params))
        number += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
