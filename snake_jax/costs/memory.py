"""Bytes of what a node holds through a visit, without activations: counted from shapes.

docs/accounting.md says what each number holds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import optax

from snake_jax.costs import shapes
from snake_jax.costs.shapes import Step
from snake_jax.costs.traffic import stored_bytes
from snake_jax.models import lora
from snake_jax.params import Params, num_bytes, num_params, select, without
from snake_jax.training.text_step import ENDS


class StateBytes(NamedTuple):
    """What a node holds through a visit, in bytes by kind.

    Attributes:
      frozen: what does not train, as stored.
      trained: what does, in float32.
      gradients: of that; with differential privacy those of a batch's examples beside their sum.
      optimizer: its optimizer states.
      received: what trains as it was received, where a teacher or a proximal term needs it.
    """

    frozen: int
    trained: int
    gradients: int
    optimizer: int
    received: int

    @property
    def total(self) -> int:
        """The sum."""
        return sum(self)


def state_bytes(
    step: Step,
    trained: Sequence[str],
    frozen_dtype: str = "float32",
    adapters: lora.Lora | None = None,
    examples: int = 0,
    at: Sequence[str] | None = None,
    rank: int = 0,
) -> StateBytes:
    """What a node holds through a visit that trains these layers.

    Args:
      step: the local step.
      trained: layers, or adapters in the place of blocks.
      frozen_dtype: of the others, see `quantization.freeze`.
      adapters: which; None where whole layers train.
      examples: that are passed at a time, each with a gradient of its own under privacy.
      at: what lies at the place that is asked about, where the model is cut; None: all of it does.
      rank: how many columns of the adapters the node trains, the others lie frozen beside them in
        float32; 0: all.
    """
    # All that does not train lies frozen beside what does, adapters of other blocks too.
    held = shapes.held_shapes(step.model, adapters)
    if at is not None:
        held = select(held, at)
        trained = [name for name in trained if name in held]
    trainable = {}
    frozen_bytes = 0
    for name, subtree in select(held, trained).items():
        trainable[name], read = shapes.trained_columns(subtree, rank)
        frozen_bytes += 0 if read is None else num_bytes(read)
    for name, subtree in without(held, trained).items():
        frozen_bytes += stored_bytes(subtree, shapes.stored_dtype(name, frozen_dtype))
    # The model as received is another copy of what trains; frozen layers are shared with it.
    state = trained_bytes(trainable, step.rule)
    received = state.trained if step.needs_received else 0
    gradients = state.gradients
    if step.privacy is not None:
        gradients += examples * state.gradients
    return state._replace(frozen=frozen_bytes, gradients=gradients, received=received)


def trained_bytes(trainable: Params, rule: optax.GradientTransformation) -> StateBytes:
    """What a node holds of layers that train, nothing frozen beside them.

    Args:
      trainable: shapes of the layers.
      rule: their update rule.
    """
    states = shapes.state_shapes(rule, trainable)
    weights_bytes = num_bytes(trainable)
    # A gradient is as large as the weights that it is of.
    return StateBytes(
        frozen=0,
        trained=weights_bytes,
        gradients=weights_bytes,
        optimizer=num_bytes(states),
        received=0,
    )


def evaluation_bytes(step: Step, adapters: lora.Lora | None) -> int:
    """What evaluation in a run lays beside the frozen blocks.

    That is every block's own part, in the dtype that is computed with.
    """
    trainable = shapes.trainable_shapes(step.model, adapters)
    own = without(trainable, ENDS)
    itemsize = jnp.dtype(step.compute_dtype).itemsize
    return num_params(own) * itemsize
