"""The frozen configuration of a run: one table of names, defaults, meanings and allowed values.

Launches make their flags from it, runs write it to `config.json`, and everything below receives
values from it as explicit arguments. `RunConfig` is what all runs share; `ImageConfig` adds images,
`TextConfig` language models.
"""

import dataclasses
import math

from snake_jax import config_parts as parts
from snake_jax.errors import UserError
from snake_jax.field_rules import LARGEST, check_value, option
from snake_jax.field_rules import pick as pick


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(
    parts.PrivacyConfig,
    parts.NodeConfig,
    parts.MethodConfig,
    parts.DistillConfig,
    parts.QualityConfig,
    parts.StopConfig,
    parts.LinkConfig,
    parts.TrainingConfig,
):
    """What every run has, whatever it trains: method, nodes, schedule, update rule, faults."""

    algorithm: str = option("snake", "what trains the model: {algorithms}")
    nodes: int = option(9, "nodes that hold data", low=1)

    # How much is trained, and in which order.
    cycles: int = option(2, "cycles; one trains every middle layer once (fedavg: one round)", low=1)
    local_epochs: int = option(1, "passes over the node's data in a visit", low=1)
    batch_size: int = option(32, "examples in a step", low=1)
    order: str = option(
        "sequential", "order of the middle layers", choices=("sequential", "random", "reverse")
    )
    layers_per_visit: int = option(
        1, "consecutive middle layers that a node takes in a visit", low=1
    )

    # How layers travel.
    mode: str = option(
        "client_server",
        "updates go through a server or on to the next node",
        choices=("client_server", "peer_to_peer"),
    )
    cached: bool = option(
        True, "receivers keep what they were sent, so that only changed layers travel"
    )

    # The update rule, and its learning rate from cycle to cycle.
    optimizer: str = option("sgd", "update rule", choices=("sgd", "adam", "adamw", "rmsprop"))
    learning_rate: float = option(0.02, "learning rate of the first cycle", above=0)
    lr_schedule: str = option(
        "factor",
        "change of the learning rate between cycles, or along a cosine over all visits "
        "(cosine_visits)",
        choices=("factor", "cosine", "cosine_visits", "constant"),
    )
    lr_decay: float = option(0.9, "lr_schedule=factor: multiplied in after every cycle", above=0)
    momentum: float = option(0.9, "momentum of sgd and rmsprop", low=0, high=1)
    weight_decay: float = option(0.0, "decay of the trained layers' kernels", low=0)
    clip_norm: float = option(
        1.0, "clip the norm of the trained layers' gradients; 0: no clipping", low=0
    )
    carry_optimizer_state: bool = option(
        False, "send a layer's optimizer state along with it instead of a fresh one"
    )

    # In which numbers a node stores and computes.
    frozen_dtype: str = option(
        "float32", "storage of frozen layers at a node", choices=("float32", "bfloat16", "int8")
    )
    compute_dtype: str = option(
        "float32", "arithmetic of the network", choices=("float32", "bfloat16")
    )
    accumulate: int = option(1, "parts of batch_size whose gradients make one step", low=1)

    # What ends a visit before its time, and who goes on.
    early_stop: float = option(
        0.0, "end a visit when an epoch lowers the loss by less than this share; 0: off", low=0
    )
    interrupt: str = option(
        "", "visits to interrupt, as VISIT or VISIT@SHARE, comma-separated: 4,7@0.25"
    )
    fault_rate: float = option(0.0, "chance that a visit is interrupted (seeded)", low=0, high=0.9)
    interruption: str = option(
        "upload",
        "upload: the node hands in what it has and an idle node goes on from there; lost: the "
        "idle node starts again",
        choices=("upload", "lost"),
    )

    # What nodes can do, and who takes a visit.
    node_file: str = option(
        "", "YAML or JSON of what each node computes, stores, sends, costs; empty: generated"
    )
    node_spread: float = option(
        0.0,
        "generated nodes: sigma of the lognormal spread of their figures; 0: all alike",
        low=0,
        high=3,
    )
    tidal: float = option(
        1.0, "generated nodes: share of the day each is free, off its own peak", above=0, high=1
    )
    assign: str = option(
        "serpentine",
        "which node takes a visit: the next in turn; load in proportion to capability; the "
        "optimum (milp); the hop of least time and energy (greedy); or a visit a node and cycle, "
        "of as many layers as it trains in the time of the others (segments)",
        choices=("serpentine", "proportional", "milp", "greedy", "segments"),
    )
    assign_objective: str = option(
        "makespan",
        "assign=milp minimises the busiest node's seconds in a cycle, all visits' seconds, or the "
        "cost of energy",
        choices=("makespan", "duration", "energy"),
    )

    parallel: int = option(
        1, "snake: nodes that train the same layers side by side; the server averages", low=1
    )
    shuffle_nodes: bool = option(
        False, "sequential: visit the nodes in a new random order every cycle"
    )

    # Settings of methods that cut the model.
    cut: str = option(
        "2", "split methods: the layers that stay at the node, as a number or the name of the last"
    )
    cloud_cut: str = option(
        "",
        "split methods: the server's last layer, or the number of those below the cloud, which has "
        "the rest (device, edge, cloud); empty: no cloud",
    )
    tail: int = option(
        0,
        "split methods: last layers kept at the node too, so that labels stay there (U-shape)",
        low=0,
    )
    splitfed_version: str = option(
        "v1",
        "splitfed: v1 averages the server's copies of its part, v2 trains one on the nodes in "
        "random order",
        choices=("v1", "v2"),
    )
    snake_length: int = option(3, "random_walking_snakes: nodes that the model lies over", low=1)

    executor: str = option(
        "loop",
        "nodes that train side by side are emulated one after the other (loop; in one call: scan), "
        "batched on one device (vmap) or spread over all devices (pmap, shard_map)",
        choices=("loop", "scan", "vmap", "pmap", "shard_map"),
    )

    eval_every: int = option(
        1, "evaluate on the test set after every this many visits or rounds", low=1
    )
    on_divergence: str = option(
        "stop",
        "a visit whose loss is not finite ends the run or is left out",
        choices=("stop", "skip"),
        may_change=True,
    )
    seed: int = option(
        0, "seed of initial weights, partition, order of batches and faults", low=0, high=2**32 - 1
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_value(field, getattr(self, field.name))
        # In logarithms, since the rate itself may overflow.
        log_growth = (self.cycles - 1) * math.log(self.lr_decay)
        log_last_rate = math.log(self.learning_rate) + log_growth
        if log_last_rate > math.log(LARGEST):
            raise UserError(
                f"--lr_decay={self.lr_decay}: the learning rate would grow beyond {LARGEST:g}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageConfig(RunConfig):
    """Everything that decides the result of a run on images.

    Equal configurations end bit-identical on one machine.
    """

    # The network's name, its data, and how that lies on the nodes.
    model: str = option("vgg11", "the network: {models}")
    dataset: str = option(
        "digits",
        "digits (bundled), cifar10 or tfds:NAME (tensorflow-datasets), or npz:PATH: a file with "
        "train_x, train_y, test_x, test_y, or a folder of train_*.npz and test_*.npz with x, y; "
        "images, labels or data, targets do for x, y, x_train for train_x, and x, y alone are a "
        "training part",
    )
    test_share: float = option(
        0.0,
        "share of the training examples held out to test on, drawn by the seed with the same share "
        "of each class, where the data has no test part; 0: such data is refused",
        low=0,
        high=0.5,
    )
    partition: str = option(
        "iid",
        "how the data lies: {partitions}, file:PATH (JSON) or drawn:LEAST-MOST (virtual nodes)",
    )
    alpha: float = option(2.0, "Dirichlet concentration; smaller is less alike", above=0)
    clean: str = option(
        "each_node",
        "who drops broken images, duplicates and outliers: each node of its own data, or one who "
        "sees all of it before it is laid out",
        choices=("each_node", "together"),
    )
    pixel_mean: str = option(
        "",
        "means of the channels to subtract, of pixels from 0 to 1, as 0,0,0 for none; empty: those "
        "of the training images",
    )
    pixel_std: str = option(
        "",
        "deviations of the channels to normalise by, as 0.2023,0.1994,0.2010; empty: those of the "
        "training images",
    )
    train_examples: int = option(
        0, "train on a seeded random part of so many examples, classes as they come; 0: all", low=0
    )
    validation: float = option(
        0.0,
        "share of the training examples held out and evaluated on in the place of the test set: "
        "for tuning",
        low=0,
        high=0.5,
    )
    always_train: str = option(
        "first,last", "layers trained at every visit: names, first, last, all or none"
    )

    # The network, and what it is shown.
    augment: str = option("none", "augmentation, new at every step: {augmentations}")
    width: float = option(1.0, "multiplier of the network's channel numbers", above=0)
    norm: str = option("none", "normalisation after convolutions", choices=("none", "group"))
    dropout: float = option(0.0, "dropout rate at the dense layers", low=0, high=0.95)
    init: str = option(
        "he",
        "initial weights: he (normal by fan-in) or torch (as PyTorch's VGG for CIFAR-10)",
        choices=("he", "torch"),
    )
    conv: str = option(
        "auto", "convolution: auto picks by platform", choices=("auto", "xla", "matmul")
    )

    visit_accuracy: float = option(
        0.0,
        "a visit ends with the epoch whose training accuracy is at least this; 0: off",
        low=0,
        high=1,
    )
    target_accuracy: float = option(0.6, "accuracy whose cost the summary reports", low=0, high=1)
    stop_accuracy: float = option(
        0.0, "the run ends once the test accuracy is at least this; 0: off", low=0, high=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(parts.TextTrainingConfig, RunConfig):
    """Everything that decides the result of fine-tuning a language model."""

    # The model, its text, and how that lies on the nodes.
    model: str = option(
        "tiny-llama", "a folder with config.json and weights, or untrained: {presets}"
    )
    data: str = option(
        "pydoc",
        "pydoc (ships with Python), a .jsonl, .json, .csv or .parquet of prompts and responses, "
        "messages or texts, a Hugging Face name; or several by comma",
    )
    skip_bad_rows: bool = option(
        False, "leave out rows of the data that cannot be read, and say how many"
    )
    tokenizer: str = option(
        "", "folder of the tokenizer; empty: the model's, or bytes where it has none"
    )
    template: str = option("auto", "how a pair becomes text: {templates}")
    template_date: str = option(
        "",
        "the day that chat templates with a date write, as 2026-01-31; empty: that of the run's "
        "first start",
    )
    allow_special_tokens: bool = option(
        False, "special tokens that the data's own text spells (</s>) become their ids; else text"
    )
    loss_on: str = option("completion", "tokens whose loss counts", choices=("completion", "all"))
    limit: int = option(0, "pairs taken of each source, drawn by the seed; 0: all", low=0)
    test_share: float = option(
        0.1, "share of the prompts held out, where a source has no test part", above=0, high=0.5
    )
    max_length: int = option(512, "tokens in a row; longer texts are cut", low=8)
    packing: bool = option(
        True, "several texts in a row, each attending to itself; else rows of a few lengths"
    )
    partition: str = option(
        "iid",
        "how the pairs lie on the nodes: shuffled, or a few sources or categories on each",
        choices=("iid", "by_category"),
    )
    clean: str = option(
        "each_node",
        "each node drops empty, repeated and non-text samples and outliers of its own data; none: "
        "what was read is trained on",
        choices=("each_node", "none"),
    )
    categories_per_node: int = option(
        1, "partition=by_category: how many a node has (1 or 2 in the paper)", low=1
    )

    # What trains, and what of the rest is kept.
    always_train: str = option(
        "none", "trained at every visit beside the blocks: embed, head, first, last or none"
    )
    lora_rank: int = option(
        -1,
        "rank of the adapters that train in the place of whole blocks; 0: whole blocks; -1: 128, "
        "or half the width of the narrowest of these layers where that is less",
        low=-1,
    )
    lora_scale: float = option(
        1.0, "factor of the adapters' product (alpha / rank elsewhere)", above=0
    )
    lora_pattern: str = option("all", "linear layers with adapters: all, or names as q_proj,v_proj")
    rank: str = option(
        "", "rank of each node as 8,16,128, at most lora_rank, or capability; empty: lora_rank"
    )
    dropout: float = option(
        0.0, "dropout rate after attention and feed-forward layers", low=0, high=0.95
    )
    recompute: str = option(
        "block",
        "what the backward pass keeps of a block: its input, or all that it reads",
        choices=("block", "none"),
    )
    cache_prefix: str = option(
        "off",
        "compute the frozen blocks below the trained one once for each local example and keep the "
        "result",
        choices=("off", "host", "device"),
    )
    mesh: str = option(
        "",
        "devices that a node's model lies over, as fsdp:4,tensor:2: fsdp divides rows and stored "
        "weights, tensor heads and inner features; empty: one device",
        may_change=True,
    )

    # Settings of every run, with defaults and values for language models.
    batch_size: int = option(6, "rows passed at a time", low=1)
    cycles: int = option(1, "cycles; one trains every block once (fedavg: one round)", low=1)
    nodes: int = option(4, "nodes that hold data", low=1)
    optimizer: str = option("adamw", "update rule", choices=("sgd", "adam", "adamw", "rmsprop"))
    learning_rate: float = option(1e-4, "learning rate of the first cycle", above=0)
    momentum: float = option(0.0, "momentum of sgd and rmsprop", low=0, high=1)
    distill: str = option(
        "off",
        "distillation from the model as received; auto: on where the nodes' categories diverge "
        "beyond chance, or their ranks differ",
        choices=("off", "on", "auto"),
    )
    frozen_dtype: str = option(
        "int8",
        "storage of what does not train at a node",
        choices=("float32", "bfloat16", "int8", "nf4"),
    )
    frozen_matmul: str = option(
        "dequantize",
        "products with frozen int8 or nf4 matrices: dequantized first, or fused: by a kernel for "
        "TPUs that reads codes where they lie (elsewhere as dequantize)",
        choices=("dequantize", "fused"),
    )
    compute_dtype: str = option(
        "auto",
        "arithmetic of the network; auto: bfloat16 on accelerators, float32 on CPUs",
        choices=("auto", "float32", "bfloat16"),
    )
    target_perplexity: float = option(
        0.0, "perplexity whose cost the summary reports; 0: none", low=0
    )
    visit_perplexity: float = option(
        0.0,
        "a visit ends with the epoch whose training perplexity is at most this; 0: off",
        low=0,
    )
    stop_perplexity: float = option(
        0.0, "the run ends once the held-out perplexity is at most this; 0: off", low=0
    )
