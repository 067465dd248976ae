"""Layered models: order, slices, selection, and Flax models that join through the adapter."""

import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from snake_jax.errors import UserError
from snake_jax.models import adapter, registry
from snake_jax.models.layered import resolve_layers
from snake_jax.params import layer_mask, num_bytes, num_params, select, without
from tests.helpers import same_bits, small_model
from tests.sweeps import sweep


def test_vgg11_has_the_published_number_of_parameters_in_eleven_layers():
    model = registry.build("vgg11", 10, (32, 32, 3))
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert num_params(params) == 9_750_922
    assert model.layer_names == (*[f"conv{i}" for i in range(1, 9)], "fc9", "fc10", "fc11")
    assert set(params) == set(model.layer_names)


def test_lenet_has_the_published_sizes_and_ends_at_the_least_image():
    model = registry.build("lenet", 10, (32, 32, 3))
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert num_params(params) == 62_006
    assert params["fc3"]["Dense_0"]["kernel"].shape == (16 * 5 * 5, 120)
    least = registry.build("lenet", 10, (16, 16, 3))
    assert jax.eval_shape(least.init, jax.random.key(0))["fc3"]["Dense_0"]["kernel"].shape[0] == 16
    with pytest.raises(UserError, match="lenet needs images of at least 16x16"):
        registry.build("lenet", 10, (15, 16, 3))


@pytest.mark.parametrize(("name", "parameters"), [("2nn", 199_210), ("fedavg_cnn", 1_663_370)])
def test_the_networks_of_fedavg_have_the_published_number_of_parameters(name, parameters):
    model = registry.build(name, 10, (28, 28, 1))
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert num_params(params) == parameters


def test_lenet_starts_as_layers_of_pytorch_do():
    params = registry.build("lenet", 10, (32, 32, 3), init="torch").init(jax.random.key(0))
    fan_in = {"conv1": 75, "conv2": 150, "fc3": 400, "fc4": 120, "fc5": 84}
    for name, inputs in fan_in.items():
        (layer,) = params[name].values()
        bound = inputs**-0.5
        for array in layer.values():
            # Uniform between the bounds, biases too.
            assert abs(array).max() <= bound
            assert abs(array).max() > 0.5 * bound
        assert abs(layer["kernel"].std() / bound - 3**-0.5) < 0.05


@pytest.mark.parametrize(
    "options", [{"norm": "group"}, {"width": 0.25}, {"width": 0.1, "norm": "group"}]
)
def test_vgg11_options_change_the_layers_as_said(options):
    shapes = jax.eval_shape(
        registry.build("vgg11", 10, (32, 32, 3), **options).init, jax.random.key(0)
    )
    assert shapes["conv8"]["Conv_0"]["kernel"].shape[-1] == round(512 * options.get("width", 1))
    assert ("GroupNorm_0" in shapes["conv1"]) == ("norm" in options)
    assert shapes["fc11"]["Dense_0"]["kernel"].shape[-1] == 10


@pytest.mark.parametrize("name", ["cnn", "mlp"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_every_cut_composes_to_the_whole(name, dropout):
    model, params = small_model(name, dropout=dropout)
    x = jax.random.normal(jax.random.key(2), (3, 8, 8, 3))
    key = jax.random.key(3)
    whole = model.apply(params, x, train=True, key=key)
    for cut in range(len(model.layers) + 1):
        below = model.apply(params, x, 0, cut, train=True, key=key)
        assert same_bits(model.apply(params, below, cut, None, train=True, key=key), whole)


def test_dropout_acts_in_training_only_and_follows_the_key():
    model, params = small_model("mlp", dropout=0.5)
    x = jax.random.normal(jax.random.key(2), (3, 8, 8, 3))
    calm = model.apply(params, x)
    one, other = (model.apply(params, x, train=True, key=jax.random.key(k)) for k in (0, 1))
    assert model.stochastic
    assert same_bits(calm, model.apply(params, x))
    assert not np.allclose(one, calm)
    assert not np.allclose(one, other)


def test_select_and_without_part_the_parameters():
    _, params = small_model()
    assert select(params, ("conv2",)).keys() | without(params, ("conv2",)).keys() == params.keys()
    assert not select(params, ("conv2",)).keys() & without(params, ("conv2",)).keys()
    assert layer_mask(("a", "b", "c"), ("b",)) == {"a": False, "b": True, "c": False}


def test_layer_names_from_flags():
    names = ("conv1", "conv2", "fc3")
    assert resolve_layers("always_train", "first,last", names) == ("conv1", "fc3")
    assert resolve_layers("always_train", "fc3, conv2", names) == ("conv2", "fc3")
    assert resolve_layers("always_train", "none", names) == ()
    assert resolve_layers("always_train", "all", names) == names
    with pytest.raises(UserError, match="no layer conv9; say none, or of conv1, conv2, fc3"):
        resolve_layers("always_train", "conv9", names)
    with pytest.raises(UserError, match="no layer without a name; say none"):
        resolve_layers("always_train", "", names)


def test_bytes_count_every_stored_array():
    assert (
        num_bytes({"a": jnp.zeros((2, 3), jnp.int8), "b": {"c": jnp.zeros(5, jnp.float32)}}) == 26
    )


def test_small_images_are_refused_by_name():
    with pytest.raises(UserError, match="--model=vgg11 needs images of at least 32x32"):
        registry.build("vgg11", 10, (28, 28, 1))


class _Block(nnx.Module):
    def __init__(self, features_in, features_out, rngs):
        self.linear = nnx.Linear(features_in, features_out, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.dropout(self.linear(x)))


def test_an_nnx_model_joins_with_dropout_and_gradients():
    stages = [("a", lambda r: _Block(6, 8, r)), ("b", lambda r: nnx.Linear(8, 3, rngs=r))]
    model = adapter.from_nnx("mine", stages, (6,))
    params = model.init(jax.random.key(0))
    x = jnp.ones((5, 6))
    run = jax.jit(lambda p, k: model.apply(p, x, train=True, key=k))
    assert model.stochastic
    assert params["a"]["linear"]["kernel"].shape == (6, 8)
    assert not np.allclose(run(params, jax.random.key(1)), run(params, jax.random.key(2)))
    np.testing.assert_allclose(
        model.apply(params, x, 0, 1),
        nnx.relu(x @ params["a"]["linear"]["kernel"] + params["a"]["linear"]["bias"]),
    )
    assert jax.grad(lambda p: model.apply(p, x).sum())(params)["b"]["bias"].shape == (3,)


def test_running_statistics_are_refused():
    with pytest.raises(UserError, match="layer norm keeps state besides its parameters"):
        adapter.from_nnx("mine", [("norm", lambda r: nnx.BatchNorm(3, rngs=r))], (3,))
    model = adapter.from_linen("mine", [("norm", nn.BatchNorm(use_running_average=True))], (3,))
    with pytest.raises(UserError, match="batch_stats"):
        model.init(jax.random.key(0))


def test_layer_names_must_differ():
    with pytest.raises(UserError, match="layer names must differ, got a, a"):
        adapter.from_linen("mine", [("a", nn.Dense(3)), ("a", nn.Dense(3))], (3,))


@pytest.mark.parametrize("name", sweep(registry.MODELS, quick=["cnn"]))
def test_every_registered_network_survives_pickling(name):
    model = registry.build(name, 10, (32, 32, 3), width=0.1, norm="group", dropout=0.5)
    travelled = pickle.loads(pickle.dumps(model))
    params = model.init(jax.random.key(0))
    assert same_bits(travelled.init(jax.random.key(0)), params)
    x = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    key = jax.random.key(2)
    drawn = travelled.apply(params, x, train=True, key=key)
    assert same_bits(drawn, model.apply(params, x, train=True, key=key))


def _nnx_stage(rngs):
    return nnx.Linear(4, 3, rngs=rngs)


def test_an_nnx_model_survives_pickling_where_its_factories_do():
    model = adapter.from_nnx("one", [("fc", _nnx_stage)], (4,))
    travelled = pickle.loads(pickle.dumps(model))
    params = model.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 4))
    assert same_bits(travelled.init(jax.random.key(0)), params)
    assert same_bits(travelled.apply(params, x), model.apply(params, x))
    local = adapter.from_nnx("local", [("fc", lambda rngs: nnx.Linear(4, 3, rngs=rngs))], (4,))
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(local)
