"""`snake-jax profile`: its help and its flags."""

from absl import flags
from absl.flags import FlagValues

from snake_jax import names
from snake_jax.cli.commands.command import Command

_TEXT = """\
  snake-jax profile --model=opt-1.3b --train=block --frozen_dtype=bfloat16,int8,nf4
  snake-jax profile --model=opt-1.3b --train=block,lora:128 --frozen_dtype=int8 --target=tpu:v5e
  snake-jax profile --model=vgg11 --train=block+ends --target=cpu --plot=vgg11.png
  snake-jax profile --model=vgg11 --algorithm=split --cut=conv2
  snake-jax profile --model=llama-3-8b --train=lora:128 --fits=tpu:v5e
  snake-jax profile --algorithm=scct --model=llama-3-8b --small_model=roberta-base

--model is a network for images (32x32x3, 10 classes), one of yours as MODULE:FUNCTION, a preset of
a language model, or a folder with config.json; no weights are read or made. A row is a visit of
the method: what its layer takes. `block` trains one layer a visit, `block+ends` the first and last
(embedding and head) beside it, `lora:R` a block's adapters of rank R, `lora:r/R` the first r of
their R columns (a node of smaller --rank), `full` all layers. Every --train is combined with every
--frozen_dtype. With --target steps are compiled for cpu, gpu, tpu,
or tpu:v4, tpu:v5e, tpu:v5p, tpu:v6e (pip install libtpu; no TPU is needed); on a device of this
machine they are run and timed as well.
"""


def _define(values: FlagValues) -> None:
    _define_subject(values)
    _define_step(values)
    _define_method(values)
    flags.DEFINE_enum("format", "table", names.PROFILE_FORMATS, "of the output", flag_values=values)
    flags.DEFINE_string(
        "plot",
        "",
        "a PNG with stacked bars: memory a node, FLOPs a layer",
        flag_values=values,
    )


def _define_subject(values: FlagValues) -> None:
    """What is profiled, and on what."""
    models = ", ".join((*names.IMAGE_MODELS, *names.LANGUAGE_MODELS))
    flags.DEFINE_string(
        "model",
        "opt-1.3b",
        f"{models}, MODULE:FUNCTION, or a folder with config.json",
        flag_values=values,
    )
    # Ways to train are combined: a table for every pair of these two.
    flags.DEFINE_list(
        "train",
        [],
        "block, block+ends, lora:R, lora:r/R, full; several by comma; empty: block, or all layers",
        flag_values=values,
    )
    flags.DEFINE_list(
        "frozen_dtype",
        [],
        "float32, bfloat16, int8, nf4; several by comma; empty: 2 bytes or 4",
        flag_values=values,
    )
    flags.DEFINE_string(
        "layers",
        "all",
        "rows of the tables: names or numbers of layers by comma, or all",
        flag_values=values,
    )
    # For which device, which need not be here.
    flags.DEFINE_string(
        "target",
        "",
        "compile for cpu, gpu, tpu or tpu:CHIP; empty: not at all",
        flag_values=values,
    )
    flags.DEFINE_string(
        "fits",
        "",
        "search the largest step that this target takes, and print how to launch it",
        flag_values=values,
    )
    flags.DEFINE_float(
        "spare",
        0.0,
        "of --fits: share of the device's memory to leave free, for what else lies there",
        lower_bound=0.0,
        upper_bound=0.9,
        flag_values=values,
    )


def _define_step(values: FlagValues) -> None:
    """The settings of a step, with the names that a run's have; empty: as in a run."""
    # What passes at once.
    flags.DEFINE_integer(
        "batch_size",
        None,
        "rows or images in a step; empty: as in a run",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_length", None, "tokens in a row; empty: 512", lower_bound=8, flag_values=values
    )
    flags.DEFINE_bool("distill", False, "with a teacher", flag_values=values)
    flags.DEFINE_float(
        "dp_clip",
        None,
        "with a gradient for each example, as differential privacy has",
        lower_bound=0.0,
        flag_values=values,
    )
    # How it is computed, which changes memory and time but not what is learned.
    flags.DEFINE_string(
        "mesh",
        None,
        "devices that a model lies over, as fsdp:4,tensor:2, of the target's",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "recompute",
        None,
        ("block", "none"),
        "what the backward pass keeps of a block",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "frozen_matmul",
        None,
        ("dequantize", "fused"),
        "products with int8 or nf4; fused: by a kernel for TPUs",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "packing", None, "rows that hold several texts, as in a run; empty: yes", flag_values=values
    )
    flags.DEFINE_enum(
        "optimizer",
        None,
        ("sgd", "adam", "adamw", "rmsprop"),
        "empty: as in a run",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "compute_dtype",
        None,
        ("float32", "bfloat16"),
        "arithmetic; empty: as in a run",
        flag_values=values,
    )


def _define_method(values: FlagValues) -> None:
    """The method, and where a model is cut."""
    flags.DEFINE_enum(
        "algorithm",
        "snake",
        (*names.ALGORITHMS, "scct"),
        "the method; scct: memory and FLOPs of device, edge and cloud",
        flag_values=values,
    )
    flags.DEFINE_string(
        "small_model",
        "roberta-base",
        "of scct: the encoder before --model: bert-tiny to bert-large, roberta-base, roberta-large",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "nodes",
        None,
        "nodes of a run, for bytes that are kept; empty: as in a run",
        lower_bound=1,
        flag_values=values,
    )
    # Where layers lie, of methods that cut the network.
    flags.DEFINE_string(
        "cut",
        None,
        "split methods: the layers that stay at the node; empty: as in a run",
        flag_values=values,
    )
    flags.DEFINE_string(
        "cloud_cut",
        None,
        "split methods: the server's last layer, below the cloud's; empty: no cloud",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "tail",
        None,
        "split methods: last layers kept at the node too",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "snake_length",
        None,
        "random_walking_snakes: nodes of a snake",
        lower_bound=1,
        flag_values=values,
    )


PROFILE = Command(
    name="profile",
    purpose="says what training takes of a node: by formula, by the compiler of a chip that need "
    "not be here, and measured",
    example="snake-jax profile --model=vgg11 --algorithm=snake",
    text=_TEXT,
    define=_define,
    module="snake_jax.cli.profile",
    newcomers=(
        "model",
        "algorithm",
        "train",
        "batch_size",
        "max_length",
        "frozen_dtype",
        "target",
        "fits",
        "format",
        "plot",
    ),
)
