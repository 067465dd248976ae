"""What comes out of fine-tuning: what a run is about, in words, and the model or adapter it ends
with, as folders.
"""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax.data.text import templates, text_partition
from snake_jax.models import lora
from snake_jax.models.generation import generate
from snake_jax.models.save import save_pretrained
from snake_jax.params import Params, select
from snake_jax.runs.text_inputs import TOKENIZER_FILES
from snake_jax.runs.text_task import TextSetup, make_lora, visit_state
from snake_jax.training.text_step import ADAPTERS, own_items

_COPIED = (
    *TOKENIZER_FILES,
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def describe(setup: TextSetup) -> str:
    """What is trained on what: model, data, what was cut, each node's part, memory,
    distillation.
    """
    config = setup.config
    data = setup.data
    rows = data.rows
    what = f"adapters of rank {config.lora_rank}" if config.lora_rank else "whole blocks"
    state = visit_state(setup.job)
    parts = ", ".join(
        f"{name} {size / 2**20:.1f}" for name, size in state._asdict().items() if size
    )
    lines = (
        f"{config.algorithm}: {setup.model.name} on {data.name}, {config.nodes} nodes, "
        f"{config.partition}, {what}",
        setup.data.quality,
        f"rows of {', '.join(map(str, rows.train.rows))} tokens, {100 * rows.fill:.0f} % filled",
        f"the chat template writes the day {config.template_date} (--template_date)"
        if config.template_date
        else "",
        text_partition.describe_text_partition(
            rows.shards,
            [sample.category for sample in rows.samples],
            rows.train.target_tokens.tolist(),
        ),
        f"memory of a node's visit without activations: {state.total / 2**20:.1f} MiB ({parts})",
        f"mesh {config.mesh} over {jax.device_count()} devices" if config.mesh else "",
        _tied_note(setup),
        _prefix_note(setup),
        f"divergence of the nodes' categories ({config.distill_measure}) {data.divergence:.3f}; "
        f"distillation {'on' if setup.distilled else 'off'}",
    )
    return "\n".join(line for line in lines if line)


def _tied_note(setup: TextSetup) -> str:
    """What an end trains besides, or does not, where the output matrix is the embedding's."""
    if not setup.model.tied or not setup.plan.always:
        return ""
    if "embed" in setup.plan.always:
        return "embedding and output matrix are one: embed trains both"
    return "the output matrix is the embedding's: head trains the final norm alone"


def _prefix_note(setup: TextSetup) -> str:
    """Why the lower blocks' output is not kept, where the flag asks for it."""
    config = setup.config
    if config.cache_prefix == "off":
        return ""
    reasons = {
        "one local epoch reads it once": config.local_epochs == 1,
        "dropout draws it anew in every epoch": config.dropout > 0,
        "the embedding below it trains": "embed" in setup.plan.always
        or not setup.algorithm.trains_parts,
    }
    true = [reason for reason, holds in reasons.items() if holds]
    return f"--cache_prefix={config.cache_prefix} is off: {true[0]}" if true else ""


def answer(setup: TextSetup, params: Params, prompt: str, max_new_tokens: int = 80) -> str:
    """What the model answers, drawn at temperature 0.7 with one seed: a small model's likeliest
    text goes in circles.

    Args:
      setup: of the run.
      params: what may train, as it stands.
      prompt: put into the form that the run trains on.
      max_new_tokens: length of the longest answer.
    """
    data = setup.data
    tokenizer = data.tokenizer
    ids = templates.render_prompt(
        prompt, tokenizer, setup.config.template, setup.config.allow_special_tokens
    )
    weights = jax.tree.map(jnp.asarray, whole_model(setup, params))
    stops = (tokenizer.eos_id,)
    (new,) = generate(
        setup.model, weights, [ids], max_new_tokens=max_new_tokens, temperature=0.7, stop_ids=stops
    )
    return tokenizer.decode(new).strip()


def whole_model(setup: TextSetup, params: Params) -> Params:
    """The model after training, float32, adapters merged into the weights.

    Args:
      setup: of the run.
      params: what may train, after it.
    """
    data = setup.data
    names, settings = setup.model.layer_names, make_lora(setup.config)
    weights = {**data.weights(), **select(params, [name for name in params if name in names])}
    merged = {
        name: lora.merge(weights[name], params[name + ADAPTERS], settings.scale)
        for name in own_items(setup.model, False)
        if name + ADAPTERS in params
    }
    return jax.tree.map(np.asarray, {**weights, **merged})


def save_model(setup: TextSetup, params: Params, folder: Path) -> Path:
    """Writes the whole model as `transformers` loads it, with its tokenizer's files; returns the
    folder.
    """
    save_pretrained(folder, setup.model, whole_model(setup, params))
    source = Path(setup.config.tokenizer or setup.config.model)
    for file in (file for pattern in _COPIED for file in source.glob(pattern)):
        shutil.copyfile(file, folder / file.name)
    return folder


def save_adapter(setup: TextSetup, params: Params, folder: Path) -> Path:
    """Writes the adapters as `peft` loads them; returns the folder."""
    names = own_items(setup.model, False)
    adapters = {index: params[name + ADAPTERS] for index, name in enumerate(names)}
    lora.save_peft(
        folder, setup.model.architecture, adapters, make_lora(setup.config), setup.config.model
    )
    return folder
