"""Carries out `snake-jax accounting`: VGG-11 layer by layer, from shapes and by the compiler."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from snake_jax.cli import accounting_tables
from snake_jax.cli.commands.command import Given
from snake_jax.config import ImageConfig
from snake_jax.costs.compiled import compiled_cost
from snake_jax.costs.flops import LayerCost, step_flops
from snake_jax.costs.layers import layer_costs
from snake_jax.costs.memory import state_bytes
from snake_jax.costs.timing import machine
from snake_jax.costs.traffic import transfer_sizes
from snake_jax.models import registry
from snake_jax.models.layered import LayeredModel
from snake_jax.profiling import traffic
from snake_jax.runs import image_task
from snake_jax.runs.job import chosen_algorithm
from snake_jax.training.image_step import LocalStep

MIDDLE = "conv8"  # of the memory table: no layer has more parameters
NODES = 9
CYCLES = 3
SPARING = (
    {"frozen_dtype": "float32"},
    {"frozen_dtype": "bfloat16"},
    {"frozen_dtype": "int8"},
    {"frozen_dtype": "float32", "distilled": True},
    {"frozen_dtype": "int8", "distilled": True},
)
Row = dict[str, Any]


def main(given: Given) -> None:
    """Counts, compiles, prints or writes."""
    batch_size = given.flags.batch
    output = given.flags.output
    results = given.flags.results
    numbers: Row = {
        "command": given.line,
        "machine": _machine(),
        "batch_size": batch_size,
        **analytic(batch_size),
    }
    # The file is looked at before minutes of compiling, so that one without marks costs none.
    if output:
        accounting_tables.insert(Path(output), "")

    # Minutes of compiling, so each program is told of.
    for row in numbers["steps"]:
        for lowering in ("matmul", "xla"):
            row[lowering] = _compiled(row, batch_size, lowering)
        print(f"compiled: {row['kind']} {row['layer']}", file=sys.stderr)
    for row in numbers["memory"]:
        row["matmul"] = _compiled(row, batch_size, "matmul")
        print(f"compiled: {row['frozen_dtype']}, distilled {row['distilled']}", file=sys.stderr)

    tables = accounting_tables.all_tables(numbers)
    if results:
        text = json.dumps(numbers, indent=1)
        Path(results).write_text(text + "\n")
        print(results)
    if output:
        text = accounting_tables.insert(Path(output), tables)
        Path(output).write_text(text)
        print(output)
    else:
        print(tables)


def analytic(batch_size: int) -> Row:
    """All that follows from shapes alone: the same numbers on every machine."""
    # Which lowering the model has does not change its shapes.
    model = papers_vgg11()
    costs = layer_costs(model, batch_size)
    layers: list[Row] = []
    for cost in costs:
        layers.append({"layer": cost.name, "params": cost.params, "forward_flops": cost.forward})
    steps = []
    for row in _assignments(model):
        flops = step_flops(costs, row["trained"])
        steps.append({**row, "flops": flops})
    return {
        "layers": layers,
        "steps": steps,
        "memory": [_memory(model, costs, **variant) for variant in _memory_variants(model)],
        "traffic": [_traffic(model, **variant) for variant in _traffic_variants()],
    }


def papers_vgg11(lowering: str = "matmul") -> LayeredModel:
    """The papers' network: 32x32x3 images, 10 classes."""
    return registry.build("vgg11", 10, (32, 32, 3), conv=lowering)


def step_of(model: LayeredModel, distilled: bool = False) -> LocalStep:
    """The step of the defaults of `ImageConfig`, distillation apart."""
    config = ImageConfig(distill="on" if distilled else "off")
    job = image_task.make_job(config, chosen_algorithm(config), model)
    return image_task.make_step(job)


def _assignments(model: LayeredModel) -> Iterator[Row]:
    """All layers together, each as the middle one between first and last, then each alone."""
    names = model.layer_names
    yield {"kind": "full", "layer": "all", "trained": list(names)}
    for middle in names:
        # The first and the last layer may be the middle one too.
        wanted = (names[0], middle, names[-1])
        trained = [name for name in names if name in wanted]
        yield {"kind": "ends", "layer": middle, "trained": trained}
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
    """What the compiler says of a row's step, with this convolution."""
    step = step_of(papers_vgg11(lowering), row.get("distilled", False))
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
    """What the ledger has of some cycles.

    Returns:
      The settings, and `cycles`: for each cycle `[middle layer, bytes up, bytes down]` of its
      visits.
    """
    config = ImageConfig(**{"nodes": NODES, "cycles": CYCLES, **variant})
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    sizes = transfer_sizes(shapes, config.frozen_dtype)
    cycles = []
    job = image_task.make_job(config, chosen_algorithm(config), model)
    for visits in traffic.cycles(job, sizes):
        rows = []
        for layers, up, down in visits:
            # Snake's visits train the first layer, the middle one and the last; FedAvg's all.
            name = layers[1] if len(layers) == 3 else "all"
            rows.append([name, up, down])
        cycles.append(rows)
    told: Row = {}
    for key in ("algorithm", "nodes", "mode", "cached", "frozen_dtype"):
        told[key] = getattr(config, key)
    return {**told, "cycles": cycles}


def _machine() -> Row:
    here = machine()
    keys = ("processor", "cores", "python", "backend", "jax", "jaxlib")
    return {key: here[key] for key in keys}
