"""VGG-11 layer by layer: FLOPs, memory and bytes of a visit, counted from shapes and by the
compiler.

  python -m experiments.accounting [--batch_size=32] [--output=FILE.md] [--results=FILE.json]

Compiles about fifty programs for the platform at hand (3 to 8 s each on a CPU) and runs none of
them. Writes the numbers to experiments/results/accounting.json, and tables of them between two
marks in docs/accounting.md.
"""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from experiments import accounting_tables
from snake_jax.cli import launch
from snake_jax.config import ImageConfig
from snake_jax.costs.compiled import compiled_cost
from snake_jax.costs.flops import LayerCost, step_flops
from snake_jax.costs.layers import layer_costs
from snake_jax.costs.memory import state_bytes
from snake_jax.costs.timing import machine
from snake_jax.costs.traffic import transfer_sizes
from snake_jax.models import registry
from snake_jax.models.layered import LayeredModel
from snake_jax.profiling import setups, traffic
from snake_jax.train.image_step import LocalStep

ROOT = Path(__file__).parents[1]
BATCH = flags.DEFINE_integer("batch", 32, "examples in a step", lower_bound=1)
OUTPUT = flags.DEFINE_string(
    "output", str(ROOT / "docs/accounting.md"), "the Markdown file that gets the tables"
)
RESULTS = flags.DEFINE_string(
    "results", str(ROOT / "experiments/results/accounting.json"), "the file of numbers"
)

MIDDLE = "conv8"  # of the memory table: no layer has more parameters
NODES, CYCLES = 9, 3
SPARING = (
    {"frozen_dtype": "float32"},
    {"frozen_dtype": "bfloat16"},
    {"frozen_dtype": "int8"},
    {"frozen_dtype": "float32", "distilled": True},
    {"frozen_dtype": "int8", "distilled": True},
)
Row = dict[str, Any]


def main(_: list[str]) -> None:
    """Counts, compiles, writes."""
    numbers: Row = {
        "command": shlex.join(["python", "-m", "experiments.accounting", *sys.argv[1:]]),
        "machine": _machine(),
        "batch_size": BATCH.value,
        **analytic(BATCH.value),
    }
    for row in numbers["steps"]:
        row |= {lowering: _compiled(row, BATCH.value, lowering) for lowering in ("matmul", "xla")}
        print(f"compiled: {row['kind']} {row['layer']}", file=sys.stderr)
    for row in numbers["memory"]:
        row["matmul"] = _compiled(row, BATCH.value, "matmul")
        print(f"compiled: {row['frozen_dtype']}, distilled {row['distilled']}", file=sys.stderr)
    Path(RESULTS.value).write_text(json.dumps(numbers, indent=1) + "\n")
    text = accounting_tables.insert(Path(OUTPUT.value), accounting_tables.markdown(numbers))
    Path(OUTPUT.value).write_text(text)
    print(f"{OUTPUT.value}\n{RESULTS.value}")


def analytic(batch_size: int) -> Row:
    """All that follows from shapes alone: the same numbers on every machine."""
    model = vgg11()
    costs = layer_costs(model, batch_size)
    steps = [{**row, "flops": step_flops(costs, row["trained"])} for row in _assignments(model)]
    return {
        "layers": [
            {"layer": c.name, "params": c.params, "forward_flops": c.forward} for c in costs
        ],
        "steps": steps,
        "memory": [_memory(model, costs, **variant) for variant in _memory_variants(model)],
        "traffic": [_traffic(model, **variant) for variant in _traffic_variants()],
    }


def vgg11(lowering: str = "matmul") -> LayeredModel:
    """The papers' network: 32x32x3 images, 10 classes."""
    return registry.build("vgg11", 10, (32, 32, 3), conv=lowering)


def step_of(model: LayeredModel, distilled: bool = False) -> LocalStep:
    """The step of the defaults of `ImageConfig`, distillation apart."""
    return setups.image_step(ImageConfig(), model, distilled)


def _assignments(model: LayeredModel) -> Iterator[Row]:
    """Every layer as the middle one between first and last, then every layer alone, before them all
    together.
    """
    names = model.layer_names
    yield {"kind": "full", "layer": "all", "trained": list(names)}
    for middle in names:
        yield {
            "kind": "ends",
            "layer": middle,
            "trained": [n for n in names if n in (names[0], middle, names[-1])],
        }
    for middle in names:
        yield {"kind": "alone", "layer": middle, "trained": [middle]}


def _memory_variants(model: LayeredModel) -> Iterator[Row]:
    names = model.layer_names
    yield {"trained": list(names), "frozen_dtype": "float32"}
    for variant in SPARING:
        yield {"trained": [names[0], MIDDLE, names[-1]], **variant}


def _memory(
    model: LayeredModel,
    costs: Sequence[LayerCost],
    *,
    trained: list[str],
    frozen_dtype: str,
    distilled: bool = False,
) -> Row:
    """Bytes that a node keeps through a visit, by what they are."""
    state = state_bytes(step_of(model, distilled), trained, frozen_dtype)
    flops = step_flops(costs, trained, teacher=distilled)
    return {
        "trained": trained,
        "frozen_dtype": frozen_dtype,
        "distilled": distilled,
        "trained_bytes": state.trained,
        "optimizer_bytes": state.optimizer,
        "frozen_bytes": state.frozen,
        "teacher_bytes": state.received,
        "flops": flops,
    }


def _compiled(row: Row, batch_size: int, lowering: str) -> Row:
    step = step_of(vgg11(lowering), row.get("distilled", False))
    cost = compiled_cost(
        step, tuple(row["trained"]), batch_size, row.get("frozen_dtype", "float32")
    )
    return cost._asdict()


def _traffic_variants() -> Iterator[Row]:
    yield {"algorithm": "fedavg"}
    for frozen_dtype in ("float32", "int8"):
        for cached in (False, True):
            yield {"algorithm": "snake", "frozen_dtype": frozen_dtype, "cached": cached}
    for cached in (False, True):
        yield {"algorithm": "snake", "mode": "peer_to_peer", "cached": cached}
    yield {"algorithm": "snake", "mode": "peer_to_peer", "cached": True, "nodes": 2}


def _traffic(model: LayeredModel, **variant: Any) -> Row:
    """What the ledger has for each visit of some cycles: `[[middle layer, bytes up, bytes down],
    ...]` a cycle.
    """
    config = ImageConfig(**{"nodes": NODES, "cycles": CYCLES, **variant})
    sizes = transfer_sizes(jax.eval_shape(model.init, jax.random.key(0)), config.frozen_dtype)
    cycles = [
        [[layers[1] if len(layers) == 3 else "all", up, down] for layers, up, down in visits]
        for visits in traffic.cycles(setups.of_images(config, model), sizes)
    ]
    kept = {
        key: getattr(config, key)
        for key in ("algorithm", "nodes", "mode", "cached", "frozen_dtype")
    }
    return {**kept, "cycles": cycles}


def _machine() -> Row:
    return {
        key: machine()[key] for key in ("processor", "cores", "python", "backend", "jax", "jaxlib")
    }


if __name__ == "__main__":
    launch.run(main)
