"""Node data: sources, quality, partitions over nodes, divergence of their labels, augmentation on the device."""

from snake_jax.data.augment import AUGMENTATIONS, augment, crop_flip, flip
from snake_jax.data.divergence import MEASURES, jensen_shannon_distance, kullback_leibler, label_divergence
from snake_jax.data.partition import (
    PARTITIONS,
    class_priors,
    describe,
    dirichlet_prior,
    dirichlet_split,
    from_file,
    iid,
    label_counts,
    partition,
)
from snake_jax.data.quality import QualityReport, clean
from snake_jax.data.sources import SOURCES, Dataset, Split, load, normalise
from snake_jax.data.subset import subset

__all__ = [
    "AUGMENTATIONS",
    "MEASURES",
    "PARTITIONS",
    "SOURCES",
    "Dataset",
    "QualityReport",
    "Split",
    "augment",
    "class_priors",
    "clean",
    "crop_flip",
    "describe",
    "dirichlet_prior",
    "dirichlet_split",
    "flip",
    "from_file",
    "iid",
    "jensen_shannon_distance",
    "kullback_leibler",
    "label_counts",
    "label_divergence",
    "load",
    "normalise",
    "partition",
    "subset",
]
