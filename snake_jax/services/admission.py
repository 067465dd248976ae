"""What a remote caller may ask for: the settings of a service, checked before it is registered.

Everything that a setting could reach on the Service Provider's machine is refused but for what lies
in its data folders: other paths, buckets, the network's addresses, code (`module:function`), the
folders of runs and of profiles. What is left has to be a configuration as the command line takes
it.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TypeAlias

from snake_jax.config import ImageConfig, RunConfig, TextConfig
from snake_jax.data import drawn
from snake_jax.errors import UserError
from snake_jax.names import IMAGE_MODELS, LANGUAGE_MODELS, PARTITIONS

Setting: TypeAlias = str | int | float | bool
Settings: TypeAlias = dict[str, Setting]

TASKS: dict[str, type[RunConfig]] = {"classify": ImageConfig, "finetune": TextConfig}
# Flags beside the configuration that a caller may set; `engine` where the command has it.
_BESIDE: dict[str, dict[str, type]] = {
    "classify": {"engine": str, "tensorboard": bool},
    "finetune": {"engine": str, "tensorboard": bool, "save": str, "prompt": str, "show_rows": int},
}
_SAVED = ("model", "adapter", "both", "none")
_FREE_TEXT = ("prompt",)
# Flags of a launch that a service does not have, and why.
_REFUSED = {
    "push_adapter_to": "a service writes into its own folder alone; say --save=adapter",
    "workdir": "each service has a folder of the Service Provider's own; leave it out",
    "compilation_cache_dir": "folders are the Service Provider's own; leave it out",
    "verbose": "stages are told on a terminal, and a service has none; leave it out",
    "trace_dir": "a service writes no profiles; leave it out",
    "trace_rounds": "a service writes no profiles; leave it out",
    "distributed": "a service is one process here; leave it out",
    "coordinator_address": "a service joins no other processes; leave it out",
    "num_processes": "a service is one process here; leave it out",
    "process_id": "a service is one process here; leave it out",
    "ray_address": "a service joins no cluster of the caller's; leave it out",
    "ray_actors": "the Service Provider decides it; leave it out",
    "ray_resources": "the Service Provider decides it; leave it out",
    "ray_deadline_s": "the Service Provider decides it; leave it out",
    "ray_without_tls": "the Service Provider decides it; leave it out",
    "ray_pool": "the Service Provider decides it; leave it out",
    "ray_stall_s": "the Service Provider decides it; leave it out",
    "visit_deadline_s": "the Service Provider decides it; leave it out",
    "grace_s": "the Service Provider decides it; leave it out",
    "preset": "give its settings one by one; snake-jax presets NAME prints them",
    "flagfile": "give its settings one by one",
    "seeds": "register a service for each seed",
    "distill_each_seed": "register a service for each seed",
}
_LONGEST = 4096  # characters of a setting
_LARGEST = 2**53  # of whole numbers: as far as JSON's readers agree
_WORD = re.compile(r"[a-z][a-z0-9_]*")
_TFDS = re.compile(r"tfds:[A-Za-z]\w*(?:/[\w.-]+)?(?::\d+\.\d+\.\d+)?")
_HUB = re.compile(r"(?:hub:)?\w[\w.-]*/\w[\w.-]*|pydoc")
_FILES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")


class Allowed(NamedTuple):
    """What the Service Provider lets callers reach.

    Attributes:
      data_folders: whose files they may name, as real paths.
      own_models: whether `--model=module:function`, which is code, is allowed.
      flags: those that each command has, by its name.
      pooled: whether services that do not ask for the engine of one process share a pool's nodes.
    """

    data_folders: tuple[Path, ...] = ()
    own_models: bool = False
    flags: Mapping[str, frozenset[str]] = {}
    pooled: bool = False


def data_folder(text: str) -> Path:
    """A folder of the Service Provider's data, as its real path.

    Raises:
      UserError: there is none.
    """
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise UserError(f"--data_folders={text}: no such folder; give one that is there")
    return folder.resolve()


def checked(task: str, settings: Mapping[str, Setting], allowed: Allowed) -> Settings:
    """The settings as the service's command is given them; paths are whole and real.

    Args:
      task: the command: classify or finetune.
      settings: flags by name, without those that are to keep their defaults.
      allowed: what they may reach.

    Raises:
      UserError: a setting is wrong or reaches for what is not allowed.
    """
    if task not in TASKS:
        raise UserError(f"task {_said(task)}: not one of {', '.join(TASKS)}")
    kind = TASKS[task]
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    types |= _beside(task, allowed)

    # Names, types and places first: a configuration is made of values that are harmless.
    sound: Settings = {}
    for name, value in settings.items():
        if name in _REFUSED:
            raise UserError(f"--{_said(name)}: {_REFUSED[name]}")
        if name not in types:
            raise UserError(f"--{_said(name)}: {task} has no such setting; leave it out")
        sound[name] = _typed(name, value, types[name])
    for name, value in sound.items():
        if isinstance(value, str):
            sound[name] = _harmless(task, name, value, allowed)

    # Then the rules of the command line, those of the method among them.
    fields = {field.name for field in dataclasses.fields(kind)}
    given: dict[str, Any] = {name: value for name, value in sound.items() if name in fields}
    config = kind(**given)
    _check_method(config)
    if allowed.pooled and sound.get("engine", "ray") == "ray":
        _check_engine(config)
    if sound.get("save") in ("adapter", "both") and not getattr(config, "lora_rank", 0):
        raise UserError(
            f"--save={sound['save']}: there is no adapter with --lora_rank=0; say --save=model"
        )
    return sound


def settings_of(text: str) -> Settings:
    """Checked settings as they are stored: a JSON object."""
    settings: Settings = json.loads(text)
    return settings


def words(settings: Mapping[str, Setting]) -> list[str]:
    """The settings as flags of a command line."""
    flags = []
    for name, value in settings.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        flags.append(f"--{name}={text}")
    return flags


def _beside(task: str, allowed: Allowed) -> dict[str, type]:
    """The flags beside the configuration that the command has here."""
    has = allowed.flags.get(task, frozenset())
    return {name: kind for name, kind in _BESIDE[task].items() if name in has}


def _check_method(config: RunConfig) -> None:
    """Refuses flags that the method has no use for, and those that contradict each other."""
    # Here, since it takes jax: a Service Provider that is asked for states only needs none.
    from snake_jax.runs.job import chosen_algorithm

    chosen_algorithm(config)


def _check_engine(config: RunConfig) -> None:
    """Refuses what nodes that are processes cannot do; the way out is in the line."""
    from snake_jax.engines import choice

    choice.check(choice.Choice(choice.RAY), config)


def _said(value: object) -> str:
    """A caller's value for an error of one line."""
    text = str(value)
    if len(text) > 100:
        text = text[:100] + "..."
    return text if text.isprintable() else ascii(text)


def _typed(name: str, value: Setting, kind: object) -> Setting:
    """The value, if it is of the flag's type; JSON's whole numbers are fine for fractions."""
    if isinstance(value, bool) != (kind is bool):
        raise UserError(f"--{name}={_said(value)}: want {_named(kind)}")
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _LARGEST:
        raise UserError(f"--{name}: a number of at most {_LARGEST} is wanted")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"--{name}: must be a finite number")
    if kind is float and isinstance(value, int):
        return float(value)
    if not isinstance(value, kind if isinstance(kind, type) else ()):
        raise UserError(f"--{name}={_said(value)}: want {_named(kind)}")
    return value


def _named(kind: object) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return next(words for one, words in names.items() if one is kind)


def _harmless(task: str, name: str, value: str, allowed: Allowed) -> str:
    """A text that reaches nothing but what is allowed; places in data folders are made whole."""
    if len(value) > _LONGEST:
        raise UserError(f"--{name}: longer than {_LONGEST} characters")
    # Neither a line of the log nor an argument of a process can hold any.
    if (name not in _FREE_TEXT and not value.isprintable()) or "\0" in value:
        raise UserError(f"--{name}={_said(value)}: holds characters that cannot be printed")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"--{name}={_said(value)}: is no text (half a character)") from error
    if name in _FREE_TEXT:
        return value
    if name == "save" and value not in _SAVED:
        raise UserError(f"--save={_said(value)}: not one of {', '.join(_SAVED)}")
    if name == "engine" and not _WORD.fullmatch(value):
        raise UserError(f"--engine={_said(value)}: want an engine's name")
    check = _CHECKS.get((task, name))
    if check:
        return check(value, allowed)
    # Whatever else is a text is no place, so nothing in it needs to look like one.
    if "/" in value or "\\" in value or "~" in value or ".." in value:
        raise UserError(f"--{name}={_said(value)}: is no setting that names a file or folder")
    return value


def _within(name: str, text: str, allowed: Allowed) -> str:
    """The real path of a file or folder in the data folders, where it is there.

    What lies elsewhere and what is nowhere have one answer, which tells nothing of the disk.
    """
    said = _said(text)
    if "://" in text:
        raise UserError(f"--{name}={said}: buckets and addresses are not for services; give a path")
    if ".." in PurePath(text).parts or "~" in text or "," in text:
        raise UserError(f"--{name}={said}: a path without .., ~ and commas is wanted")
    for folder in allowed.data_folders:
        # Links are followed first: what they lead to counts.
        path = Path(os.path.realpath(folder / text))
        if path.is_relative_to(folder) and os.path.exists(path):
            real = os.fspath(path)
            if real.isprintable() and "," not in real and "~" not in real:
                return real
    raise UserError(f"--{name}={said}: not in the data folders of the Service Provider")


def _dataset(value: str, allowed: Allowed) -> str:
    if value in ("digits", "cifar10") or _TFDS.fullmatch(value):
        return value
    if value.startswith("npz:"):
        return "npz:" + _within("dataset", value.removeprefix("npz:"), allowed)
    raise UserError(
        f"--dataset={_said(value)} is unknown; allowed: digits, cifar10, tfds:NAME, npz:PATH"
    )


def _partition(value: str, allowed: Allowed) -> str:
    if value in PARTITIONS:
        return value
    if value.startswith("file:"):
        return "file:" + _within("partition", value.removeprefix("file:"), allowed)
    if value.startswith(f"{drawn.KIND}:"):
        return value
    raise UserError(
        f"--partition={_said(value)}: not one of {', '.join(PARTITIONS)}, {drawn.KIND}:LEAST-MOST "
        "or file:PATH (JSON)"
    )


def _topology(value: str, allowed: Allowed) -> str:
    if value.startswith("file:"):
        return "file:" + _within("topology", value.removeprefix("file:"), allowed)
    return value


def _image_model(value: str, allowed: Allowed) -> str:
    if value in IMAGE_MODELS:
        return value
    if ":" not in value:
        raise UserError(f"--model={_said(value)}: not one of {', '.join(IMAGE_MODELS)}")
    if not allowed.own_models:
        raise UserError(
            f"--model={_said(value)}: code of one's own is off for services; snake-jax serve "
            f"--allow_module_models allows it"
        )
    if not all(part.isidentifier() for part in value.replace(":", ".").split(".")):
        raise UserError(f"--model={_said(value)}: want MODULE:FUNCTION, as package.module:function")
    return value


def _text_data(value: str, allowed: Allowed) -> str:
    sources = []
    for item in value.split(","):
        source = item.strip()
        if source.endswith(_FILES):
            sources.append(_within("data", source, allowed))
        elif _HUB.fullmatch(source) and ".." not in source:
            sources.append(source)
        else:
            raise UserError(
                f"--data={_said(source)} is unknown; give pydoc, a file ending in "
                f"{', '.join(_FILES)}, or hub:OWNER/NAME"
            )
    return ",".join(sources)


def _text_model(value: str, allowed: Allowed) -> str:
    return value if value in LANGUAGE_MODELS else _within("model", value, allowed)


def _optional(name: str) -> Callable[[str, Allowed], str]:
    """The check of a setting that is a path or empty."""
    return lambda value, allowed: _within(name, value, allowed) if value else value


_CHECKS: dict[tuple[str, str], Callable[[str, Allowed], str]] = {
    ("classify", "dataset"): _dataset,
    ("classify", "partition"): _partition,
    ("classify", "model"): _image_model,
    ("classify", "node_file"): _optional("node_file"),
    ("classify", "topology"): _topology,
    ("finetune", "topology"): _topology,
    ("finetune", "data"): _text_data,
    ("finetune", "model"): _text_model,
    ("finetune", "tokenizer"): _optional("tokenizer"),
    ("finetune", "node_file"): _optional("node_file"),
}
