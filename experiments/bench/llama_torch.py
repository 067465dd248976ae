"""The same Llama steps in PyTorch: `transformers`, adapters by `peft`.

Import only where both are importable.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM
from transformers.utils import logging

from experiments.bench import llama
from experiments.bench.llama import Sizes


def step(folder: Path, sizes: Sizes, way: str, threads: int) -> Callable[[], float]:
    """One call is one step of AdamW; it returns the loss before it.

    Args:
      folder: of the weights.
      sizes: of everything.
      way: see `llama.trains`; of what does not train no gradient is asked.
      threads: of PyTorch.
    """
    torch.set_num_threads(threads)
    model = load(folder)
    # What does not train asks for no gradient, so the backward pass ends where ours does.
    if way == "LoRA":
        model = _adapted(model, sizes.rank)
    elif way != "full":
        model.requires_grad_(False)
        model.model.layers[llama.trains(sizes, way).first].requires_grad_(True)
    weights = [param for param in model.parameters() if param.requires_grad]
    optimizer = torch.optim.AdamW(
        weights,
        lr=llama.LEARNING_RATE,
        weight_decay=0.0,
        fused=True,
    )
    tokens = torch.from_numpy(llama.ids(sizes)).long()

    def run() -> float:
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def load(folder: Path) -> Any:
    """The model in float32, in training, with PyTorch's fused attention."""
    logging.disable_progress_bar()
    return LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).train()


def _adapted(model: Any, rank: int) -> Any:
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(model, settings)
