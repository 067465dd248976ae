"""Networks for images by name.

Those that come with the package, and functions of the user's own as `MODULE:FUNCTION`.
"""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

import flax.linen as nn

from snake_jax.config import ImageConfig
from snake_jax.errors import UserError
from snake_jax.models.adapter import from_linen, from_nnx, linen_layer
from snake_jax.models.layered import Layer, LayeredModel
from snake_jax.models.vision import DenseLayer, cnn, fedavg_cnn, lenet, mlp, two_nn, vgg11

MODELS: dict[str, Callable[..., LayeredModel]] = {
    "vgg11": vgg11,
    "cnn": cnn,
    "lenet": lenet,
    "mlp": mlp,
    "2nn": two_nn,
    "fedavg_cnn": fedavg_cnn,
}

# So that a pixel is left after all poolings; lenet's convolutions take four off as well.
_LEAST_SIDE = {"vgg11": 32, "cnn": 8, "lenet": 16, "fedavg_cnn": 4}


def find(name: str) -> Callable[..., object]:
    """What makes the network of that name.

    Args:
      name: one of `MODELS`, or `MODULE:FUNCTION`. The module is looked for in the current folder
        too, as with `python -m`.

    Raises:
      UserError: there is no such network, module or function.
    """
    if name in MODELS:
        return MODELS[name]
    if not is_own(name):
        raise UserError(
            f"--model={name}: not one of {', '.join(MODELS)}; a network of yours is MODULE:FUNCTION"
        )

    # The user's own.
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name.isidentifier():
        raise UserError(f"--model={name}: want MODULE:FUNCTION, as package.module:function")
    module = _import(name, module_name)
    make = getattr(module, function_name, None)
    if not callable(make):
        raise UserError(
            f"--model={name}: {module_name} has no function {function_name}; it has "
            f"{', '.join(_functions(module)) or 'none'}"
        )
    return make


def is_own(name: str) -> bool:
    """Whether a name means a function of the user's."""
    return ":" in name


def build(
    name: str, num_classes: int, input_shape: tuple[int, ...], **options: object
) -> LayeredModel:
    """The named network for these images.

    Args:
      name: see `find`. A function of the user's is called as
        `function(num_classes, input_shape, **options)` and gives a `LayeredModel`, or the stages
        that `adapter.from_linen` or `adapter.from_nnx` takes.
      num_classes: number of labels.
      input_shape: `(H, W, C)`.
      **options: width, norm, dropout, conv, init.

    Raises:
      UserError: no such network, images too small for it, or a function that is none of a network.
    """
    make = find(name)
    if is_own(name):
        # Bound before it is called: so that a TypeError of its own keeps its traceback.
        taken = _taken(name, make, options)
        try:
            inspect.signature(make).bind(num_classes, input_shape, **taken)
        except TypeError as error:
            raise UserError(
                f"--model={name}: it is called with (num_classes, input_shape, **options): {error}"
            ) from error
        made = make(num_classes, input_shape, **taken)
        return _layered(name, made, input_shape)
    side = _LEAST_SIDE.get(name, 1)
    if min(input_shape[:2]) < side:
        raise UserError(
            f"--model={name} needs images of at least {side}x{side}, these are {input_shape}"
        )
    return MODELS[name](num_classes, input_shape, **options)


def linear_head(name: str, num_classes: int) -> Layer:
    """A linear classifier on flattened activations `[B, ...]`, as one layer."""
    return linen_layer(name, DenseLayer(num_classes, relu=False))


def _import(name: str, module: str) -> ModuleType:
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        # An installed program finds no modules in the current folder by itself.
        sys.path.insert(0, folder)
    # A file written since Python last looked into the folder is found as well.
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if module == missing or module.startswith(f"{missing}."):
            raise UserError(
                f"--model={name}: there is no module {missing}, neither installed nor in {folder}"
            ) from error
        raise UserError(f"--model={name}: {module} needs {missing}, which is not there") from error


def _functions(module: ModuleType) -> list[str]:
    """The public functions that a module defines itself."""
    found = []
    for name, value in vars(module).items():
        own = getattr(value, "__module__", None) == module.__name__
        if inspect.isfunction(value) and own and not name.startswith("_"):
            found.append(name)
    return found


def _taken(
    name: str, make: Callable[..., object], options: Mapping[str, object]
) -> dict[str, object]:
    """The options that a function takes; one that was asked for and is not taken is refused."""
    parameters = inspect.signature(make).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        return dict(options)
    defaults = {key: field.default for key, field in ImageConfig.__dataclass_fields__.items()}
    taken = {}
    for key, value in options.items():
        if key in parameters:
            taken[key] = value
        elif value != defaults[key]:
            raise UserError(f"--{key}={value}: {name} takes no {key}; leave it out")
    return taken


def _layered(name: str, made: object, input_shape: tuple[int, ...]) -> LayeredModel:
    """What a function of the user's gave, as a layered model."""
    if isinstance(made, LayeredModel):
        if tuple(made.input_shape) != tuple(input_shape):
            raise UserError(
                f"--model={name}: it is for examples of {made.input_shape}, the data's are "
                f"{input_shape}"
            )
        return made
    stages = made if isinstance(made, Sequence) and not isinstance(made, str) else ()
    pairs = [stage for stage in stages if isinstance(stage, tuple) and len(stage) == 2]
    if stages and len(pairs) == len(stages):
        if all(isinstance(stage, nn.Module) for _, stage in pairs):
            # Whether one draws random numbers is not seen from outside, so all are given keys.
            return from_linen(name, pairs, input_shape, stochastic=True)
        if all(callable(stage) and not isinstance(stage, nn.Module) for _, stage in pairs):
            return from_nnx(name, pairs, input_shape)
    raise UserError(
        f"--model={name}: it gives a {type(made).__name__}; want a LayeredModel, or a list of "
        f"(name, module): Linen modules, or functions from nnx.Rngs to NNX modules"
    )
