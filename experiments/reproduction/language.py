"""The papers' fine-tuning study: Snake Learning and FL on a language model, E in {1, 3}.

Whole blocks or LoRA, with distillation and without. Figure 6 of the magazine (IID) and figure 9 of
arXiv 2405.03372 (Non-IID: each node holds one data set). There is a node for every block, as in the
papers: a cycle of Snake Learning and a round of FL both pass all nodes' text once.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from experiments.reproduction.cases import (
    Case,
    Given,
    Method,
    Scale,
    Sources,
    Topic,
    cycles_of,
    every_seed,
)
from snake_jax.config import TextConfig
from snake_jax.data.text.records import to_record
from snake_jax.data.text.sources import HUB, load_corpus
from snake_jax.errors import UserError
from snake_jax.models.hub import read_architecture
from snake_jax.models.presets import PRESETS

_SNAKE = {"algorithm": "snake", "distill": "off"}
_DISTILLED = {"algorithm": "snake", "distill": "on"}
_FL = {"algorithm": "fedavg"}
_WHOLE = {"lora_rank": 0}
METHODS = {
    "snake_lora": Method("Snake Learning, LoRA", _SNAKE),
    "snake_full": Method("Snake Learning, whole block", {**_SNAKE, **_WHOLE}),
    "distilled_lora": Method("Snake Learning, LoRA, distilled", _DISTILLED),
    "distilled_full": Method("Snake Learning, whole block, distilled", {**_DISTILLED, **_WHOLE}),
    "fedavg_lora": Method("FL, LoRA", _FL),
    "fedavg_full": Method("FL, whole model", {**_FL, **_WHOLE}),
}
FL_OF = {
    "snake_lora": "fedavg_lora",
    "snake_full": "fedavg_full",
    "distilled_lora": "fedavg_lora",
    "distilled_full": "fedavg_full",
}
"""FL that trains alike, which each is compared with."""
UNDISTILLED = {"distilled_lora": "snake_lora", "distilled_full": "snake_full"}
PARTITIONS = {"iid": "IID", "by_category": "Non-IID"}
FIGURES = {"6": "iid", "9": "by_category"}
_TRAINING_PART = "training_part"  # the source that tuning runs read

_COMMON: dict[str, Any] = {
    "lr_schedule": "factor",
    "lr_decay": 0.9,
    "on_divergence": "skip",
    "frozen_dtype": "int8",
}
_SMALL: dict[str, Any] = {
    **_COMMON,
    "model": "",
    "test_share": 0.3,
    "lora_rank": 16,
    "recompute": "none",
}
_RATES = dict.fromkeys(METHODS, 3e-3) | dict.fromkeys(
    ("snake_full", "distilled_full", "fedavg_full"), 1e-3
)

SCALES = {
    # Whether everything works: an untrained network on a little of the text that ships with Python.
    "smoke": Scale(
        settings={
            **_COMMON,
            "model": "tiny-llama",
            "limit": 24,
            "test_share": 0.2,
            "max_length": 128,
            "batch_size": 4,
            "lora_rank": 4,
            "recompute": "none",
        },
        data="pydoc",
        train_examples=50,
        cycles={1: 2, 3: 1},
        seeds=(0,),
        target=0.0,
        grid=(1e-3, 3e-3),
        tune_cycles=1,
        validation=0.25,
        rates=_RATES,
        step_s=0.05,
    ),
    # A pretrained model of a few hundred thousand weights and four data sets on two CPU cores;
    # --text_model and --text_data say where they are. Both E pass the text nine times.
    "cpu": Scale(
        settings={**_SMALL, "limit": 200, "max_length": 256, "batch_size": 8},
        data="",
        train_examples=610,
        cycles={1: 9, 3: 3},
        seeds=(0,),
        target=0.0,
        grid=(1e-3, 3e-3, 1e-2),
        tune_cycles=4,
        validation=0.2,
        rates=_RATES,
        step_s=0.2,
    ),
    # The same for a model of many narrow blocks, which `experiments.pretrain_stories` makes: rows
    # are shorter and fewer, as every block has a node. Both E pass the text six times.
    "deep": Scale(
        settings={**_SMALL, "limit": 120, "max_length": 128, "batch_size": 4},
        data="",
        train_examples=375,
        cycles={1: 6, 3: 2},
        seeds=(0, 1, 2),
        target=0.0,
        grid=(1e-3, 3e-3, 1e-2),
        tune_cycles=4,
        validation=0.2,
        rates=_RATES,
        step_s=0.15,
    ),
    # The papers' setting, for an accelerator: OPT-1.3B, 24 nodes (or --text_model of Llama-3-8B, 32
    # nodes) and their data sets. They do not say for how long they train. Rows and seconds of a
    # step are estimates, nothing was run.
    "full": Scale(
        settings={
            **_COMMON,
            "model": "opt-1.3b",
            "limit": 0,
            "max_length": 512,
            "batch_size": 6,
            "lora_rank": 128,
        },
        data=",".join(HUB),
        train_examples=146_000,
        cycles={1: 3, 3: 1},
        seeds=(0,),
        target=0.0,
        grid=(3e-5, 1e-4, 3e-4),
        tune_cycles=1,
        validation=0.1,
        rates=dict.fromkeys(METHODS, 1e-4),
        step_s=0.15,
    ),
}


def sources(name: str, scale: Scale, given: Given) -> Sources:
    """Where model and text are, and the file that tuning reads, of a scale that tunes.

    Raises:
      UserError: a scale that the user has to give model or text for.
    """
    model = given.text_model or scale.settings["model"]
    data = given.text_data or scale.data

    # An untrained model shows that everything runs, and nothing of the papers.
    untrained = model in PRESETS and not Path(model).exists()
    if not model or (untrained and name != "smoke" and not given.listing):
        raise UserError(
            f"--scale={name}: figures on text fine-tune a pretrained model: give "
            "--text_model=DIR, a folder of a Llama or an OPT as Hugging Face saves it"
        )
    if not data:
        raise UserError(
            f"--scale={name}: figures on text need text: give "
            "--text_data=A.jsonl,B.jsonl, a file of prompts and responses for each data set"
        )
    found = {"model": model, "data": data}
    if not scale.grid:
        return found

    # The file that tuning reads is named by what it is drawn from.
    choice = [data, scale.settings["limit"], scale.settings.get("test_share"), scale.seeds[0]]
    digest = hashlib.sha256(json.dumps(choice).encode()).hexdigest()
    file = given.workdir / f"{_TRAINING_PART}_{digest[:8]}.jsonl"
    return {**found, _TRAINING_PART: str(file)}


def blocks(model: str) -> int:
    """Of a preset or of the model in a folder."""
    folder = Path(model)
    if model in PRESETS and not folder.exists():
        return PRESETS[model].num_hidden_layers
    return read_architecture(folder).num_hidden_layers


def of_figure(figure: str, scale: Scale) -> list[Case]:
    """The cases that a figure draws, those of few local epochs first."""
    of_one_seed = []
    for epochs in sorted(scale.cycles):
        of_one_seed += [Case(method, FIGURES[figure], epochs) for method in METHODS]
    return every_seed(of_one_seed, scale)


def config_of(case: Case, scale: Scale, given: Sources, rate: float) -> TextConfig:
    """The configuration of a case's run.

    A tuning run trains and is evaluated on parts of the training text.

    Args:
      case: of the study.
      scale: that it is run at.
      given: where model and text are.
      rate: the learning rate.
    """
    nodes = blocks(given["model"])
    method = METHODS[case.method].flags
    config = {
        **scale.settings,
        **method,
        "model": given["model"],
        "data": given["data"],
        "nodes": nodes,
        "partition": case.partition,
        "local_epochs": case.epochs,
        "cycles": cycles_of(case, scale),
        "learning_rate": rate,
        "eval_every": nodes if method["algorithm"] == "snake" else 1,
        "seed": case.seed,
    }
    # The file that tuning reads was cut to the limit when it was written.
    if case.tried is not None:
        tuned = {"data": given[_TRAINING_PART], "test_share": scale.validation, "limit": 0}
        config |= tuned
    return TextConfig(**config)


def hold_out(scale: Scale, given: Sources) -> None:
    """Writes the training text that tuning divides again.

    So no run of it sees held-out text of the study.
    """
    settings = scale.settings
    share = settings.get("test_share", TextConfig().test_share)
    corpus = load_corpus(
        given["data"], test_share=share, seed=scale.seeds[0], limit=settings["limit"]
    )
    lines = [json.dumps(to_record(sample)) + "\n" for sample in corpus.train]
    path = Path(given[_TRAINING_PART])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")


def public(source: str) -> str:
    """A model or text without the folders of this machine."""
    parts = []
    for part in source.split(","):
        path = Path(part.strip())
        local = path.is_absolute() or path.exists()
        parts.append(path.name if local else part.strip())
    return ",".join(parts)


TOPIC = Topic(
    name="language",
    suffix="_language",
    figures=tuple(FIGURES),
    methods=METHODS,
    partitions=PARTITIONS,
    scales=SCALES,
    of_figure=of_figure,
    config=config_of,
    sources=sources,
    recorded=("model", "data"),
    hold_out=hold_out,
    public=public,
)
