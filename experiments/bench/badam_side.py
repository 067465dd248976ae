"""Fine-tuning block after block in PyTorch: blocks switched by a plain loop, or by BAdam.

BAdam: "A Memory Efficient Full Parameter Optimization Method for Large Language Models" (arXiv
2404.02827), as its authors' package has it.

  python -m experiments.bench.badam_side WORK.npz CHECKED.npz '{"model": "DIR", "badam": true,
  "steps": 8, ...}'
"""

import importlib.metadata
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM

from experiments.bench.work import Done, Line


def optimizers(model: Any, given: dict[str, Any]) -> Any:
    """The function that gives the optimizer of a turn; it has made the turn's block the one that
    trains.
    """
    settings = {"lr": given["learning_rate"], "weight_decay": 0.0}

    def plain(turn: int) -> torch.optim.Optimizer:
        model.requires_grad_(False)
        block = model.model.layers[turn % given["blocks"]].requires_grad_(True)
        return torch.optim.AdamW(block.parameters(), fused=True, **settings)

    if not given["badam"]:
        return plain
    from badam import BlockOptimizer

    named = list(model.named_parameters())
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # it would rather have bfloat16 weights; ours are float32 too
        blocks = BlockOptimizer(
            base_optimizer=torch.optim.AdamW(model.parameters(), **settings),
            named_parameters_list=named,
            switch_block_every=given["steps"],
            switch_mode="ascending",
            start_block=0,
            verbose=0,
        )
    blocks.global_step = -1  # or the first block would get one step less than the others
    return lambda _: blocks


def train(model: Any, optimizer: Any, batches: torch.Tensor) -> float:
    """A turn's steps on batches `[S, B, T]`; the mean loss before them."""
    total = 0.0
    for tokens in batches:
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / len(batches)


def main(work_file: str, checked_file: str, options: str) -> None:
    """Does the turns that are asked for."""
    line, given = Line(Path(checked_file)), json.loads(options)
    torch.set_num_threads(given["cores"])
    with np.load(work_file) as file:
        turns = torch.from_numpy(file["tokens"]).long()
    model = LlamaForCausalLM.from_pretrained(
        given["model"], dtype=torch.float32, attn_implementation="sdpa"
    ).train()
    optimizer_of = optimizers(model, given)
    packages = ("torch", "transformers", *(["badam"] if given["badam"] else []))
    line.ready({}, versions={name: importlib.metadata.version(name) for name in packages})
    turn = 0
    while line.asked():
        loss = train(model, optimizer_of(turn), turns[turn])
        line.answer(Done(loss, len(turns[turn]), turns[turn][..., 0].numel()), dict)
        turn += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
