"""Fine-tuning a small Llama block after block: tokens a second beside BAdam and a PyTorch loop, in
turn.

Everybody starts from the same weights, takes the same rows in the same order, and trains the same
block in the same turn with AdamW from fresh states. So the losses must agree; where somebody's do
not, nothing is reported.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench import contestants, llama
from experiments.bench.contestants import Contestant
from experiments.bench.federated import UnlikeWork
from experiments.bench.rows import HIGHER, Measured, Request, Row, measured
from snake_jax.algorithms.visits import Visit
from snake_jax.engines.text_batches import epoch_batches

REPEATS, STEPS = 9, 8
TABLE = "Fine-tuning a block after the other"
GREATEST_DIFFERENCE = 0.02
"""Between two losses, over what training lowered ours by."""


def run(request: Request) -> Measured:
    """Ours, the loop and BAdam."""
    sizes, repeats = llama.QUICK if request.quick else llama.SIZES, request.repeats or REPEATS
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        everyone = _contest(sizes, repeats, Path(folder), request)
    rows = _rows(sizes, everyone)
    peers = {
        contestants.KINDS[one.kind].label: one.missing
        or ", ".join(f"{name} {version}" for name, version in one.told["versions"].items())
        for one in everyone[1:]
    }
    notes = [
        f"A Llama of {sizes.blocks} blocks of width {sizes.hidden}, float32, {STEPS} steps of "
        f"{sizes.batch} x "
        f"{sizes.length} tokens a block; ours is a visit of the executor, with the blocks' way to "
        f"the host and back."
    ]
    return Measured(rows, peers, notes)


def tokens(sizes: llama.Sizes, turn: int) -> np.ndarray:
    """The turn's rows `[S, B, T]` in the order in which the executor of ours takes them."""
    rows = llama.ids(sizes, STEPS * sizes.batch)
    shard = {sizes.length: np.arange(len(rows), dtype=np.int32)}
    batches = epoch_batches(Visit(turn, 0, 0, ()), 0, shard, (1, sizes.batch), 1, 0)
    return np.concatenate([rows[batch.indices] for batch in batches])


def _contest(sizes: llama.Sizes, repeats: int, folder: Path, request: Request) -> list[Contestant]:
    """Everyone after all turns, ended."""
    file = folder / "work.npz"
    np.savez(file, tokens=np.stack([tokens(sizes, turn) for turn in range(1 + repeats)]))
    llama.save(sizes, folder / "model")
    options: dict[str, Any] = {
        "model": str(folder / "model"),
        "cores": request.cores,
        "blocks": sizes.blocks,
    }
    options |= {"sizes": sizes, "steps": STEPS, "learning_rate": llama.LEARNING_RATE}

    def peer(kind: str) -> Contestant:
        return Contestant(kind, "", request.peer_python, {**options, "badam": kind == "badam"}, {})

    everyone = [
        Contestant("blocks", "", sys.executable, options, {}),
        peer("torch_blocks"),
        peer("badam"),
    ]
    try:
        for contestant in everyone:
            request.say(f"start: {contestant.name}")
            contestant.start(file)
        for turn in range(repeats):
            request.say(f"turn {turn + 1} of {repeats}")
            for contestant in everyone:
                contestant.round()
    finally:
        for contestant in everyone:
            contestant.close()
    return everyone


def _rows(sizes: llama.Sizes, everyone: Sequence[Contestant]) -> list[Row]:
    ours, *others = everyone
    if ours.missing:
        raise UnlikeWork(f"ours did not run: {ours.missing}")
    ran = [one for one in others if not one.missing]
    if unlike := [
        one.name for one in ran if difference(losses(one), losses(ours)) > GREATEST_DIFFERENCE
    ]:
        raise UnlikeWork(f"{', '.join(unlike)}: not the losses of ours, so the times mean nothing")
    count = STEPS * sizes.batch * sizes.length
    rows = []
    for one in (ours, *ran):
        rows.append(
            measured(TABLE, one.name, "speed", [count / s for s in one.seconds], "tokens/s")
        )
        over = [s / b for s, b in zip(one.seconds, ours.seconds, strict=True)]
        rows += (
            [measured(TABLE, one.name, "over ours", over, better=HIGHER, limit=1.0)]
            if one is not ours
            else []
        )
        rows.append(Row(TABLE, one.name, "start", one.start_s, "s"))
    return rows


def losses(contestant: Contestant) -> list[float]:
    """Of all its turns."""
    return [done["loss"] for done in (contestant.first, *contestant.rounds)]


def difference(theirs: Sequence[float], reference: Sequence[float]) -> float:
    """The greatest between two turns' losses, over what training lowered the reference by."""
    apart = max(abs(a - b) for a, b in zip(theirs, reference, strict=True))
    return apart / abs(reference[0] - min(reference[1:]))
