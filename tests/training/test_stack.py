"""The stack of blocks: gradients, bits, traces and memory against plain autodiff over unrolled
blocks.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from snake_jax.training import quantization, stack

N, D, F = 5, 8, 12
CONTEXT = jnp.arange(3.0)  # something that blocks read and nothing trains


def apply(base, own, x, context, key, place):
    """A block with a base, an own part, what all read, and dropout; nothing of it is linear in the
    weights.
    """
    h = jax.nn.gelu(x @ own["kernel"] + (x @ base["kernel"] if base else 0.0)) * own["scale"]
    if key is not None:
        h = h * jax.random.bernoulli(key, 0.5, h.shape) * 2
    return x + jnp.tanh(h @ own["out"] + context.sum())


def weights(seed, quantized=False):
    keys = jax.random.split(jax.random.key(seed), 3)
    own = {
        "kernel": 0.5 * jax.random.normal(keys[0], (D, F)),
        "scale": 1 + 0.1 * jax.random.normal(keys[1], (F,)),
        "out": 0.5 * jax.random.normal(keys[2], (F, D)),
    }
    return quantization.freeze(own, "int8") if quantized else own


def thaw(tree):
    return quantization.thaw(tree, X.dtype if not jax.config.jax_enable_x64 else jnp.float64)


BLOCK = stack.SharedBlock(thaw, apply, N)
X = jax.random.normal(jax.random.key(9), (2, 3, D))


def parts(first, count, based, quantized=False):
    """Trained and frozen parts, and the same blocks as lists."""
    owns = [weights(i, quantized and not first <= i < first + count) for i in range(N)]
    bases = [{"kernel": weights(10 + i)["kernel"]} for i in range(N)] if based else []
    others = [own for i, own in enumerate(owns) if not first <= i < first + count]
    rest = stack.stack_trees(others) if others else jax.tree.map(lambda w: w[None][:0], owns[0])
    frozen = stack.FrozenBlocks(stack.stack_trees(bases) if based else {}, rest, jnp.int32(first))
    return stack.stack_trees(owns[first : first + count]), frozen, owns, bases


def unrolled(trained, x, owns, bases, first, key):
    count = len(trained["scale"])
    for i, own in enumerate(owns):
        mine = (
            jax.tree.map(lambda w, i=i: w[i - first], trained)
            if first <= i < first + count
            else thaw(own)
        )
        block_key = None if key is None else jax.random.fold_in(key, i)
        x = apply(bases[i] if bases else {}, mine, x, CONTEXT, block_key, i)
    return x


def loss(out):
    return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum()


def close(tree, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), tree, other)


def _double(leaf):
    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


@pytest.mark.parametrize("recompute", stack.RECOMPUTE)
@pytest.mark.parametrize("count", [1, 2, N])
@pytest.mark.parametrize("based", [False, True])
def test_output_and_gradients_are_those_of_the_unrolled_blocks(count, based, recompute):
    """In float64, for every place of the trained blocks."""
    key = jax.random.key(3)
    options = {"recompute": recompute, "input_gradient": True}

    @jax.jit
    def here(trained, x, frozen):
        return jax.value_and_grad(
            lambda t, x: loss(stack.run(BLOCK, t, frozen, x, CONTEXT, key, **options)), (0, 1)
        )(trained, x)

    with jax.enable_x64(True):
        there = jax.jit(
            jax.value_and_grad(lambda *a: loss(unrolled(*a, key)), (0, 1)), static_argnums=4
        )
        for first in range(N - count + 1):
            trained, frozen, owns, bases, x = jax.tree.map(
                _double, (*parts(first, count, based), X)
            )
            close(here(trained, x, frozen), there(trained, x, owns, bases, first))


@pytest.mark.parametrize("recompute", stack.RECOMPUTE)
def test_quantized_blocks_are_computed_with_as_they_dequantize(recompute):
    trained, frozen, owns, bases = parts(2, 1, False, quantized=True)
    options = {"recompute": recompute}
    assert any(
        isinstance(leaf, qwix.QArray) for leaf in jax.tree.leaves(frozen.own, is_leaf=_quantized)
    )
    here = jax.grad(lambda t: loss(stack.run(BLOCK, t, frozen, X, CONTEXT, **options)))(trained)
    there = jax.grad(lambda t: loss(unrolled(t, X, owns, bases, 2, None)))(trained)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), here, there)


def _quantized(leaf):
    return isinstance(leaf, qwix.QArray)


def test_keeping_changes_no_bit():
    trained, frozen, *_ = parts(1, 2, True)
    block, none = (
        jax.jit(
            jax.grad(lambda t, r=r: loss(stack.run(BLOCK, t, frozen, X, CONTEXT, recompute=r)))
        )(trained)
        for r in stack.RECOMPUTE
    )
    jax.tree.map(np.testing.assert_array_equal, block, none)


def test_one_trace_serves_every_block():
    traces = []

    @jax.jit
    def step(trained, frozen):
        traces.append(1)
        return jax.grad(lambda t: loss(stack.run(BLOCK, t, frozen, X, CONTEXT)))(trained)

    for first in range(N):
        step(*parts(first, 1, False)[:2])
    assert len(traces) == 1


def test_starting_above_what_was_run_before_gives_the_same_gradients():
    trained, frozen, *_ = parts(3, 1, False)
    below = stack.below(BLOCK, frozen, X, CONTEXT)
    whole = jax.grad(lambda t: loss(stack.run(BLOCK, t, frozen, X, CONTEXT)))(trained)
    rest = jax.grad(
        lambda t: loss(stack.run(BLOCK, t, frozen, below, CONTEXT, start=frozen.first))
    )(trained)
    jax.tree.map(np.testing.assert_array_equal, whole, rest)


def test_without_an_input_gradient_the_input_has_none():
    trained, frozen, *_ = parts(1, 1, False)
    assert not jax.grad(lambda x: loss(stack.run(BLOCK, trained, frozen, x, CONTEXT)))(X).any()


@functools.cache
def _backward_products(first, input_gradient):
    """Matrix products that a backward pass really does: counted by running it under a counting
    block.
    """
    counted = []

    def counting(base, own, x, context, key, place):
        @jax.custom_vjp
        def count(x):
            return x

        count.defvjp(lambda x: (x, None), lambda _, g: (_note(g, counted),))
        return apply(base, own, count(x), context, key, place)

    trained, frozen, *_ = parts(first, 1, False)
    block = stack.SharedBlock(thaw, counting, N)
    jax.grad(
        lambda t: loss(stack.run(block, t, frozen, X, CONTEXT, input_gradient=input_gradient))
    )(trained)
    jax.effects_barrier()
    return len(counted)


def _note(gradient, counted):
    jax.debug.callback(lambda: counted.append(1))
    return gradient


@pytest.mark.parametrize("first", range(N))
def test_the_backward_pass_ends_at_the_trained_block(first):
    assert _backward_products(first, False) == N - first
    assert _backward_products(first, True) == N


def test_keeping_keeps_activations_and_no_weights():
    """The residuals of a block are as many as its activations need, and none has a matrix's
    shape.
    """
    trained, frozen, *_ = parts(0, 1, False, quantized=True)
    jaxpr = jax.make_jaxpr(
        jax.grad(lambda t: loss(stack.run(BLOCK, t, frozen, X, CONTEXT, recompute="none")))
    )(trained)
    (forward,) = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "while" and len(e.outvars) > 4]
    kept = [v.aval.shape for v in forward.outvars if v.aval.shape[:1] == (N - 1,)]
    assert (N - 1, 2, 3, F) in kept
    assert not {(N - 1, D, F), (N - 1, F, D)} & set(kept)
