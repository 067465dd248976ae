"""Carries out `snake-jax generate`: prompts answered by a language model."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from absl.flags import FlagValues

from snake_jax.cli.commands.command import Given
from snake_jax.data.text import templates, tokenizers
from snake_jax.data.text.tokenizers import Tokenizer
from snake_jax.errors import UserError
from snake_jax.models import lora
from snake_jax.models.generation import generate
from snake_jax.models.hub import load_pretrained, read_generation_ends
from snake_jax.models.language import LanguageModel, stop_ids
from snake_jax.params import Params
from snake_jax.runs import text_inputs
from snake_jax.training.text_step import own_items


def main(given: Given) -> None:
    """Loads, answers, prints."""
    flags = given.flags
    if not flags.model:
        raise UserError("--model is needed: a folder, such as the model/ of a run's workdir")
    if not flags.prompt:
        raise UserError("--prompt is needed: what the model is to answer")
    folder = flags.tokenizer or text_inputs.tokenizer_beside(flags.model)
    tokenizer = tokenizers.load_tokenizer(folder, flags.template_date)
    prompts = [_ids(flags, prompt, tokenizer) for prompt in flags.prompt]
    model, params = load_pretrained(flags.model)
    tokenizers.check_fits(tokenizer, model.vocab_size)
    adapters = _adapters(flags, model)
    ends = stop_ids(model, tokenizer.eos_id, read_generation_ends(flags.model))

    # All that may be wrong has been looked at; now something is computed.
    on_device = jax.tree.map(jnp.asarray, params)
    most_tokens = flags.max_new_tokens or _room(prompts, model.max_positions)
    answers = generate(
        model,
        on_device,
        prompts,
        max_new_tokens=most_tokens,
        temperature=flags.temperature,
        top_k=flags.top_k,
        top_p=flags.top_p,
        seed=flags.seed,
        stop_ids=ends,
        adapters=adapters,
        dtype=jnp.dtype(flags.compute_dtype),
    )
    for prompt, answer in zip(flags.prompt, answers, strict=True):
        text = tokenizer.decode(answer).strip()
        print(f"> {prompt}\n{text}\n")


def _adapters(flags: FlagValues, model: LanguageModel) -> dict[str, Params]:
    """The adapters of `--adapter` by the names of their blocks, with their scale multiplied in."""
    if not flags.adapter:
        return {}
    found, settings = lora.load_peft(Path(flags.adapter))
    names = own_items(model, False)
    adapters = {}
    for block, tree in found.items():
        adapters[names[block]] = lora.scaled(tree, settings.scale)
    return adapters


def _ids(flags: FlagValues, prompt: str, tokenizer: Tokenizer) -> list[int]:
    """Token ids of a prompt in its form, or of the text as it stands."""
    allowed = flags.allow_special_tokens
    if flags.template == "none":
        return templates.render_text(prompt, tokenizer, allowed)
    return templates.render_prompt(prompt, tokenizer, flags.template, allowed)


def _room(prompts: Sequence[Sequence[int]], positions: int) -> int:
    """New tokens by default; one at least, so that a prompt without room is refused."""
    longest = max(len(prompt) for prompt in prompts)
    return min(128, max(1, positions - longest))
