"""What is checked at each scale: one for accelerators, one for a CPU by hand, one for tests."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.bench.kernels.conv import Network
from snake_jax.kernels.distill_xent.shapes import LARGE as LARGE_LOSSES
from snake_jax.kernels.distill_xent.shapes import MIDDLE as MIDDLE_LOSS
from snake_jax.kernels.distill_xent.shapes import XentShape
from snake_jax.kernels.quant_matmul.shapes import LARGE as LARGE_PRODUCTS
from snake_jax.kernels.quant_matmul.shapes import MIDDLE as MIDDLE_PRODUCT
from snake_jax.kernels.quant_matmul.shapes import QuantShape

GB, GIB = 1e9, 2.0**30
BADAM_BYTES = 23.5 * GB
"""BAdam's peak of fine-tuning Llama-3-8B, as published (arXiv 2404.02827)."""
TORCHTUNE_BYTES = 7.4 * GIB
TORCHTUNE_TOKENS_S = 2413.0
"""torchtune's QLoRA of Llama-3.1-8B on an RTX 4090, as published (github.com/pytorch/torchtune)."""

Flags = Mapping[str, Any]


class Alone(NamedTuple):
    """A training step that has the device to itself.

    Attributes:
      model: a preset, or a network for images.
      train: see `profiling.ask.KINDS`.
      frozen_dtype: of what does not train; empty: everything trains.
      batch: rows, or images.
      length: tokens in a row; 0: images.
      most_bytes: the published peak that it is to stay below; None: there is none.
      rival_tokens_s: a published rate; None: there is none.
    """

    model: str
    train: str
    frozen_dtype: str
    batch: int
    length: int = 0
    most_bytes: float | None = None
    rival_tokens_s: float | None = None

    @property
    def subject(self) -> str:
        """For tables."""
        stored = f", {self.frozen_dtype}" if self.frozen_dtype else ""
        what = f"{self.batch} x {self.length} tokens" if self.length else f"{self.batch} images"
        return f"{self.model}, {self.train}{stored}, {what}"


class Sizes(NamedTuple):
    """What the stages are given.

    Attributes:
      products: of quantized matrices, for values; those of `timed_products` for times.
      losses: of hidden states, likewise.
      network: whose convolutions are compared and timed.
      images: flags of a run that trains a network for images.
      text: flags of a run that trains a language model.
      alike: flags beside those for runs that every executor carries out.
      steps: networks whose partial steps are timed against their FLOPs.
      memory: steps whose measured peak is compared with the compiled one, from the least memory.
      large: steps of the models that people fine-tune.
      repeats: of what is timed.
      figure: scale of `experiments.reproduce`.
      held: whether measured times and peaks are held to goals: on a shared CPU they are not.
    """

    products: tuple[QuantShape, ...]
    losses: tuple[XentShape, ...]
    timed_products: tuple[QuantShape, ...]
    timed_losses: tuple[XentShape, ...]
    network: Network
    images: Flags
    text: Flags
    alike: Flags
    steps: tuple[Alone, ...]
    memory: tuple[Alone, ...]
    large: tuple[Alone, ...]
    repeats: int
    figure: str
    held: bool


_IMAGES: Flags = {
    "model": "vgg11",
    "dataset": "digits",
    "algorithm": "snake",
    "nodes": 3,
    # A program for each assignment is compiled: three of the nine middle layers a visit are three.
    "layers_per_visit": 3,
    "learning_rate": 0.03,
    "eval_every": 3,
}
_TEXT: Flags = {
    "model": "tiny-llama",
    "algorithm": "snake",
    "nodes": 4,
    "batch_size": 4,
    "lora_rank": 0,
    "learning_rate": 1e-2,
}
_ALIKE: Flags = {"algorithm": "fedavg", "nodes": 4, "cycles": 2}

SCALES = {
    # The shapes of OPT-1.3B and Llama-3-8B, for a device with about 16 GB or more.
    "full": Sizes(
        products=LARGE_PRODUCTS,
        losses=(LARGE_LOSSES[0], XentShape("llama-3-8b, 512 tokens", 512, 4096, 128256)),
        timed_products=LARGE_PRODUCTS,
        timed_losses=LARGE_LOSSES,
        network=Network(),
        images={**_IMAGES, "cycles": 6},
        text={**_TEXT, "max_length": 64, "cycles": 4},
        alike={**_ALIKE, "train_examples": 1024},
        steps=(
            Alone("vgg11", "block+ends", "float32", 256),
            Alone("opt-125m", "block", "bfloat16", 8, 512),
        ),
        memory=(
            Alone("vgg11", "block", "float32", 256),
            Alone("vgg11", "full", "", 256),
            Alone("opt-125m", "block", "int8", 8, 512),
            Alone("opt-125m", "full", "", 8, 512),
        ),
        large=(
            Alone("opt-1.3b", "block", "bfloat16", 6, 512),
            Alone("opt-1.3b", "lora:128", "int8", 6, 512),
            Alone(
                *("llama-3-8b", "lora:16", "nf4", 2, 2048),
                most_bytes=TORCHTUNE_BYTES,
                rival_tokens_s=TORCHTUNE_TOKENS_S,
            ),
            Alone("llama-3-8b", "block", "int8", 2, 2048, most_bytes=BADAM_BYTES),
        ),
        repeats=9,
        figure="full",
        held=True,
    ),
    # What two CPU cores do in under ten minutes: the same code on narrow networks.
    "small": Sizes(
        products=(QuantShape("parts of both sides", 8, 1536, 1152, 8), MIDDLE_PRODUCT),
        losses=(MIDDLE_LOSS,),
        timed_products=(MIDDLE_PRODUCT,),
        timed_losses=(MIDDLE_LOSS,),
        network=Network(width=0.25),
        images={**_IMAGES, "cycles": 3, "width": 0.25},
        text={**_TEXT, "max_length": 48, "cycles": 2},
        # Each executor compiles programs of its own: a network of fewer layers is one sooner.
        alike={**_ALIKE, "train_examples": 128, "model": "cnn"},
        steps=(
            Alone("vgg11", "block+ends", "float32", 32),
            Alone("tiny-llama", "block", "float32", 4, 128),
        ),
        memory=(
            Alone("tiny-llama", "block", "int8", 4, 64),
            Alone("vgg11", "block", "float32", 8),
            Alone("vgg11", "full", "", 8),
        ),
        large=(
            Alone("tiny-llama", "lora:16", "nf4", 2, 128),
            Alone("tiny-llama", "block", "int8", 2, 128),
        ),
        repeats=3,
        figure="smoke",
        held=False,
    ),
    # For tests: whether everything runs.
    "test": Sizes(
        products=(QuantShape("plain", 16, 128, 256, 4),),
        losses=(XentShape("odd sizes", 7, 24, 37),),
        timed_products=(QuantShape("plain", 16, 128, 256),),
        timed_losses=(XentShape("plain", 8, 64, 32),),
        network=Network("cnn", batch=4, side=8, width=0.5),
        images={
            **_IMAGES,
            **{"model": "mlp", "width": 0.25, "layers_per_visit": 1, "cycles": 4},
        },
        text={**_TEXT, "max_length": 48, "cycles": 1, "nodes": 2},
        alike={**_ALIKE, "train_examples": 64, "model": "mlp", "width": 0.25, "nodes": 2},
        steps=(Alone("mlp", "block+ends", "float32", 4),),
        memory=(
            Alone("mlp", "block", "float32", 4),
            Alone("tiny-llama", "block", "int8", 2, 16),
        ),
        large=(Alone("tiny-llama", "lora:4", "nf4", 1, 16),),
        repeats=1,
        figure="smoke",
        held=False,
    ),
}
