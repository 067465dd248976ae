"""What comes out of fine-tuning: a description in words, and the model or adapter as folders."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from snake_jax.data.text import templates, text_partition
from snake_jax.models import adapter_hub, lora
from snake_jax.models.generation import generate
from snake_jax.models.hub import read_generation_ends
from snake_jax.models.language import stop_ids
from snake_jax.models.save import save_pretrained
from snake_jax.params import Params
from snake_jax.runs import distilling
from snake_jax.runs.text_inputs import TOKENIZER_FILES
from snake_jax.runs.text_task import TextSetup, make_lora, visit_state
from snake_jax.training.text_step import ADAPTERS, own_items

_COPIED = (
    *TOKENIZER_FILES,
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def describe_texts(setup: TextSetup) -> str:
    """What a run trains on what, a line each.

    Model, data, what was cut, each node's part, memory, distillation.
    """
    config = setup.config
    data = setup.data
    rows = data.rows

    # What trains on which text.
    trained = f"adapters of rank {config.lora_rank}" if config.lora_rank else "whole blocks"
    lengths = ", ".join(str(length) for length in rows.train.rows)
    lines = [
        f"{config.algorithm}: {setup.model.name} on {data.name}, {config.nodes} nodes, "
        f"{config.partition}, {trained}",
        data.quality,
        f"rows of {lengths} tokens, {100 * rows.fill:.0f} % filled",
    ]
    if config.template_date:
        lines.append(f"the chat template writes the day {config.template_date} (--template_date)")

    # What each node has of it, and what it must hold.
    categories = [sample.category for sample in rows.samples]
    target_tokens = rows.train.target_tokens.tolist()
    lines.append(text_partition.describe_text_partition(rows.shards, categories, target_tokens))
    lines.append(_memory(setup))
    if config.mesh:
        lines.append(f"mesh {config.mesh} over {jax.device_count()} devices")

    # What a flag or the data decided otherwise than one may expect.
    lines += [_tied_note(setup), _prefix_note(setup)]
    verdict = distilling.said(setup.verdict, data.divergence, config.distill_measure)
    lines.append(f"divergence of the nodes' categories {verdict}")
    return "\n".join(line for line in lines if line)


def _memory(setup: TextSetup) -> str:
    """What a node holds through its largest visit, and of what that consists."""
    state = visit_state(setup.job)
    parts = []
    for name, size in state._asdict().items():
        if size:
            parts.append(f"{name} {size / 2**20:.1f}")
    line = (
        f"memory of a node's visit without activations: {state.total / 2**20:.1f} MiB "
        f"({', '.join(parts)})"
    )
    # Where ranks are unlike, what the smallest saves.
    ranks = setup.job.columns.ranks
    if len(set(ranks)) > 1:
        least = min(ranks)
        smaller = visit_state(setup.job, ranks.index(least))
        line = f"{line}; of a node of rank {least}: {smaller.total / 2**20:.1f} MiB"
    return line


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
    if config.local_epochs == 1:
        reason = "one local epoch reads it once"
    elif config.dropout > 0:
        reason = "dropout draws it anew in every epoch"
    elif "embed" in setup.plan.always or not setup.algorithm.trains_parts:
        reason = "the embedding below it trains"
    else:
        return ""
    return f"--cache_prefix={config.cache_prefix} is off: {reason}"


def answer(setup: TextSetup, params: Params, prompt: str, max_new_tokens: int = 80) -> str:
    """What the model answers, drawn at temperature 0.7 with one seed.

    A small model's likeliest text would go in circles.

    Args:
      setup: of the run.
      params: what may train, as it stands.
      prompt: put into the form that the run trains on.
      max_new_tokens: length of the longest answer.
    """
    # In the form that the run trains on; as plain text the model would only go on with it.
    tokenizer = setup.data.tokenizer
    ids = templates.render_prompt(
        prompt, tokenizer, setup.config.template, setup.config.allow_special_tokens
    )
    weights = jax.tree.map(jnp.asarray, merged_model(setup, params))
    ends = read_generation_ends(setup.config.model)
    (answer_ids,) = generate(
        setup.model,
        weights,
        [ids],
        max_new_tokens=max_new_tokens,
        temperature=0.7,
        stop_ids=stop_ids(setup.model, tokenizer.eos_id, ends),
    )
    return tokenizer.decode(answer_ids).strip()


def merged_model(setup: TextSetup, params: Params) -> Params:
    """The model after training, float32, adapters merged into the weights.

    Args:
      setup: of the run.
      params: what may train, after it.
    """
    # As pretrained, but for what has trained since.
    scale = make_lora(setup.config).scale
    weights = dict(setup.data.weights())
    for name in setup.model.layer_names:
        if name in params:
            weights[name] = params[name]
    for name in own_items(setup.model, False):
        if name + ADAPTERS in params:
            weights[name] = lora.merge(weights[name], params[name + ADAPTERS], scale)
    return jax.tree.map(np.asarray, weights)


def save_model(setup: TextSetup, params: Params, folder: Path) -> Path:
    """Writes the whole model and its tokenizer's files as `transformers` loads them.

    Args:
      setup: of the run.
      params: what may train, after it.
      folder: on this machine.

    Returns:
      The folder.
    """
    save_pretrained(folder, setup.model, merged_model(setup, params))
    _copy_tokenizer(setup, folder)
    return folder


def _copy_tokenizer(setup: TextSetup, folder: Path) -> None:
    source = Path(setup.config.tokenizer or setup.config.model)
    for pattern in _COPIED:
        for file in source.glob(pattern):
            shutil.copyfile(file, folder / file.name)


def save_adapter(setup: TextSetup, params: Params, folder: Path, base: str = "") -> Path:
    """Writes the adapters as `peft` loads them.

    Args:
      setup: of the run.
      params: what may train, after it.
      folder: on this machine.
      base: how the model is called that they belong to; empty: as `--model` has it.

    Returns:
      The folder.
    """
    blocks = own_items(setup.model, False)
    adapters = {index: params[name + ADAPTERS] for index, name in enumerate(blocks)}
    settings = make_lora(setup.config)
    lora.save_peft(folder, setup.model.architecture, adapters, settings, base or setup.config.model)
    return folder


def save_repository(setup: TextSetup, params: Params, folder: Path, run: epath.Path) -> Path:
    """Writes the adapters as a repository of the hub has them: card, tokenizer and all.

    Args:
      setup: of the run.
      params: what may train, after it.
      folder: on this machine.
      run: the run's folder, with its summary.

    Returns:
      The folder.
    """
    config = setup.config
    base = _base_name(config.model)
    save_adapter(setup, params, folder, base)
    _copy_tokenizer(setup, folder)
    summary = json.loads((run / "summary.json").read_text())
    lines = (run / "metrics.jsonl").read_text().splitlines()

    # Of the model that is saved: the best, where that is asked for, else the last.
    number = summary["best_round"] if config.save_best else len(lines)
    line = json.loads(lines[number - 1])
    results = {
        "perplexity before training": summary["perplexity_before"],
        "perplexity": line["perplexity"],
        "token accuracy": line["accuracy"],
        "exact match": line["exact_match"],
    }

    # What differs from the defaults is the command; of files and folders the name alone is told.
    datasets = tuple(_public(source.strip()) for source in config.data.split(","))
    flags = {"model": base, "data": ",".join(datasets), "algorithm": config.algorithm}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in flags and value != field.default:
            flags[field.name] = _public(value) if isinstance(value, str) else value
    adapter_hub.write_card(folder, base, datasets, config.algorithm, flags, results)
    return folder


def _base_name(model: str) -> str:
    """The name that a model's own config.json knows it by, else that of its folder."""
    file = Path(model) / "config.json"
    own = json.loads(file.read_text()).get("_name_or_path") if file.exists() else None
    return _public(own or model)


def _public(source: str) -> str:
    """A name as others can use it: of a path of this machine its last part."""
    if source.startswith("file:"):
        return "file:" + _public(source.removeprefix("file:"))
    return Path(source).name if Path(source).exists() else source.removeprefix("hub:")
