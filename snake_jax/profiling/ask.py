"""From what the command line says to the configurations of runs that are profiled."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.config import ImageConfig, RunConfig, TextConfig, pick
from snake_jax.costs.compiled import devices
from snake_jax.costs.shapes import Model
from snake_jax.errors import UserError
from snake_jax.models import registry
from snake_jax.models.hub import read_architecture
from snake_jax.models.language import LanguageModel, build
from snake_jax.models.presets import PRESETS, from_preset

CLASSES = 10
"""Of networks by name, which the papers train on data sets of ten."""

SIDE = 32
KINDS = ("block", "block+ends", "lora:R", "lora:r/R", "full")
STORED = {"images": ("float32", "bfloat16", "int8"), "text": ("float32", "bfloat16", "int8", "nf4")}
ONLY: dict[str, tuple[str, ...]] = {
    "images": (),
    "text": ("max_length", "recompute", "packing", "mesh", "frozen_matmul"),
}


class TrainingWay(NamedTuple):
    """One way to train and store, and the configuration of a run that does so."""

    train: str
    config: RunConfig


class Ask(NamedTuple):
    """What is to be profiled.

    Attributes:
      name: of the model, as the flag says it.
      model: without weights.
      ways: to train it.
    """

    name: str
    model: Model
    ways: tuple[TrainingWay, ...]


def resolve(
    name: str,
    algorithm: str,
    train: Sequence[str],
    dtypes: Sequence[str],
    settings: Mapping[str, Any],
    target: str,
) -> Ask:
    """The ways that flags ask for: every way to train with every way to store.

    Args:
      name: of a network for images, a preset, or a folder.
      algorithm: the method.
      train: ways to train, see `KINDS`; empty: the method's own.
      dtypes: of what does not train; empty: the papers'.
      settings: other settings of a run that were given.
      target: see `compiled.devices`.

    Raises:
      UserError: what makes no sense, in one line.
    """
    # The model decides what kind of run it is.
    model = load(name)
    kind, other = "images", "text"
    if isinstance(model, LanguageModel):
        kind, other = "text", "images"

    # Flags that this kind of model has no use for are refused.
    for flag in ONLY[other]:
        if flag in settings:
            raise UserError(
                f"--{flag}: it is for models of {other}, {name} is one of {kind}; leave it out"
            )
    methods = _methods_for_text()
    if kind == "text" and algorithm not in methods:
        raise UserError(f"--algorithm={algorithm}: language models train with {', '.join(methods)}")

    trains = _trains(algorithm, train)
    stored = list(dtypes)
    if not stored:
        stored.append("bfloat16" if kind == "text" else "float32")
    for dtype in stored:
        pick("frozen_dtype", dtype, STORED[kind])

    # Every way to train with every way to store.
    make = _image_config
    shared = {**settings, "model": name}
    if isinstance(model, LanguageModel):
        make = _text_config
        shared |= _text_defaults(model, settings, target)
    ways: list[TrainingWay] = []
    for one in trains:
        ways += make(algorithm, one, stored, shared)
    return Ask(name, model, tuple(ways))


def _trains(algorithm: str, train: Sequence[str]) -> list[str]:
    """The ways to train that were asked for; of none that of the papers.

    Raises:
      UserError: one that leaves out an end which the method trains at every visit.
    """
    method = ALGORITHMS[algorithm]
    if not train:
        parts = "block+ends" if method.trains_ends else "block"
        return [parts if method.trains_parts else "full"]
    for one in train:
        if method.trains_ends and (one == "block" or one.startswith("lora:")):
            raise UserError(
                f"--train={one}: {algorithm} trains both ends at every visit; say block+ends or "
                f"full"
            )
    return list(train)


def load(name: str) -> Model:
    """The model of a name or folder, without weights.

    Raises:
      UserError: there is none.
    """
    if name in registry.MODELS or registry.is_own(name):
        return registry.build(name, CLASSES, (SIDE, SIDE, 3))
    if name in PRESETS:
        return from_preset(name)
    folder = Path(name)
    if not folder.is_dir():
        known = ", ".join((*registry.MODELS, *PRESETS))
        raise UserError(f"--model={name}: no such folder, and none of {known}")
    return build(read_architecture(folder), name=folder.resolve().name)


def _methods_for_text() -> tuple[str, ...]:
    """Those that need no head at the node."""
    return tuple(name for name, method in ALGORITHMS.items() if not method.local_losses)


def _text_defaults(
    model: LanguageModel, settings: Mapping[str, Any], target: str
) -> dict[str, Any]:
    """Settings of a language model that depend on it, or on the target.

    Raises:
      UserError: rows that are longer than the model has positions.
    """
    # A run's default may be more than a small model has positions.
    length = settings.get("max_length", min(512, model.max_positions))
    if length > model.max_positions:
        raise UserError(f"--max_length={length}: {model.name} has {model.max_positions} positions")
    # bfloat16 is what accelerators compute with; a CPU's libraries do it in float32.
    platform = devices(target)[0].platform if target else ""
    arithmetic = "float32" if platform == "cpu" else "bfloat16"
    return {"max_length": length, "compute_dtype": settings.get("compute_dtype", arithmetic)}


def _text_config(
    algorithm: str, train: str, stored: Sequence[str], shared: Mapping[str, Any]
) -> list[TrainingWay]:
    """The ways to store of one way to train a language model.

    Raises:
      UserError: there is no such way to train, or the method has no use for it.
    """
    # `lora:8/128`: adapters of rank 128, at a node that trains 8 columns of them.
    kind, _, ranks = train.partition(":")
    own, _, most = ranks.rpartition("/")
    adapted = kind == "lora" and most.isdecimal() and int(most) > 0
    if own:
        adapted = adapted and own.isdecimal() and 0 < int(own) <= int(most)
    if train not in ("block", "block+ends", "full") and not adapted:
        raise UserError(
            f"--train={train}: want block, block+ends, lora:RANK as lora:128, or full; lora:8/128 "
            "is a node that trains 8 of 128 columns"
        )
    values: dict[str, Any] = {**shared, "lora_rank": 0}
    if adapted:
        values |= {"lora_rank": int(most), "rank": own}

    # Where everything trains there is one way to store it.
    if train == "full":
        config = TextConfig(algorithm=_of_full(algorithm), **values)
        return [TrainingWay(train, config)]
    if not adapted and not ALGORITHMS[algorithm].trains_parts:
        raise UserError(
            f"--train={train}: {algorithm} trains the whole model or all adapters; say full or "
            f"lora:RANK"
        )
    if train == "block+ends":
        values["always_train"] = "embed,head"
    ways = []
    for dtype in stored:
        config = TextConfig(algorithm=algorithm, frozen_dtype=dtype, **values)
        ways.append(TrainingWay(train, config))
    return ways


def _image_config(
    algorithm: str, train: str, stored: Sequence[str], shared: Mapping[str, Any]
) -> list[TrainingWay]:
    """The ways to store of one way to train a network for images.

    Raises:
      UserError: there is no such way to train, or the method has no use for it.
    """
    if train not in KINDS or train.startswith("lora"):
        raise UserError(f"--train={train}: networks for images train block, block+ends or full")
    if train == "full":
        config = ImageConfig(algorithm=_of_full(algorithm), **shared)
        return [TrainingWay(train, config)]
    if not ALGORITHMS[algorithm].trains_parts:
        raise UserError(f"--train={train}: {algorithm} trains all layers; leave it out")
    values = {**shared, "always_train": "first,last" if train == "block+ends" else "none"}
    ways = []
    for dtype in stored:
        config = ImageConfig(algorithm=algorithm, frozen_dtype=dtype, **values)
        ways.append(TrainingWay(train, config))
    return ways


def _of_full(algorithm: str) -> str:
    """Full training of a model that visits train in parts is what federated learning does."""
    return "fedavg" if ALGORITHMS[algorithm].trains_parts else algorithm
