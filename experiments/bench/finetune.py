"""Fine-tuning a small Llama block after block: tokens a second beside BAdam and a PyTorch loop.

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
from experiments.bench.contestants import Contestant, over_base
from experiments.bench.federated import UnlikeWork
from experiments.bench.rows import HIGHER, Measured, Request, Row, measured
from snake_jax.algorithms.visits import Visit
from snake_jax.engines.text_batches import epoch_batches

REPEATS = 9
STEPS = 8
TABLE = "Fine-tuning a block after the other"
GREATEST_DIFFERENCE = 0.02
"""Between two losses, over what training lowered ours by."""


def run(request: Request) -> Measured:
    """Ours, the loop and BAdam."""
    sizes = llama.QUICK if request.quick else llama.SIZES
    repeats = request.repeats or REPEATS
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        everyone = _contest(sizes, repeats, Path(folder), request)
    rows = _rows(sizes, everyone)
    # With which versions peers ran, or why they did not.
    peers = {}
    for contestant in everyone[1:]:
        label = contestants.KINDS[contestant.kind].label
        peers[label] = contestant.missing or contestant.versions()
    note = (
        f"A Llama of {sizes.blocks} blocks of width {sizes.hidden}, float32, {STEPS} steps of "
        f"{sizes.batch} x {sizes.length} tokens a block; ours is a visit of the executor, with the "
        "blocks' way to the host and back."
    )
    return Measured(rows, peers, [note])


def tokens(sizes: llama.Sizes, turn: int) -> np.ndarray:
    """The turn's rows `[S, B, T]` in the order in which the executor of ours takes them."""
    rows = llama.ids(sizes, STEPS * sizes.batch)
    shard = {sizes.length: np.arange(len(rows), dtype=np.int32)}
    batches = epoch_batches(Visit(turn, 0, 0, ()), 0, shard, (1, sizes.batch), 1, 0)
    return np.concatenate([rows[batch.indices] for batch in batches])


def _contest(sizes: llama.Sizes, repeats: int, folder: Path, request: Request) -> list[Contestant]:
    """Everyone after all turns, ended."""
    # One file of rows for everybody; the first turn is not counted.
    file = folder / "work.npz"
    turns = [tokens(sizes, turn) for turn in range(1 + repeats)]
    np.savez(file, tokens=np.stack(turns))
    llama.save(sizes, folder / "model")
    options: dict[str, Any] = {
        "model": str(folder / "model"),
        "cores": request.cores,
        "blocks": sizes.blocks,
        "sizes": sizes,
        "steps": STEPS,
        "learning_rate": llama.LEARNING_RATE,
    }
    loop_options = {**options, "badam": False}
    badam_options = {**options, "badam": True}
    everyone = [
        Contestant("blocks", "", sys.executable, options, {}),
        Contestant("torch_blocks", "", request.peer_python, loop_options, {}),
        Contestant("badam", "", request.peer_python, badam_options, {}),
    ]

    # In turn, so that all see the same load of the machine.
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
    ran = [contestant for contestant in others if not contestant.missing]

    # Whoever trained to other losses did other work.
    unlike = []
    for peer in ran:
        if difference(losses(peer), losses(ours)) > GREATEST_DIFFERENCE:
            unlike.append(peer.name)
    if unlike:
        raise UnlikeWork(f"{', '.join(unlike)}: not the losses of ours, so the times mean nothing")

    count = STEPS * sizes.batch * sizes.length
    rows = []
    for contestant in (ours, *ran):
        name = contestant.name
        speeds = [count / seconds for seconds in contestant.seconds]
        rows.append(measured(TABLE, name, "speed", speeds, "tokens/s"))
        if contestant is not ours:
            over = over_base(contestant, ours)
            rows.append(measured(TABLE, name, "over ours", over, better=HIGHER, limit=1.0))
        rows.append(Row(TABLE, name, "start", contestant.start_s, "s"))
    return rows


def losses(contestant: Contestant) -> list[float]:
    """Of all its turns."""
    return [done["loss"] for done in (contestant.first, *contestant.rounds)]


def difference(theirs: Sequence[float], reference: Sequence[float]) -> float:
    """The greatest between two turns' losses, over what training lowered the reference by."""
    apart = max(abs(a - b) for a, b in zip(theirs, reference, strict=True))
    return apart / abs(reference[0] - min(reference[1:]))
