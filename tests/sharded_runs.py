"""Steps and runs on a mesh beside the same on one device: a program of its own, for it needs eight
devices.

  JAX_NUM_CPU_DEVICES=8 python -m tests.sharded_runs steps "int8 adapters" ends

What is compared is printed as JSON. Gradients are read off optimizer states: momentum's trace after
one step is the gradient, Adam's moments a tenth of it and a thousandth of its square.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax.config import TextConfig
from snake_jax.models.presets import from_preset
from snake_jax.params import PyTree
from snake_jax.runs import loop
from snake_jax.training import layer_copies, sharding
from snake_jax.training.image_step import Distillation
from snake_jax.training.optimizers import init_states, update_rule
from snake_jax.training.text_step import ENDS, LanguageStep, train_step
from tests.helpers import same_bits
from tests.launches import write_model, write_pairs
from tests.training import test_text_step as steps

# 264 is the size of nothing but the vocabulary, and 6 and 5 are those of nothing but the stack.
steps.MODELS["wide"] = from_preset(
    *("tiny-llama",),
    **{"num_hidden_layers": 6, "vocab_size": 264, "hidden_size": 128, "intermediate_size": 256},
    **{"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 16},
)


class Case(NamedTuple):
    """A step: model, mesh, storage, and what else a step may have."""

    model: str
    mesh: str
    dtype: str
    adapted: bool = False
    distilled: bool = False
    ends: tuple[str, ...] = ()
    packed: bool = False
    parts: int = 1
    optimizer: str = "sgd"
    recompute: str = "block"


CASES = {
    "bfloat16 block": Case("wide", "fsdp:8", "bfloat16", distilled=True),
    "int8 block": Case("wide", "fsdp:4,tensor:2", "int8", distilled=True, parts=2),
    "nf4 block": Case("wide", "fsdp:2,tensor:4", "nf4", packed=True, recompute="none"),
    "int8 adapters": Case("wide", "tensor:8", "int8", adapted=True, optimizer="adamw"),
    "nf4 adapters": Case("wide", "fsdp:4,tensor:2", "nf4", adapted=True, distilled=True),
    "ends": Case("opt", "fsdp:4,tensor:2", "int8", ends=ENDS, distilled=True, optimizer="adamw"),
}
GATHERED = {
    "int8": Case("wide", "fsdp:4,tensor:2", "int8", adapted=True),
    "nf4": Case("wide", "fsdp:4,tensor:2", "nf4", adapted=True),
}
RUNS: dict[str, dict[str, Any]] = {
    "blocks": {"mesh": "fsdp:4,tensor:2", "lora_rank": 0, "frozen_dtype": "int8", "distill": "on"},
    "adapters": {
        "mesh": "fsdp:8",
        "lora_rank": 4,
        "frozen_dtype": "nf4",
        "local_epochs": 2,
        "cache_prefix": "host",
    },
    "ends": {
        "mesh": "fsdp:2,tensor:2",
        "lora_rank": 0,
        "always_train": "embed,head",
        "carry_optimizer_state": True,
    },
    "all": {"mesh": "fsdp:4", "lora_rank": 4, "rank": "2,4", "algorithm": "fedavg"},
}


def prepared(case: Case, mesh_flag: str) -> tuple[LanguageStep, tuple[Any, ...]]:
    """The step and its arguments, on the mesh or on one device."""
    mesh, rule = (
        sharding.make_mesh(mesh_flag),
        update_rule(case.optimizer, momentum=0.9, weight_decay=0.0),
    )
    distillation = Distillation(2.0, 0.5) if case.distilled else None
    options = {
        "rule": rule,
        "adapted": case.adapted,
        "recompute": case.recompute,
        "distillation": distillation,
    }
    step = steps.make(case.model, mesh=mesh, **options)
    trainable, frozen = steps.parted(
        case.model, 1, adapted=case.adapted, dtype=case.dtype, ends=case.ends
    )
    received = jax.tree.map(lambda w: 1.1 * w, trainable) if step.needs_received else {}
    states = init_states(rule, trainable, tuple(trainable))
    batch = steps.rows(shape=(case.parts, 8, 7), packed=case.packed)
    arguments = jax.tree.map(jnp.array, (trainable, states, frozen, received, batch))
    arguments += (jax.random.key(0), jnp.float32(steps.RATE))
    if mesh is not None:
        places = sharding.step_places(mesh, arguments)
        arguments = jax.jit(lambda tree: tree, out_shardings=places)(arguments)
    return step, arguments


def jitted(case: Case, mesh_flag: str) -> tuple[Any, tuple[Any, ...]]:
    """The jitted step and its arguments."""
    step, arguments = prepared(case, mesh_flag)
    return jax.jit(train_step(step, tuple(arguments[0])), donate_argnums=(0, 1)), arguments


def text_of(case: Case) -> str:
    """The step's program as it is compiled, with all optimisations."""
    function, arguments = jitted(case, case.mesh)
    return function.lower(*arguments).compile().as_text()


def step_results(case: Case) -> dict[str, Any]:
    """How far the mesh's step is from one device's, each array measured by its largest value."""
    program, arguments = jitted(case, case.mesh)
    places = jax.tree.map(lambda w: w.sharding, arguments[:2])
    found = program(*arguments)
    program, arguments = jitted(case, "")
    wanted = program(*arguments)
    stays = jax.tree.map(
        lambda w, place: w.sharding.is_equivalent_to(place, w.ndim), found[:2], places
    )
    return {
        "trained": _apart(found[0], wanted[0]),
        "states": _apart(found[1], wanted[1]),
        "loss": _apart(found[2], wanted[2]),
        "stays": all(jax.tree.leaves(stays)),
        "devices": min(len(w.sharding.device_set) for w in jax.tree.leaves(found)),
    }


def run_results(flags: dict[str, Any], small: dict[str, Any]) -> dict[str, Any]:
    """How far a run on the mesh is from that on one device, and whether what never trains is the
    same bits.
    """
    ends = []
    for mesh in (flags["mesh"], ""):
        setup = loop.prepare(TextConfig(**small | flags | {"mesh": mesh}))
        executor = loop.make_engine(setup)
        *_, last = loop.train(setup, executor, loop.initial_state(setup), lambda state: None)
        ends.append((executor, last))
    (executor, found), (alone, wanted) = ends
    frozen = [
        sharding.fetch((some._layout._base, some._layout._ends)) for some in (executor, alone)
    ]
    own = [some for some in jax.tree.leaves(executor._layout._own) if some.size]
    names = ("bytes_up", "bytes_down", "train_flops", "tokens")
    return {
        "params": _apart(found.state.params, wanted.state.params),
        "states": _apart(found.state.states, wanted.state.states),
        "test_loss": [found.record["test_loss"], wanted.record["test_loss"]],
        "counts": [[end.record[name] for name in names] for end in (found, wanted)],
        "same_frozen": same_bits(*frozen),
        "least_part": min(
            (some.addressable_shards[0].data.nbytes / some.nbytes for some in own), default=0.0
        ),
        "programs": {
            program.kind: jitted._cache_size() for program, jitted in executor._programs.items()
        },
        "peak_bytes": [executor.compilations.peak_bytes, alone.compilations.peak_bytes],
    }


def frozen_alike() -> dict[str, bool]:
    """Whether copies made on a mesh have the bits of those made on one device."""
    block, mesh = steps.weights("wide")["block_01"], sharding.make_mesh("fsdp:4,tensor:2")
    copies = {
        dtype: [sharding.fetch(layer_copies.freezing(m, dtype)(block)) for m in (mesh, None)]
        for dtype in ("bfloat16", "int8", "nf4")
    }
    return {dtype: same_bits(*pair) for dtype, pair in copies.items()}


def _apart(tree: PyTree, other: PyTree) -> float:
    """The largest difference of two arrays, each measured by its largest value."""

    def one(path: tuple, a: Any, b: Any) -> float:
        if [getattr(key, "key", "") for key in path[-2:]] == ["k_proj", "bias"]:
            return (
                0.0  # moves all scores of a query alike: its gradient is rounding and nothing else
            )
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))

    return max(jax.tree.leaves(jax.tree.map_with_path(one, tree, other)), default=0.0)


def main(what: str, *names: str) -> dict[str, Any]:
    """These of one kind: steps, gathered (programs as text) or runs."""
    if what == "gathered":
        return {name: text_of(GATHERED[name]) for name in names}
    jax.config.update("jax_disable_most_optimizations", True)
    if what == "steps":
        found = {name: step_results(CASES[name]) for name in names}
        return found | {"frozen": frozen_alike()}
    with tempfile.TemporaryDirectory() as folder:
        small = {
            "max_length": 64,
            "nodes": 2,
            "batch_size": 8,
            "eval_every": 100,
            "optimizer": "sgd",
        }
        small |= {"learning_rate": 0.1, "momentum": 0.9}
        small |= {"model": str(write_model(Path(folder) / "model", num_key_value_heads=2))}
        small |= {"data": str(write_pairs(Path(folder) / "pairs.jsonl"))}
        return {name: run_results(RUNS[name], small) for name in names}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
