"""Setups of runs that have no data: methods, plans and layers as a run has them.

Enough for what follows from shapes alone.
"""

import jax.numpy as jnp

from snake_jax.algorithms.base import Algorithm
from snake_jax.algorithms.chain import ON_NODE, Segment
from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.algorithms.schedule import Plan
from snake_jax.config import ImageConfig, RunConfig, TextConfig, pick
from snake_jax.data.images import dataset
from snake_jax.models import registry
from snake_jax.models.language import LanguageModel
from snake_jax.models.layered import LayeredModel, resolve_layers
from snake_jax.nodes.fleet import of_config
from snake_jax.runs import image_task, text_task
from snake_jax.runs.setup import Setup, check_fit, make_rule
from snake_jax.train.image_step import Distillation, LocalStep
from snake_jax.train.split import AUXILIARY
from snake_jax.train.text_step import own_items

CLASSES = 10
"""Of the auxiliary head, which the papers train on data sets of ten."""

MEAN, STD = (0.5,) * 3, (0.25,) * 3
"""Images are normalised by some numbers; which does not change what a step takes."""


def distilled(config: RunConfig, algorithm: Algorithm) -> bool:
    """Whether visits distill; `auto` asks the data, of which there is none."""
    return config.distill == "on" and "distill" in algorithm.flags


def of_images(config: ImageConfig, model: LayeredModel) -> Setup:
    """The setup of `image_task` for a network.

    Raises:
      UserError: flags that the method has no use for, or cuts and layers that the model has not.
    """
    algorithm = ALGORITHMS[pick("algorithm", config.algorithm, ALGORITHMS)]
    check_fit(config, algorithm)
    always = resolve_layers("always_train", config.always_train, model.layer_names)
    plan = Plan(config, model.layer_names, always)
    auxiliary = (registry.linear_head(AUXILIARY, CLASSES),) if algorithm.local_losses else ()
    return Setup(
        task=image_task.TASK,
        config=config,
        algorithm=algorithm,
        dataset=None,
        quality="",
        shards=(),
        divergence=0.0,
        distilled=distilled(config, algorithm),
        model=model,
        plan=plan,
        chain=algorithm.chain(plan),
        auxiliary=auxiliary,
        fleet=of_config(config),
    )


def of_text(config: TextConfig, model: LanguageModel) -> Setup:
    """The setup of `text_task` for a language model.

    Raises:
      UserError: flags that the method has no use for.
    """
    algorithm = ALGORITHMS[config.algorithm]
    check_fit(config, algorithm)
    return Setup(
        task=text_task.TASK,
        config=config,
        algorithm=algorithm,
        dataset=None,
        quality="",
        shards=(),
        divergence=0.0,
        distilled=distilled(config, algorithm),
        model=model,
        plan=Plan(config, *text_task.trainable(config, model)),
        chain=(Segment(ON_NODE, 0, len(model.layer_names)),),
        auxiliary=(),
        fleet=of_config(config),
        adapters=own_items(model, True) if config.lora_rank else (),
    )


def image_step(config: ImageConfig, model: LayeredModel, distilled: bool) -> LocalStep:
    """The step of a configuration on images of any data set, on one node and without augmentation.

    Args:
      config: of a run.
      model: the network.
      distilled: whether there is a teacher.
    """
    teacher = Distillation(config.distill_temperature, config.distill_weight)
    return LocalStep(
        model=model,
        rule=make_rule(config),
        clip_norm=config.clip_norm,
        normalise=lambda images: dataset.normalise(images, MEAN, STD),
        distillation=teacher if distilled else None,
        compute_dtype=jnp.dtype(config.compute_dtype),
    )
