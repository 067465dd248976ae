"""The local step of language models: some neighbouring blocks train, or their adapters.

Both ends may train beside them. One program serves every place of the blocks
(`snake_jax.training.stack`). Losses come straight from hidden states and the output matrix, logits
are never whole (`snake_jax.kernels.distill_xent`). What trains is a dict from a *role* to a
subtree: `block_0`, `block_1`, ... for the blocks, in order, and `embed`, `head`.
(snake_learning_magazine, "Fine-Tuning of LLMs".)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh

from snake_jax import compiling
from snake_jax.models.language import Hidden, LanguageModel, Tokens
from snake_jax.params import Params, PyTree
from snake_jax.training import adapter_columns, sharding, stack
from snake_jax.training.image_step import Distillation
from snake_jax.training.optimizers import OptimizerStates
from snake_jax.training.privacy import Privacy, clipped, noised
from snake_jax.training.quantization import of_stack
from snake_jax.training.sharding import attend
from snake_jax.training.text_loss import token_loss
from snake_jax.training.update import (
    Client,
    EpochStats,
    Gradients,
    Objective,
    Rule,
    all_finite,
    differentiated,
    summed,
    updated,
)

ENDS = ("embed", "head")
ADAPTERS = ".lora"  # of the name of a block: its adapters


def text_gradients(step: "LanguageStep") -> Gradients:
    """The gradients of a `TextBatch` on one node that holds all layers."""
    return differentiated(text_objective(step))


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
      privacy: of the node's rows, or None; not on a mesh.
      gradients: of a `TextBatch`, given the step.
      parties: groups of roles whose gradients are clipped apart, as each party knows its own only;
        empty: one group.
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
    privacy: Privacy | None = None
    gradients: Callable[["LanguageStep"], Gradients] = text_gradients
    parties: tuple[tuple[str, ...], ...] = ()

    @property
    def work(self) -> str:
        """See `compiling.options`."""
        return compiling.TEXT

    @property
    def needs_received(self) -> bool:
        """Whether what trains is also needed as the node received it."""
        by_client = self.client is not None and self.client.needs_received
        return self.distillation is not None or by_client

    @property
    def block(self) -> stack.SharedBlock:
        """What the blocks have in common."""

        def apply(
            base: PyTree,
            own: PyTree,
            values: jax.Array,
            context: PyTree,
            key: jax.Array | None,
            place: jax.Array,
        ) -> jax.Array:
            # With adapters the base is the block, without them it is the own part.
            weights, adapters = own, {}
            if self.adapted:
                weights, adapters = base, _scaled(own, self.adapter_scale)
            if isinstance(base, stack.Beside):
                weights = base.base
                read = _scaled(base.columns, self.adapter_scale)
                adapters = adapter_columns.with_read(adapters, read)
            hidden = Hidden(sharding.shard_rows(self.mesh, values), *context)
            attention = attend(self.mesh, hidden.segments)
            new, _ = self.model.attend_block(weights, adapters, hidden, attention, key, place)
            return sharding.shard_rows(self.mesh, new.values)

        take = of_stack if self.fused else stack.at
        return stack.SharedBlock(self.thaw, apply, self.model.num_blocks, take)

    def thaw(self, subtree: PyTree) -> PyTree:
        """A stored subtree as computed with: whole on every device, or its part of the features."""
        return sharding.thawed(self.mesh, subtree, self.compute_dtype)


class FrozenModel(NamedTuple):
    """What a visit reads and does not train.

    Attributes:
      blocks: the base of all blocks, the own parts of those that do not train, and of those that
        do what does not: columns of adapters beyond the node's rank.
      ends: `{name: subtree}`, the ends that do not train.
    """

    blocks: stack.FrozenBlocks
    ends: Params


class TextBatch(NamedTuple):
    """Rows of text, T tokens each. All but `hidden` and `total` are `[..., B, T]`.

    Attributes:
      ids: int32, the tokens.
      targets: int32, the token that follows each.
      weight: float32, of each target's loss, 0 for padding.
      positions: int32, of each token in its text.
      segments: int32, which text of the row a token is of, 0 for padding; None where each row is
        one text.
      hidden: `[..., B, T, D]`, the input of the first block that trains, computed before, or None.
      total: the weight of the whole batch that these rows are a part of; None outside of a step.
      rate_factor: scalar, of the step's learning rate; None: 1.
    """

    ids: jax.Array
    targets: jax.Array
    weight: jax.Array
    positions: jax.Array
    segments: jax.Array | None = None
    hidden: jax.Array | None = None
    total: jax.Array | None = None
    rate_factor: jax.Array | None = None


def own_items(model: LanguageModel, adapted: bool) -> tuple[str, ...]:
    """The names of what trains in the blocks, in order: the blocks, or their adapters."""
    suffix = ADAPTERS if adapted else ""
    return tuple(name + suffix for name in model.layer_names if name not in ENDS)


def own_dtype(frozen_dtype: str, adapted: bool) -> str:
    """How a node stores what may train and does not at the moment."""
    # Adapters are small, and not quantized.
    is_quantized = frozen_dtype in ("int8", "nf4")
    return "bfloat16" if adapted and is_quantized else frozen_dtype


def block_roles(count: int) -> tuple[str, ...]:
    """The roles of k blocks."""
    return tuple(f"block_{j}" for j in range(count))


def train_step(
    step: LanguageStep, roles: tuple[str, ...]
) -> Callable[..., tuple[Params, OptimizerStates, EpochStats]]:
    """The function that trains these roles on one batch; jit it and donate its first two arguments.

    It takes `(trainable, states, frozen, received, rows, key, learning_rate, given)`: `{role:
    subtree}` in float32, their optimizer states, `FrozenModel`, what trains as received (`{}`
    unless `step.needs_received`), a `TextBatch` of A parts `[A, B, T]` whose gradients add up, a
    key, a scalar, and `update.Client.given` (may be left out). It returns the new subtrees, their
    states, and `EpochStats`, whose examples are tokens.
    """
    how = Rule(step.rule, step.clip_norm, step.parties, step.client)
    gradients_of = clipped(step.privacy, step.gradients(step))
    gradients_of = _kept_on(step.mesh, gradients_of)

    def function(trainable, states, frozen, received, rows, key, learning_rate, given=None):
        if rows.rate_factor is not None:
            learning_rate = learning_rate * rows.rate_factor
            rows = rows._replace(rate_factor=None)
        gradients, nll = summed(gradients_of, trainable, frozen, received, rows, key)
        if step.privacy is not None:
            of_rows = rows.weight.max(axis=-1)
            gradients = noised(step.privacy, gradients, of_rows, key)
        new, states = updated(
            how, gradients, trainable, states, received, given, learning_rate, roles
        )
        finite = all_finite((nll, new))
        # Said of the results too: the next step takes them without a move.
        new, states = sharding.shard_stored(step.mesh, (new, states))
        return new, states, EpochStats(nll, rows.weight.sum(), finite)

    return function


def _kept_on(mesh: Mesh | None, gradients: Gradients) -> Gradients:
    """The same gradients, summed over the mesh into where the weights lie."""

    def kept(
        trainable: Params, frozen: FrozenModel, received: Params, rows: TextBatch, key: jax.Array
    ) -> tuple[Params, jax.Array]:
        found, nll = gradients(trainable, frozen, received, rows, key)
        return sharding.shard_stored(mesh, found), nll

    return kept


def text_objective(step: LanguageStep) -> Objective:
    """The loss of a `TextBatch`; its sum is that of tokens' negative log-likelihoods."""

    def loss(
        trainable: Params, frozen: FrozenModel, received: Params, rows: TextBatch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        # The student: the backward pass goes on below its blocks only where the embedding trains.
        ends, own = _parted(trainable, frozen)
        dropout_key = key if step.model.stochastic else None
        to_input = "embed" in trainable
        entrance = _shared_entrance(step, trainable, frozen, rows)
        values, start = entrance or (embedded(step, ends, rows), 0)
        hidden = _hidden(step, own, frozen, rows, values, start, dropout_key, to_input, ends)

        # Teacher and student share the output matrix, unless the student's trains.
        table_trains = table_end(step.model) in trainable

        # The teacher is the model as received, without dropout.
        teacher = teacher_table = None
        if step.distillation is not None:
            taught_ends, taught = _parted(received, frozen)
            values, start = entrance or (embedded(step, taught_ends, rows), 0)
            teacher = _hidden(step, taught, frozen, rows, values, start, None, False, taught_ends)
            teacher = lax.stop_gradient(teacher)
            if table_trains:
                teacher_table = step.model.table(taught_ends)
        return token_loss(step, hidden, rows, ends, table_trains, teacher, teacher_table)

    return loss


def table_end(model: LanguageModel) -> str:
    """The layer with the output matrix: the embedding where the two are tied."""
    return "embed" if model.tied else "head"


def _shared_entrance(
    step: LanguageStep, trainable: Params, frozen: FrozenModel, rows: TextBatch
) -> tuple[jax.Array, jax.Array] | None:
    """The input of the first block that trains, and which that is; student and teacher share it.

    None where more than the blocks from there on depends on what trains, or on chance.
    """
    if rows.hidden is not None:
        return rows.hidden, frozen.blocks.first
    if step.model.stochastic or "embed" in trainable:
        return None
    return lax.stop_gradient(prefix(step)(frozen, rows)), frozen.blocks.first


def prefix(step: LanguageStep) -> Callable[[FrozenModel, TextBatch], jax.Array]:
    """The function `(frozen, rows) -> [B, T, D]`: the input of the first block that trains."""

    def function(frozen: FrozenModel, rows: TextBatch) -> jax.Array:
        values = embedded(step, frozen.ends, rows)
        has_frozen_blocks = any(w.shape[0] for w in jax.tree.leaves(frozen.blocks.own))
        if not has_frozen_blocks:
            return values
        return stack.below(step.block, frozen.blocks, values, (rows.positions, rows.segments))

    return function


def _parted(trainable: Params, frozen: FrozenModel) -> tuple[Params, PyTree]:
    """Both ends, and the stack of the blocks' own parts."""
    own_ends = {name: trainable[name] for name in ENDS if name in trainable}
    blocks = [trainable[role] for role in block_roles(len(trainable)) if role in trainable]
    return frozen.ends | own_ends, stack.stack_trees(blocks)


def embedded(step: LanguageStep, ends: Params, rows: TextBatch) -> jax.Array:
    """`[B, T, D]`: the input of the first block."""
    tokens = Tokens(rows.ids, rows.positions, rows.segments)
    hidden = step.model.embed(ends["embed"], tokens, step.compute_dtype)
    return sharding.shard_rows(step.mesh, hidden.values)


def _hidden(
    step: LanguageStep,
    own: PyTree,
    frozen: FrozenModel,
    rows: TextBatch,
    values: jax.Array,
    start: jax.Array | int,
    key: jax.Array | None,
    input_gradient: bool,
    ends: Params,
) -> jax.Array:
    """`[B, T, E]`: what the output matrix multiplies."""
    values = stack.run(
        step.block,
        own,
        frozen.blocks,
        values,
        (rows.positions, rows.segments),
        key,
        start=start,
        recompute=step.recompute,
        input_gradient=input_gradient,
    )
    return finished(step, ends, rows, values)


def finished(step: LanguageStep, ends: Params, rows: TextBatch, values: jax.Array) -> jax.Array:
    """The last block's output `[B, T, D]` as what the output matrix multiplies, `[B, T, E]`."""
    # The matrix itself stays stored: it is dequantized a chunk at a time.
    head = {name: subtree for name, subtree in ends["head"].items() if name != "lm_head"}
    return step.model.finish(
        step.thaw(head),
        Hidden(sharding.shard_rows(step.mesh, values), rows.positions, rows.segments),
    )


def _scaled(adapters: PyTree, scale: float) -> PyTree:
    """Adapters with their scale in `b`: (x @ a) @ (scale * b) is scale * (x @ a) @ b.

    `b` is the smaller of the two places: the product with x is `[B, T, out]`.
    """
    if scale == 1.0:
        return adapters

    def is_pair(tree: PyTree) -> bool:
        return "b" in tree

    def scaled(pair: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {"a": pair["a"], "b": scale * pair["b"]}

    return jax.tree.map(scaled, adapters, is_leaf=is_pair)
