"""What training takes of a node: by formula, by the compiler of a chip that need not be here, and
measured.

  python -m experiments.profile --model=opt-1.3b --train=block --frozen_dtype=bfloat16,int8,nf4
  python -m experiments.profile --model=opt-1.3b --train=block,lora:128 --frozen_dtype=int8
  --target=tpu:v5e python -m experiments.profile --model=vgg11 --train=block+ends --target=cpu
  --plot=vgg11.png python -m experiments.profile --model=vgg11 --algorithm=split --cut=conv2
  python -m experiments.profile --model=llama-3-8b --train=lora:128 --fits=tpu:v5e

--model is a network for images (32x32x3, 10 classes), a preset, or a folder with config.json; no
weights are read or made. A row is a visit of the method: what its layer takes. `block` trains one
layer a visit, `block+ends` the first and last (embedding and head) beside it, `lora:R` a block's
adapters of rank R, `full` all layers. Every --train is combined with every --frozen_dtype. With
--target steps are compiled for cpu, gpu, tpu, or tpu:v4, tpu:v5e, tpu:v5p, tpu:v6e (pip install
libtpu; no TPU is needed); on a device of this machine they are run and timed as well.
"""

import shlex
import sys

from absl import flags

from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.cli import launch
from snake_jax.errors import UserError
from snake_jax.models.presets import PRESETS
from snake_jax.models.registry import MODELS
from snake_jax.profiling import ask, build, cases, launches, measure, output, subjects
from snake_jax.profiling.ask import Ask
from snake_jax.profiling.cases import Work
from snake_jax.profiling.output import FORMATS, Profile
from snake_jax.profiling.rows import Case, Row

MODEL = flags.DEFINE_string(
    "model", "opt-1.3b", f"{', '.join((*MODELS, *PRESETS))}, or a folder with config.json"
)
ALGORITHM = flags.DEFINE_enum("algorithm", "snake", list(ALGORITHMS), "the method")
TRAIN = flags.DEFINE_list(
    "train", [], "block, block+ends, lora:R, full; several by comma; empty: block, or all layers"
)
DTYPES = flags.DEFINE_list(
    "frozen_dtype", [], "float32, bfloat16, int8, nf4; several by comma; empty: 2 bytes or 4"
)
BATCH = flags.DEFINE_integer(
    "batch_size", None, "rows or images in a step; empty: as in a run", lower_bound=1
)
LENGTH = flags.DEFINE_integer("max_length", None, "tokens in a row; empty: 512", lower_bound=8)
LAYERS = flags.DEFINE_string(
    "layers", "all", "rows of the tables: names or numbers of layers by comma, or all"
)
TARGET = flags.DEFINE_string(
    "target", "", "compile for cpu, gpu, tpu or tpu:CHIP; empty: not at all"
)
FITS = flags.DEFINE_string(
    "fits", "", "search the largest step that this target takes, and print how to launch it"
)
DISTILL = flags.DEFINE_bool("distill", False, "with a teacher")
MESH = flags.DEFINE_string(
    "mesh", None, "devices that a model lies over, as fsdp:4,tensor:2, of the target's"
)
RECOMPUTE = flags.DEFINE_enum(
    "recompute", None, ("block", "none"), "what the backward pass keeps of a block"
)
FROZEN_MATMUL = flags.DEFINE_enum(
    "frozen_matmul",
    None,
    ("dequantize", "fused"),
    "products with int8 or nf4; fused: by a kernel for TPUs",
)
PACKING = flags.DEFINE_bool(
    "packing", None, "rows that hold several texts, as in a run; empty: yes"
)
OPTIMIZER = flags.DEFINE_enum(
    "optimizer", None, ("sgd", "adam", "adamw", "rmsprop"), "empty: as in a run"
)
COMPUTE = flags.DEFINE_enum(
    "compute_dtype", None, ("float32", "bfloat16"), "arithmetic; empty: as in a run"
)
NODES = flags.DEFINE_integer(
    "nodes", None, "nodes of a run, for bytes that are kept; empty: as in a run", lower_bound=1
)
CUT = flags.DEFINE_string(
    "cut", None, "split methods: the layers that stay at the node; empty: as in a run"
)
TAIL = flags.DEFINE_integer(
    "tail", None, "split methods: last layers kept at the node too", lower_bound=0
)
SNAKE_LENGTH = flags.DEFINE_integer(
    "snake_length", None, "random_walking_snakes: nodes of a snake", lower_bound=1
)
FORMAT = flags.DEFINE_enum("format", "table", list(FORMATS), "of the output")
PLOT = flags.DEFINE_string("plot", "", "a PNG with stacked bars: memory a node, FLOPs a layer")


def main(_: list[str]) -> None:
    """Tables, or the search."""
    asked = _asked()
    if FITS.value:
        _search(asked)
    else:
        _profile(asked)


def _asked() -> Ask:
    """The settings that were given, for configurations of runs."""
    given = {
        "batch_size": BATCH.value,
        "max_length": LENGTH.value,
        "recompute": RECOMPUTE.value,
        "mesh": MESH.value,
        "frozen_matmul": FROZEN_MATMUL.value,
        "packing": PACKING.value,
        "optimizer": OPTIMIZER.value,
        "compute_dtype": COMPUTE.value,
        "nodes": NODES.value,
        "cut": CUT.value,
        "tail": TAIL.value,
        "snake_length": SNAKE_LENGTH.value,
        "distill": "on" if DISTILL.value else None,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    if FITS.value and TARGET.value:
        raise UserError(f"--fits={FITS.value} and --target={TARGET.value}: give one of them")
    target = FITS.value or TARGET.value
    return ask.resolve(MODEL.value, ALGORITHM.value, TRAIN.value, DTYPES.value, settings, target)


def _profile(asked: Ask) -> None:
    target = TARGET.value
    works = [cases.work(way.train, way.config, asked.model, target) for way in asked.ways]
    if target and any(len(work.setup.chain) > 1 for work in works):
        raise UserError(
            f"--target={target}: {ALGORITHM.value} is compiled as one program, of no place; leave "
            f"it out"
        )
    full = cases.full(asked.ways[0].config, asked.model, target)
    chosen = cases.choice(
        LAYERS.value, [name for work in works for name in cases.assignments(work)]
    )
    reference = cases.reference(full)
    found = [cases.case(work, reference, chosen) for work in works]
    # Steps on a mesh are compiled and not timed: the peaks are those of one device.
    device, peaks = None if MESH.value else build.present(target), None
    if target:
        reference = build.compiled(reference, full.subject, {}, _note)
        found = [_compiled(case, work, reference) for case, work in zip(found, works, strict=True)]
    if device is not None:
        peaks = measure.peaks(device, full.setup.config.compute_dtype)
        pairs = list(zip(found, works, strict=True))
        found = [
            build.measured(case, work.subject, full.subject, device, peaks, _note)
            for case, work in pairs
        ]
    command = shlex.join(["python", "-m", "experiments.profile", *sys.argv[1:]])
    profile = Profile(command, asked, found, works, target, peaks)
    print(FORMATS[FORMAT.value](profile))
    if PLOT.value:
        from snake_jax.profiling import (
            picture,  # matplotlib takes a second, and most profiles draw nothing
        )

        _note(f"written: {picture.draw(PLOT.value, output.title(profile), found)}")


def _compiled(case: Case, work: Work, reference: Row) -> Case:
    programs: build.Programs = {}
    if work.train == "full" and reference.built is not None:
        programs[subjects.program_key(work.subject, reference.trained)] = reference.built
    rows = tuple(build.compiled(row, work.subject, programs, _note) for row in case.rows)
    return case._replace(rows=rows, full=reference)


def _search(asked: Ask) -> None:
    found = launches.largest(asked, FITS.value, _note)
    if found is None:
        raise UserError(
            f"--fits={FITS.value}: not one row fits, in any storage, rank or length that was tried"
        )
    print(found)


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    launch.run(main)
