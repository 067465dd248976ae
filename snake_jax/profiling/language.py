"""Language models as subjects of the profiler."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from snake_jax.algorithms.visits import Passed
from snake_jax.costs import language_costs, language_profile
from snake_jax.costs.accounting import StepFlops
from snake_jax.costs.language_costs import RowCosts
from snake_jax.costs.targets import Compiled
from snake_jax.models import lora
from snake_jax.models.attention import SCORE_BYTES
from snake_jax.models.language import LanguageModel
from snake_jax.params import num_params, select
from snake_jax.profiling.rows import Counted, Subject
from snake_jax.train.text_step import ENDS, LanguageStep, block_roles, own_items


class Text(NamedTuple):
    """Rows of a step: `(B, T)`, and whether a row holds several texts."""

    rows: int
    length: int
    packed: bool = True


def subject(
    step: LanguageStep, settings: lora.Lora | None, frozen_dtype: str, text: Text, target: str = ""
) -> Subject:
    """One way to train and store a language model.

    Args:
      step: the local step.
      settings: of the adapters; None: whole blocks train.
      frozen_dtype: of what does not train.
      text: the rows of a step.
      target: see `targets.devices`; empty: nothing is compiled.
    """
    model = step.model
    like = language_profile.trainable_shapes(step, settings, ENDS)
    items = own_items(model, step.adapted)
    alike = (model, settings, step.recompute)
    short = unbroken_length(model, text.length)
    state = functools.cache(
        lambda program: language_profile.state_bytes(
            step, settings, _of_program(items, program), frozen_dtype
        )
    )

    def flops(costs: RowCosts, trained: tuple[str, ...], length: int) -> StepFlops:
        trains = language_costs.trained(items, trained)
        return language_costs.passed_parts(step, costs, trains, Passed(length, text.rows))

    def program(trained: tuple[str, ...]) -> tuple[str, ...]:
        return (*block_roles(sum(n in trained for n in items)), *(n for n in ENDS if n in trained))

    def arguments(trained: tuple[str, ...]) -> tuple[Any, ...]:
        return language_profile.step_arguments(
            step, settings, trained, frozen_dtype, text[:2], text.packed
        )

    return Subject(
        params=lambda trained: num_params(select(like, trained)),
        flops=lambda trained: flops(_costs(*alike, text.length), trained, text.length),
        state=lambda trained: state(program(trained)),
        program=program,
        compiled=lambda trained: language_profile.compiled_step(step, arguments(trained), target),
        counted=lambda trained, built: Counted(
            flops(_compilers_costs(*alike, short), trained, short).total,
            flops(_costs(*alike, short), trained, short).total,
        ),
        runner=_runners(items, arguments),
    )


def _blocks(
    model: LanguageModel, settings: lora.Lora | None, recompute: str
) -> tuple[LanguageStep, Any, Any]:
    """The first arguments of what counts a block's FLOPs, on which update rule and storage have no
    bearing.
    """
    step = LanguageStep(
        model, optax.identity(), 0.0, adapted=settings is not None, recompute=recompute
    )
    base, own = language_profile.block_shapes(step, settings)
    return step, base, own


@functools.lru_cache(maxsize=32)
def _costs(
    model: LanguageModel, settings: lora.Lora | None, recompute: str, length: int
) -> RowCosts:
    step, base, own = _blocks(model, settings, recompute)
    return language_costs.row_costs(step, base, own, length)


@functools.lru_cache(maxsize=32)
def _compilers_costs(
    model: LanguageModel, settings: lora.Lora | None, recompute: str, length: int
) -> RowCosts:
    """By this machine's compiler: it counts in seconds what that of a described TPU counts in
    minutes.
    """
    step, base, own = _blocks(model, settings, recompute)
    return language_profile.counted_costs(step, base, own, length, jax.devices()[0])


def _of_program(items: tuple[str, ...], program: tuple[str, ...]) -> tuple[str, ...]:
    """What of a visit trains that takes this program: blocks are alike, so the first ones."""
    blocks = [name for name in program if name not in ENDS]
    return (*items[: len(blocks)], *(name for name in program if name in ENDS))


def unbroken_length(model: LanguageModel, length: int) -> int:
    """The length, halved until attention of a row is computed whole, without a loop that the
    compiler counts once.
    """
    while 4 * model.architecture.num_attention_heads * length**2 > SCORE_BYTES:
        length //= 2
    return length


def _runners(
    items: tuple[str, ...], arguments: Callable[[tuple[str, ...]], tuple[Any, ...]]
) -> Callable[[tuple[str, ...], Compiled], Callable[[], Any]]:
    """Steps that share the arrays of their program; which block trains is an argument of it."""
    held: dict[int, list[Any]] = {}

    def runner(trained: tuple[str, ...], built: Compiled) -> Callable[[], Any]:
        arrays = held.setdefault(id(built.program), [])
        arrays[:] = arrays or language_profile.zeros(arguments(trained))
        first = jnp.int32(language_costs.trained(items, trained).first)

        def one_step() -> Any:
            trainable, states, frozen, *rest = arrays
            frozen = frozen._replace(blocks=frozen.blocks._replace(first=first))
            arrays[0], arrays[1], stats = built.program(trainable, states, frozen, *rest)
            return stats

        return one_step

    return runner


def evaluation_bytes(step: LanguageStep, settings: lora.Lora | None) -> int:
    """What evaluation in a run lays beside the frozen blocks: all that may train, in the dtype
    computed with.
    """
    return (
        num_params(language_profile.trainable_shapes(step, settings))
        * jnp.dtype(step.compute_dtype).itemsize
    )
