"""A whole visit as the executors run it, data already on the device, beside as many bare steps.

The difference is what the emulation costs: shuffling, handing over, copies of what trains,
statistics. Then what a launch of the demo's size does around a visit: evaluation, checkpoint, and
lines of records and ledger.
"""

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import llama, vgg
from experiments.bench.compile import DEMO as ONE_CYCLE
from experiments.bench.compile import QUICK as ONE_QUICK_CYCLE
from experiments.bench.kernels.conv import Network
from experiments.bench.rows import LOWER, Measured, Request, Row, measured, paired, walls_ms
from snake_jax.algorithms.visits import Visit
from snake_jax.config import ImageConfig, TextConfig
from snake_jax.costs.timing import interleaved
from snake_jax.data.text import packing
from snake_jax.engines.build import image_engine, text_engine
from snake_jax.engines.contract import run_visits
from snake_jax.engines.epochs import VisitSettings
from snake_jax.engines.local import LocalEngine
from snake_jax.runs import loop
from snake_jax.runs.workdir import Workdir
from snake_jax.training.image_step import Examples
from snake_jax.training.text_step import own_items

REPEATS = 9
BATCHES = 10
TABLE = f"Visits of {BATCHES} batches"
DEMO = dataclasses.replace(ONE_CYCLE, cycles=4)
QUICK_DEMO = dataclasses.replace(ONE_QUICK_CYCLE, cycles=2)
AROUND = "Around a visit at the demo's size"
LEFT_OUT = 9
"""Visits of a demo's cycle: programs are compiled in the first."""
SMALL = Network("cnn")
HOST_SHARE = 1.05
"""A visit over its bare steps, at most."""
NOTES = (
    "Bare steps are one call of the compiled loop for networks for images, one call a step for the "
    "Llama. The cnn is that of small nodes, in batches of 32.",
    "Around a visit: what is written is timed by itself; a launch writes it while the next visit "
    "runs.",
)


def run(request: Request) -> Measured:
    """A visit of either kind of network."""
    network = vgg.QUICK if request.quick else Network()
    sizes = llama.QUICK if request.quick else llama.SIZES
    repeats = request.repeats or REPEATS
    rows: list[Row] = []

    # A visit that trains all, and one of Snake: first, middle and last layer. Then a small
    # network's, beside whose steps the host's part of a visit is greatest.
    names = network.build(vgg.OURS).layer_names
    middle = names[len(names) // 2]
    small = vgg.QUICK if request.quick else SMALL
    cases = {
        "VGG-11, full": (network, names),
        f"VGG-11, {names[0]} {middle} {names[-1]}": (network, (names[0], middle, names[-1])),
        "cnn, full": (small, small.build(vgg.OURS).layer_names),
    }
    for subject, (timed, trained) in cases.items():
        request.say(f"visit: {subject}")
        visit = vision_visit(timed, trained)
        steps = vgg.Step(timed, trained, BATCHES)
        rows += _rows(subject, visit, steps, repeats)

    request.say("visit: Llama")
    block = f"block {sizes.blocks // 2}"
    visit = language_visit(sizes)
    rows += _rows(f"Llama, {block}", visit, repeated(llama.Step(sizes, block)), repeats)

    request.say("visit: around it")
    config = QUICK_DEMO if request.quick else DEMO
    rows += around_rows(around(config, LEFT_OUT if config is DEMO else 1))
    return Measured(rows, {}, NOTES)


def around(config: ImageConfig, left_out: int) -> dict[str, list[float]]:
    """Seconds of each visit's training, and of what a launch does around it, by what that is.

    Args:
      config: of a run whose rounds are single visits, all evaluated.
      left_out: so many visits at first do not count.
    """
    setup = loop.prepare(config)
    seconds: dict[str, list[float]] = {
        "training": [],
        "evaluation": [],
        "checkpoint": [],
        "records and ledger": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        kept = Workdir(Path(folder) / "run", setup.config)
        engine = loop.make_engine(setup)
        state = loop.initial_state(setup)
        for report in loop.train(setup, engine, state, keep=_keep_nothing):
            now = report.state
            compiled = engine.compilations
            seconds["training"].append(report.record["train_s"])
            took_s = _seconds(functools.partial(engine.evaluate, now.params))
            seconds["evaluation"].append(took_s)
            took_s = _seconds(functools.partial(kept.add_lines, report.record, report.transfers))
            seconds["records and ledger"].append(took_s)
            took_s = _seconds(functools.partial(kept.keep, now, compiled))
            seconds["checkpoint"].append(took_s)
        engine.close()
        kept.close()
    return {name: values[left_out:] for name, values in seconds.items()}


def around_rows(seconds: Mapping[str, Sequence[float]]) -> list[Row]:
    """A line for each of what `around` gives, and one for all but training."""
    training = seconds["training"]
    rest = [values for name, values in seconds.items() if name != "training"]
    together = [sum(visit) for visit in zip(*rest, strict=True)]
    rows = []
    for name, values in {**seconds, "all around it": together}.items():
        rows.append(measured(AROUND, name, "a visit", [1e3 * value for value in values], "ms"))
        if name != "training":
            ratios = [value / own for value, own in zip(values, training, strict=True)]
            rows.append(measured(AROUND, name, "over training", ratios, better=LOWER, limit=1.0))
    return rows


def _seconds(work: Callable[[], object]) -> float:
    """On the clock."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _keep_nothing(state: loop.State) -> None:
    del state


def repeated(step: Callable[[], object]) -> Callable[[], object]:
    """`BATCHES` calls as one, waited for at the end as a visit does."""

    def run_all() -> object:
        for _ in range(BATCHES):
            last = step()
        return last

    return run_all


def _rows(
    subject: str, visit: Callable[[], object], steps: Callable[[], object], repeats: int
) -> list[Row]:
    samples = interleaved({"visit": visit, "steps": steps}, repeats, budget_s=20.0)
    ratios = paired(samples["visit"], samples["steps"])
    return [
        measured(TABLE, subject, "visit", walls_ms(samples["visit"]), "ms"),
        measured(TABLE, subject, "bare steps", walls_ms(samples["steps"]), "ms"),
        measured(TABLE, subject, "visit / steps", ratios, better=LOWER, limit=HOST_SHARE),
    ]


def vision_visit(network: Network, trained: tuple[str, ...]) -> Callable[[], object]:
    """A call is one visit of one node, of one epoch."""
    count = BATCHES * network.batch
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, network.side, network.side, 3)).astype(np.float32)
    labels = jnp.arange(count, dtype=jnp.int32) % 10
    examples = Examples(jnp.asarray(images), labels)
    # Plain, as the bare steps are: nothing stored in fewer bits, nothing handed on.
    settings = VisitSettings(
        local_epochs=1, batch_size=network.batch, frozen_dtype="float32", early_stop=0.0, seed=0
    )
    shards = [np.arange(count)]
    engine = image_engine(vgg.local_step(network), examples, examples, shards, settings)
    params = vgg.params_of(network)
    visit = Visit(0, 0, 0, tuple(trained))

    def carry_out() -> object:
        (outcome,) = run_visits(engine, [visit], params, {}, vgg.LEARNING_RATE)
        return outcome.layers

    return carry_out


def language_visit(sizes: llama.Sizes) -> Callable[[], object]:
    """A call is one visit of one node that trains the middle block, of one epoch."""
    engine = language_engine(sizes, BATCHES)
    params = jax.device_get(llama.params_of(sizes))
    blocks = own_items(llama.model_of(sizes), False)
    visit = Visit(0, 0, 0, (blocks[sizes.blocks // 2],))

    def carry_out() -> object:
        (outcome,) = run_visits(engine, [visit], params, {}, llama.LEARNING_RATE)
        return outcome.layers

    return carry_out


def language_engine(sizes: llama.Sizes, batches: int) -> LocalEngine:
    """The emulation of one node that holds so many batches."""
    tokens = llama.ids(sizes, batches * sizes.batch)
    positions = np.broadcast_to(np.arange(sizes.length, dtype=np.int32), tokens.shape)
    one_text_a_row = np.ones_like(tokens)
    rows = packing.TextRows(tokens, *llama.shifted(tokens), positions, one_text_a_row)
    shard = {sizes.length: np.arange(len(tokens), dtype=np.int32)}
    config = TextConfig(batch_size=sizes.batch, frozen_dtype="float32")
    settings = VisitSettings(
        local_epochs=config.local_epochs,
        batch_size=config.batch_size,
        frozen_dtype=config.frozen_dtype,
        early_stop=config.early_stop,
        seed=config.seed,
    )
    train = {sizes.length: rows}
    return text_engine(llama.language_step(sizes), {}, train, train, [shard], settings)
