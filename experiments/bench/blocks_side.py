"""Fine-tuning block after block by this library: a visit of the engine a turn.

python -m experiments.bench.blocks_side WORK.npz CHECKED.npz '{"sizes": [...], "steps": 8}'
"""

import json
import sys
from pathlib import Path

import jax

from experiments.bench import llama
from experiments.bench.visit import language_engine
from experiments.bench.work import Done, Line
from snake_jax.algorithms.visits import Visit
from snake_jax.engines.contract import run_visits
from snake_jax.training.text_step import own_items


def main(_: str, checked_file: str, options: str) -> None:
    """Does the turns that are asked for."""
    line, given = Line(Path(checked_file)), json.loads(options)
    sizes = llama.Sizes(*given["sizes"])
    engine, params = (
        language_engine(sizes, given["steps"]),
        jax.device_get(llama.params_of(sizes)),
    )
    items = own_items(llama.model_of(sizes), False)
    line.ready({}, versions={"jax": jax.__version__})
    turn = 0
    while line.asked():
        visit = Visit(turn, 0, 0, (items[turn % len(items)],))
        (done,) = run_visits(engine, [visit], params, {}, given["learning_rate"])
        params = {**params, **done.layers}
        line.answer(Done(done.loss, done.iterations, done.examples), dict)
        turn += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
