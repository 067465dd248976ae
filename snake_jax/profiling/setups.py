"""Setups of runs that have no data: methods, plans and layers as a run has them, for what follows
from shapes alone.
"""

from snake_jax.algorithms.chain import ON_NODE, Segment
from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.algorithms.schedule import Plan
from snake_jax.config import ImageConfig, TextConfig, pick
from snake_jax.models import registry
from snake_jax.models.language import LanguageModel
from snake_jax.models.layered import LayeredModel, resolve_layers
from snake_jax.nodes.fleet import of_config
from snake_jax.runs import image_task, text_task
from snake_jax.runs.setup import Setup, check_fit
from snake_jax.train.split import AUXILIARY
from snake_jax.train.text_step import ADAPTERS, ENDS, own_items

CLASSES = 10
"""Of the auxiliary head, which the papers train on data sets of ten."""


def of_images(config: ImageConfig, model: LayeredModel) -> Setup:
    """The setup of `classification` for a network.

    Raises:
      UserError: flags that the method has no use for, or cuts and layers that the model has not.
    """
    algorithm = ALGORITHMS[pick("algorithm", config.algorithm, ALGORITHMS)]
    check_fit(config, algorithm)
    plan = Plan(
        config,
        model.layer_names,
        resolve_layers("always_train", config.always_train, model.layer_names),
    )
    auxiliary = (registry.linear_head(AUXILIARY, CLASSES),) if algorithm.local_losses else ()
    distilled = config.distill == "on"
    fleet = of_config(config)
    task, chain = image_task.TASK, algorithm.chain(plan)
    return Setup(
        task, config, algorithm, None, "", (), 0.0, distilled, model, plan, chain, auxiliary, fleet
    )


def of_text(config: TextConfig, model: LanguageModel) -> Setup:
    """The setup of `tuning` for a language model; all that may train is in the plan.

    Raises:
      UserError: flags that the method has no use for.
    """
    algorithm = ALGORITHMS[config.algorithm]
    check_fit(config, algorithm)
    adapted = config.lora_rank > 0
    every_end = config.algorithm != "snake" and not adapted
    always = (
        ENDS
        if every_end
        else resolve_layers("always_train", config.always_train, model.layer_names)
    )
    order = tuple(n for name in model.layer_names for n in _trainable(name, always, adapted))
    plan = Plan(config, order, always if config.algorithm == "snake" else ())
    chain = (Segment(ON_NODE, 0, len(model.layer_names)),)
    adapters = own_items(model, True) if adapted else ()
    distilled, fleet = config.distill == "on", of_config(config)
    return Setup(
        text_task.TASK,
        config,
        algorithm,
        None,
        "",
        (),
        0.0,
        distilled,
        model,
        plan,
        chain,
        (),
        fleet,
        adapters,
    )


def _trainable(name: str, ends: tuple[str, ...], adapted: bool) -> tuple[str, ...]:
    if name in ENDS:
        return (name,) if name in ends else ()
    return (name + ADAPTERS * adapted,)
