"""A variant of an architecture in both libraries, and how far apart what they compute is."""

import functools
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity.variants import VARIANTS, random_ids, torch_logits, torch_model
from snake_jax.models import lora
from snake_jax.models.generation import generate
from snake_jax.models.hub import load_pretrained
from snake_jax.models.language import LanguageModel
from snake_jax.models.save import save_pretrained
from snake_jax.params import Params, PyTree
from snake_jax.training.quantization import freeze, thaw

NEW_TOKENS = 10
PROMPTS = (14, 5)
"""Tokens of each row that generation is given: one longer than every window, one shorter."""
ADAPTERS = lora.Lora(3, 0.7)


class Parity(NamedTuple):
    """A row of the table; a difference is the largest, relative to the largest logit of PyTorch's.

    Attributes:
      variant: its name.
      model_type: of config.json.
      logits: difference of the same weights' logits.
      saved: of PyTorch's logits before, and of what was read here and saved back.
      generated: tokens of greedy generation with the cache that are PyTorch's of whole passes.
      asked: of how many.
      adapted: difference with adapters, which peft loads from what was saved here.
      int8: difference of a model computed with int8 weights, PyTorch's with what they stand for.
      nf4: the same with nf4 weights.
    """

    variant: str
    model_type: str
    logits: float
    saved: float
    generated: int
    asked: int
    adapted: float
    int8: float
    nf4: float


def measure(variant: str, seed: int) -> Parity:
    """One variant, its weights and tokens drawn by the seed."""
    theirs, ids = torch_model(variant, seed), random_ids(seed)
    expected = torch_logits(theirs, ids)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs.save_pretrained(folder / "theirs")
        model, loaded = load_pretrained(folder / "theirs")
        params = jax.tree.map(jnp.asarray, loaded)
        logits = jax.jit(model.apply)(params, ids)
        saved = _of_torch(folder / "ours", model, params, ids)
        return Parity(
            variant=variant,
            model_type=VARIANTS[variant]["model_type"],
            logits=difference(logits, expected),
            saved=difference(saved, expected),
            generated=_generated(model, params, theirs, ids),
            asked=NEW_TOKENS * len(PROMPTS),
            adapted=_adapted(folder, model, params, ids),
            int8=_quantized(folder / "int8", model, params, ids, "int8"),
            nf4=_quantized(folder / "nf4", model, params, ids, "nf4"),
        )


def difference(ours: Any, theirs: np.ndarray) -> float:
    """The largest difference, relative to the largest of theirs."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def _load_torch(folder: Path) -> Any:
    """What transformers reads from the folder, by the definition of attention."""
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    return loaded.eval()


def _of_torch(folder: Path, model: LanguageModel, params: Params, ids: np.ndarray) -> np.ndarray:
    """PyTorch's logits of what is saved here."""
    save_pretrained(folder, model, params)
    return torch_logits(_load_torch(folder), ids)


def _generated(model: LanguageModel, params: Params, theirs: Any, ids: np.ndarray) -> int:
    """How many tokens of greedy generation are the likeliest of PyTorch's pass over all before."""
    prompts = [ids[row, :length].tolist() for row, length in enumerate(PROMPTS)]
    ours = generate(model, params, prompts, max_new_tokens=NEW_TOKENS)
    equal = 0
    for prompt, row in zip(prompts, ours, strict=True):
        for place, token in enumerate(row):
            before = np.asarray([prompt + row[:place]])
            equal += int(torch_logits(theirs, before)[0, -1].argmax() == token)
    return equal


def _adapted(folder: Path, model: LanguageModel, params: Params, ids: np.ndarray) -> float:
    """The difference with adapters of every linear layer, saved for peft and read from there."""
    import peft

    # Fresh adapters have a product of zero: theirs are random.
    rng = np.random.default_rng(0)
    adapters: dict[int, PyTree] = {}
    for place, name in enumerate(model.layer_names[1:-1]):
        fresh = lora.init(jax.random.key(place), params[name], ADAPTERS)
        leaves, structure = jax.tree.flatten(fresh)
        drawn = [np.float32(0.3 * rng.normal(size=leaf.shape)) for leaf in leaves]
        adapters[place] = jax.tree.unflatten(structure, drawn)
    lora.save_peft(folder / "adapter", model.architecture, adapters, ADAPTERS, "some/model")
    base = _load_torch(folder / "theirs")
    theirs = peft.PeftModel.from_pretrained(base, folder / "adapter").eval()

    named = {}
    for place, tree in adapters.items():
        named[model.layer_names[1 + place]] = lora.scaled(tree, ADAPTERS.scale)
    ours = jax.jit(functools.partial(model.apply, adapters=named))(params, ids)
    return difference(ours, torch_logits(theirs, ids))


def _quantized(
    folder: Path, model: LanguageModel, params: Params, ids: np.ndarray, kind: str
) -> float:
    """The difference of stored weights, dequantized layer by layer, from PyTorch's dense ones."""
    dense = functools.partial(thaw, dtype=jnp.float32)
    stored = freeze(params, kind)
    ours = jax.jit(functools.partial(model.apply, prepare=dense))(stored, ids)
    return difference(ours, _of_torch(folder, model, dense(stored), ids))
