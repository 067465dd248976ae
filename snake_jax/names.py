"""What there is to choose from, by name, for help texts.

A command's `--help` must not wait for jax, which the registries themselves import. A test compares
each of these with its registry.
"""

# The list of methods: snake_jax.algorithms.registry imports each from the module of its name.
ALGORITHMS = (
    "snake",
    "fedavg",
    "fedprox",
    "scaffold",
    "fednova",
    "fedpart",
    "progressive",
    "badam",
    "lisa",
    "hift",
    "sequential",
    "centralised",
    "split",
    "splitfed",
    "accelerated_fl",
    "random_walking_snakes",
)
# snake_jax.models.registry.MODELS
IMAGE_MODELS = ("vgg11", "cnn", "lenet", "mlp", "2nn", "fedavg_cnn")
# snake_jax.models.presets.PRESETS
LANGUAGE_MODELS = (
    "opt-125m",
    "opt-350m",
    "opt-1.3b",
    "opt-2.7b",
    "opt-6.7b",
    "llama-3-8b",
    "llama-3.2-1b",
    "llama-3.2-3b",
    "qwen3-0.6b",
    "qwen3-4b",
    "gemma-3-1b",
    "mistral-7b",
    "phi-3-mini",
    "gpt2",
    "smollm2-135m",
    "tiny-llama",
    "tiny-opt",
    "tiny-qwen3",
    "tiny-gemma3",
)
# snake_jax.data.partition.PARTITIONS
PARTITIONS = ("iid", "dirichlet", "dirichlet_split", "dirichlet_capped", "pathological")
# snake_jax.data.images.augmentation.AUGMENTATIONS
AUGMENTATIONS = ("none", "crop_flip", "crop_flip_reflect", "flip")
# snake_jax.data.text.templates.TEMPLATES
TEMPLATES = ("auto", "plain", "alpaca", "chat")
# snake_jax.report.table.FORMATS and snake_jax.profiling.output.FORMATS
TABLE_FORMATS = ("text", "markdown", "json")
PROFILE_FORMATS = ("table", "json", "csv", "markdown")
# snake_jax.scct.small.SOLVERS, snake_jax.scct.large.METHODS; snake_jax.cli.scct_figures
SCCT_SOLVERS = ("exact", "paper", "equal", "brute")
SCCT_SPLITS = ("alns", "enumerate", "branch", "descent")
SCCT_FIGURES = ("6", "7", "9", "map")
SCCT_SCALES = ("smoke", "cpu")
# snake_jax.scct.system: what trains where, and whose clock runs
SCCT_ARMS = ("scct", "scct_shared", "cloudo", "cloudo_all", "small")
SCCT_MECHANISMS = ("scctt", "scctl", "sccts", "cloudo", "device")
