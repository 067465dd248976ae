"""The local step of language models: some neighbouring blocks train, or their adapters, perhaps
both ends too.

One program serves every place of the blocks (`snake_jax.stack`). Losses come straight from hidden
states and the output matrix, logits are never whole (`snake_jax.kernels.distill_xent`). What trains
is a dict from a *role* to a subtree: `block_0`, `block_1`, ... for the blocks, in order, and
`embed`, `head`. (snake_learning_magazine, "Fine-Tuning of LLMs".)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh

from snake_jax.models.language import Hidden, LanguageModel, Tokens
from snake_jax.params import Params, PyTree
from snake_jax.training import sharding, stack
from snake_jax.training.image_step import Distillation
from snake_jax.training.optimizers import OptimizerStates
from snake_jax.training.quantization import of_stack
from snake_jax.training.sharding import attend, token_losses
from snake_jax.training.update import (
    Client,
    EpochStats,
    Gradients,
    Mask,
    Objective,
    Rule,
    all_finite,
    differentiated,
    summed,
    updated,
)

ENDS = ("embed", "head")
ADAPTERS = ".lora"  # of the name of a block: its adapters


class LanguageStep(NamedTuple):
    """What a step is, besides its arrays.

    Attributes:
      model: the network.
      rule: update rule without learning rate (`optimizers.update_rule`).
      clip_norm: greatest norm of the gradients of what trains; 0: no clipping.
      adapted: whether a block's own part are adapters beside a base that never trains (LoRA).
      adapter_scale: of the adapters' product.
      distillation: None: off.
      compute_dtype: of activations, and of weights while they are computed with.
      client: what the method has a node do beside the plain step, or None.
      recompute: see `stack.run`.
      mesh: of `sharding.make_mesh`, which the arguments lie on; None: one device.
      fused: whether frozen quantized matrices are multiplied with where they lie
        (`kernels.quant_matmul`); not on a mesh.
    """

    model: LanguageModel
    rule: optax.GradientTransformation
    clip_norm: float
    adapted: bool = False
    adapter_scale: float = 1.0
    distillation: Distillation | None = None
    compute_dtype: Any = jnp.float32
    client: Client | None = None
    recompute: str = "block"
    mesh: Mesh | None = None
    fused: bool = False

    @property
    def needs_received(self) -> bool:
        """Whether what trains is also needed as the node received it."""
        by_client = self.client is not None and self.client.needs_received
        return self.distillation is not None or by_client

    @property
    def block(self) -> stack.Block:
        """What the blocks have in common."""

        def apply(
            base: PyTree, own: PyTree, values: jax.Array, context: PyTree, key: jax.Array | None
        ) -> jax.Array:
            hidden = Hidden(sharding.spread(self.mesh, values), *context)
            weights, adapters = own, {}
            if self.adapted:
                weights, adapters = base, _scaled(own, self.adapter_scale)
            new, _ = self.model.attend_block(
                weights, adapters, hidden, attend(self.mesh, hidden.segments), key
            )
            return sharding.spread(self.mesh, new.values)

        return stack.Block(
            self.thaw, apply, self.model.num_blocks, of_stack if self.fused else stack.at
        )

    def thaw(self, subtree: PyTree) -> PyTree:
        """A stored subtree as the arrays that are computed with, whole on every device or its part
        of the features.
        """
        return sharding.thawed(self.mesh, subtree, self.compute_dtype)


class Frozen(NamedTuple):
    """What a visit reads and does not train: the blocks, the ends that do not train, as `{name:
    subtree}`, and of the columns of adapters `[R]` bool which the node trains; None: all.
    """

    blocks: stack.Frozen
    ends: Params
    columns: jax.Array | None = None


class Rows(NamedTuple):
    """Rows of text `[..., B, T]`: ids, the token that follows each, the weight of its loss,
    positions, and segments or None where each row is one text. `hidden` `[..., B, T, D]`: the input
    of the first block that trains, computed before, or None. `total`: the weight of the whole batch
    that these rows are a part of; None outside of a step.
    """

    ids: jax.Array
    targets: jax.Array
    weight: jax.Array
    positions: jax.Array
    segments: jax.Array | None = None
    hidden: jax.Array | None = None
    total: jax.Array | None = None


class Score(NamedTuple):
    """Sums over tokens: negative log-likelihood, hits of the likeliest token, and weights."""

    nll: jax.Array
    hits: jax.Array
    tokens: jax.Array


def own_items(model: LanguageModel, adapted: bool) -> tuple[str, ...]:
    """The names of what trains in the blocks, in order: the blocks, or their adapters."""
    suffix = ADAPTERS if adapted else ""
    return tuple(name + suffix for name in model.layer_names if name not in ENDS)


def own_dtype(frozen_dtype: str, adapted: bool) -> str:
    """How a node stores what may train and does not at the moment: adapters are small, and not
    quantized.
    """
    return "bfloat16" if adapted and frozen_dtype in ("int8", "nf4") else frozen_dtype


def block_roles(count: int) -> tuple[str, ...]:
    """The roles of k blocks."""
    return tuple(f"block_{j}" for j in range(count))


def train_step(
    step: LanguageStep, roles: tuple[str, ...]
) -> Callable[..., tuple[Params, OptimizerStates, EpochStats]]:
    """The function that trains these roles on one batch; jit it and donate its first two arguments.

    It takes `(trainable, states, frozen, received, rows, key, learning_rate, given)`: `{role:
    subtree}` in float32, their optimizer states, `Frozen`, what trains as it was received (`{}`
    unless `step.needs_received`), `Rows` of `[A, B, T]` whose A parts are passed one after the
    other and whose gradients add up, a key, a scalar, and what a client's steps read
    (`update.Client.given`; may be left out). It returns the new subtrees, their states, and
    `EpochStats`, whose examples are tokens.
    """
    how = Rule(step.rule, step.clip_norm, client=step.client)
    gradients_of = _kept_on(step.mesh, differentiated(text_objective(step)))

    def function(trainable, states, frozen, received, rows, key, learning_rate, given=None):
        gradients, nll = summed(gradients_of, trainable, frozen, received, rows, key)
        mask = None if frozen.columns is None else _columns_mask(frozen.columns)
        new, states = updated(
            how, gradients, trainable, states, received, given, learning_rate, roles, mask
        )
        finite = all_finite((nll, new))
        new, states = sharding.kept(step.mesh, (new, states))
        return new, states, EpochStats(nll, rows.weight.sum(), finite)

    return function


def _kept_on(mesh: Mesh | None, gradients: Gradients) -> Gradients:
    """The same gradients, summed over the mesh into where the weights lie."""

    def kept(
        trainable: Params, frozen: Frozen, received: Params, rows: Rows, key: jax.Array
    ) -> tuple[Params, jax.Array]:
        found, nll = gradients(trainable, frozen, received, rows, key)
        return sharding.kept(mesh, found), nll

    return kept


def text_objective(step: LanguageStep) -> Objective:
    """The loss of a part `Rows` of a batch; its sum is that of tokens' negative log-likelihoods."""

    def loss(
        trainable: Params, frozen: Frozen, received: Params, rows: Rows, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        ends, own = _parted(trainable, frozen)
        dropout_key = key if step.model.stochastic else None
        enter = _shared_entrance(step, trainable, frozen, rows)
        values, start = (_embed(step, ends, rows), 0) if enter is None else enter
        hidden = _hidden(
            step, own, frozen, rows, values, start, dropout_key, "embed" in trainable, ends
        )

        # The teacher is the model as received, without dropout.
        teacher = teacher_table = None
        if step.distillation is not None:
            taught_ends, taught = _parted(received, frozen)
            values, start = (_embed(step, taught_ends, rows), 0) if enter is None else enter
            teacher = lax.stop_gradient(
                _hidden(step, taught, frozen, rows, values, start, None, False, taught_ends)
            )
            teacher_table = step.model.table(taught_ends)

        # Both share the output matrix, unless the student's trains.
        temperature, factor = step.distillation or (1.0, 0.0)
        table_trains = ("embed" if step.model.tied else "head") in trainable
        losses = token_losses(
            step.mesh,
            hidden,
            step.model.table(ends),
            rows.targets,
            teacher,
            teacher_table if table_trains else None,
            temperature=temperature,
            table_gradient=table_trains,
        )
        weight = rows.weight.ravel()
        nll = (weight * losses.nll).sum()
        distance = (weight * losses.distance).sum()
        total = jnp.maximum(weight.sum(), 1.0) if rows.total is None else rows.total
        return (nll + factor * temperature**2 * distance) / total, nll

    return loss


def _shared_entrance(
    step: LanguageStep, trainable: Params, frozen: Frozen, rows: Rows
) -> tuple[jax.Array, jax.Array] | None:
    """The input of the first block that trains, and which that is; None where more than the blocks
    from there on depends on what trains or on chance. Student and teacher share it.
    """
    if rows.hidden is not None:
        return rows.hidden, frozen.blocks.first
    if step.model.stochastic or "embed" in trainable:
        return None
    return lax.stop_gradient(prefix(step)(frozen, rows)), frozen.blocks.first


def prefix(step: LanguageStep) -> Callable[[Frozen, Rows], jax.Array]:
    """The function `(frozen, rows) -> [B, T, D]`: the input of the first block that trains, without
    dropout.
    """

    def function(frozen: Frozen, rows: Rows) -> jax.Array:
        values = _embed(step, frozen.ends, rows)
        if not any(w.shape[0] for w in jax.tree.leaves(frozen.blocks.own)):
            return values
        return stack.below(step.block, frozen.blocks, values, (rows.positions, rows.segments))

    return function


def evaluate(step: LanguageStep) -> Callable[[PyTree, PyTree, Params, Rows], Score]:
    """The function `(base, own, ends, rows) -> Score` of rows `[B, T]` under the whole model; jit
    it.

    `base` and `own` are `[N, ...]` stacks of all blocks' parts as in `stack.Frozen`, `ends`
    embedding and head.
    """

    def function(base: PyTree, own: PyTree, ends: Params, rows: Rows) -> Score:
        every = stack.Frozen(base, own, jnp.int32(step.model.num_blocks))
        values = stack.below(
            step.block, every, _embed(step, ends, rows), (rows.positions, rows.segments)
        )
        hidden = _finished(step, ends, rows, values)
        losses = token_losses(step.mesh, hidden, step.model.table(ends), rows.targets)
        weight = rows.weight.ravel()
        return Score((weight * losses.nll).sum(), (weight * losses.hit).sum(), weight.sum())

    return function


def _parted(trainable: Params, frozen: Frozen) -> tuple[Params, PyTree]:
    """Both ends, and the stack of the blocks' own parts."""
    ends = frozen.ends | {name: trainable[name] for name in ENDS if name in trainable}
    blocks = [trainable[role] for role in block_roles(len(trainable)) if role in trainable]
    return ends, stack.stacked(blocks)


def _embed(step: LanguageStep, ends: Params, rows: Rows) -> jax.Array:
    tokens = Tokens(rows.ids, rows.positions, rows.segments)
    return sharding.spread(
        step.mesh, step.model.embed(ends["embed"], tokens, step.compute_dtype).values
    )


def _hidden(
    step: LanguageStep,
    own: PyTree,
    frozen: Frozen,
    rows: Rows,
    values: jax.Array,
    start: jax.Array | int,
    key: jax.Array | None,
    input_gradient: bool,
    ends: Params,
) -> jax.Array:
    """`[B, T, E]`: what the output matrix multiplies."""
    context = (rows.positions, rows.segments)
    options: dict[str, Any] = {
        "start": start,
        "recompute": step.recompute,
        "input_gradient": input_gradient,
    }
    values = stack.run(step.block, own, frozen.blocks, values, context, key, **options)
    return _finished(step, ends, rows, values)


def _finished(step: LanguageStep, ends: Params, rows: Rows, values: jax.Array) -> jax.Array:
    head = {name: subtree for name, subtree in ends["head"].items() if name != "lm_head"}
    return step.model.finish(
        step.thaw(head), Hidden(sharding.spread(step.mesh, values), rows.positions, rows.segments)
    )


def _columns_mask(columns: jax.Array) -> Mask:
    """`new` in the columns of adapters (`a` `[in, R]`, `b` `[R, out]`) that the node trains, `old`
    in the others.
    """

    def chosen(path: tuple, new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(columns if path[-1].key == "a" else columns[:, None], new, old)

    def mask(new: Params, old: Params) -> Params:
        masked = dict(new)
        for role in new:
            if role not in ENDS:
                masked[role] = jax.tree_util.tree_map_with_path(chosen, new[role], old[role])
        return masked

    return mask


def _scaled(adapters: PyTree, scale: float) -> PyTree:
    """Adapters with their scale in `b`."""
    if scale == 1.0:
        return adapters

    def one(pair: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {"a": pair["a"], "b": scale * pair["b"]}

    return jax.tree.map(one, adapters, is_leaf=lambda tree: "b" in tree)
