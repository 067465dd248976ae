"""Costs of fine-tuning: FLOPs against the compiler's count, bytes against counts by hand, memory of
compiled steps.
"""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from snake_jax.algorithms.visits import Passed
from snake_jax.costs import compiled
from snake_jax.costs.flops import passed_flops, step_parts
from snake_jax.costs.layers import batch_costs, block_flops, products, row_costs
from snake_jax.costs.memory import state_bytes
from snake_jax.costs.shapes import BatchShape, step_program
from snake_jax.costs.traffic import transfer_sizes
from snake_jax.models import lora
from snake_jax.models.language import Hidden
from snake_jax.models.presets import from_preset
from snake_jax.params import num_bytes, without
from snake_jax.training import quantization, stack
from snake_jax.training.image_step import Distillation
from snake_jax.training.optimizers import init_states, update_rule
from snake_jax.training.text_step import (
    ADAPTERS,
    ENDS,
    FrozenModel,
    LanguageStep,
    TextBatch,
    own_items,
    train_step,
)
from tests.sweeps import sweep

LENGTH, ROWS = 32, 2
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}  # code that is never run
SIZES = {  # wide enough that what is no matrix product is little
    "tiny-llama": {"hidden_size": 256, "intermediate_size": 640, "head_dim": 64},
    "tiny-opt": {"hidden_size": 256, "ffn_dim": 512},
}


def make(name, blocks=3, **changes):
    model = from_preset(name, num_hidden_layers=blocks, **SIZES[name])
    rule = update_rule("adamw", momentum=0.0, weight_decay=0.0)
    return LanguageStep(model, rule, **{"clip_norm": 0.0, **changes})


@functools.cache
def shapes(name, adapted, blocks=3):
    """Shapes of the model and, where adapted, of adapters of rank 8."""
    model = from_preset(name, num_hidden_layers=blocks, **SIZES[name])
    found = jax.eval_shape(model.init, jax.random.key(0))
    adapters = lambda block: lora.init(jax.random.key(0), block, lora.Lora(8))  # noqa: E731
    blocks = own_items(model, False) if adapted else ()
    return found | {item + ADAPTERS: jax.eval_shape(adapters, found[item]) for item in blocks}


def run_again(function):
    """`function(weights, values)`, of which nothing is kept. The argument `one` is 1, which no
    compiler knows: it takes what is computed again for something else than what was computed
    before.
    """

    @jax.custom_vjp
    def kept(weights, values, one):
        return function(weights, values)

    def backward(saved, gradient):
        weights, values, one = saved
        return *jax.vjp(function, weights, one * values)[1](gradient), one

    kept.defvjp(lambda *args: (function(*args[:2]), args), backward)
    return kept


def unrolled_flops(step, trained, given=0):
    """The compiler's count for the gradient of a batch, by plain autodiff without loops."""
    model, every = step.model, shapes(step.model.name, step.adapted)
    trainable, frozen = {name: every[name] for name in trained}, without(every, trained)
    names = own_items(model, False)
    first = (
        0
        if "embed" in trained
        else min(own_items(model, step.adapted).index(n) for n in trained if n not in ENDS)
    )
    context = (jnp.broadcast_to(jnp.arange(LENGTH), (ROWS, LENGTH)), None)

    def block(weights, values):
        return model.block(*weights, Hidden(values, *context)).values

    def nll(table, hidden):
        logits = jnp.einsum("bte,ve->btv", hidden, table)
        return optax.softmax_cross_entropy_with_integer_labels(logits, context[0]).sum()

    def loss(trainable, frozen, ids, values, one):
        params = frozen | trainable
        if not given:
            values = model.embed(params["embed"], model.tokens(ids), jnp.float32).values
        for place, name in enumerate(names[given:], given):
            weights = (params[name], params.get(name + ADAPTERS, {}))
            again = place >= first and step.recompute == "block"
            values = run_again(block)(weights, values, one) if again else block(weights, values)
        hidden = model.finish(params["head"], Hidden(values, *context))
        return run_again(nll)(model.table(params), hidden, one)

    values = jax.ShapeDtypeStruct((ROWS, LENGTH, model.architecture.hidden_size), jnp.float32)
    ids = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
    program = (
        jax.jit(jax.value_and_grad(loss)).lower(trainable, frozen, ids, values, 1.0).compile(QUICK)
    )
    return program.cost_analysis()["flops"]


def adapters_of(step):
    return lora.Lora(8) if step.adapted else None


def formula(step, trained, **passed):
    costs = row_costs(step.model, adapters_of(step), step.recompute, LENGTH)
    draws = {"teacher": step.distillation is not None, "stochastic": step.model.stochastic}
    return passed_flops(costs, trained, Passed(LENGTH, ROWS, **passed), **draws)


CASES = [
    *[(name, "block", (f"block_0{i}",)) for name in SIZES for i in range(3)],
    *[(name, "block", (f"block_0{i}.lora",)) for name in SIZES for i in range(3)],
    ("tiny-opt", "none", ("block_00",)),
    ("tiny-llama", "none", ("block_01",)),
    ("tiny-opt", "none", ("block_02.lora",)),
    ("tiny-llama", "block", ("embed", "block_01", "head")),
    ("tiny-opt", "none", ("embed", "block_00", "block_01", "block_02", "head")),
]


@pytest.mark.parametrize(
    ("name", "recompute", "trained"),
    sweep(CASES, quick=CASES[1::3]),
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else value,
)
def test_flops_are_within_two_percent_of_the_compilers(name, recompute, trained):
    step = make(name, recompute=recompute, adapted=any(item.endswith(ADAPTERS) for item in trained))
    assert formula(step, trained) == pytest.approx(unrolled_flops(step, trained), rel=0.02)


@pytest.mark.parametrize("recompute", ["block", "none"])
def test_parts_of_a_step_by_hand(recompute):
    step = make("tiny-llama", recompute=recompute)
    costs = batch_costs(step, BatchShape(ROWS, LENGTH))
    kernels = 256 * (256 + 2 * 128 + 256) + 3 * 256 * 640  # q, k and v, o; gate, up and down
    products, scores = 2 * LENGTH * kernels, 4 * LENGTH**2 * 256
    head = 2 * LENGTH * 256 * 264
    parts = step_parts(costs, step.model.layer_names)
    assert parts.forward == ROWS * (3 * (products + scores) + head)
    assert parts.input_gradients == ROWS * (3 * (products + 2 * scores) + head)
    assert parts.weight_gradients == ROWS * (3 * products + head)
    down = 2 * LENGTH * 256 * 640
    again = 3 * (products + scores - down) if recompute == "block" else 0
    assert parts.recomputed == ROWS * (again + head)
    assert parts.teacher == 0


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("name", SIZES)
def test_one_block_by_the_compiler_agrees_with_its_formula(name):
    """What `experiments.profile` prints as the compiler's count."""
    step = make(name)
    counted = compiled.counted_row_costs(step.model, None, step.recompute, LENGTH, jax.devices()[0])
    told = row_costs(step.model, None, step.recompute, LENGTH)
    every = own_items(step.model, False)
    for trained in [*((name,) for name in every), every]:
        flops = [passed_flops(costs, trained, Passed(LENGTH, ROWS)) for costs in (counted, told)]
        assert flops[0] == pytest.approx(flops[1], rel=0.02)


def linear_widths(model):
    """The sum of inputs and outputs of a block's linear layers."""
    adapters = jax.tree.leaves(shapes("tiny-llama", True)[own_items(model, True)[0]])
    return sum(max(leaf.shape) for leaf in adapters)


def test_a_node_of_smaller_rank_has_weight_gradients_of_its_columns_and_all_other_products():
    step = make("tiny-llama", recompute="none", adapted=True)
    whole, own = (row_costs(step.model, lora.Lora(8), "none", LENGTH, rank)[2] for rank in (0, 2))
    assert own.weight_gradient == 2 * LENGTH * 2 * linear_widths(step.model)
    assert whole.weight_gradient == 4 * own.weight_gradient
    assert own.params == 2 * linear_widths(step.model)
    assert (own.forward, own.input_gradient) == (whole.forward, whole.input_gradient)


@pytest.mark.usefixtures("quick_compilation")
def test_the_compiler_counts_a_smaller_ranks_block_as_the_formula_does():
    model, adapters, device = make("tiny-llama").model, lora.Lora(64), jax.devices()[0]
    (trained,) = own_items(model, True)[1:2]
    counted = compiled.counted_row_costs(model, adapters, "none", LENGTH, device, 2)
    own, whole = (row_costs(model, adapters, "none", LENGTH, rank) for rank in (2, 0))
    flops = [passed_flops(c, (trained,), Passed(LENGTH, ROWS)) for c in (counted, own, whole)]
    assert flops[0] == pytest.approx(flops[1], rel=0.02)
    assert flops[2] > 1.05 * flops[0]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("adapters", [None, lora.Lora(8), lora.Lora(8, pattern="q_proj")])
def test_what_is_computed_again_for_weights_is_the_same_where_nothing_is_gone_on_to(name, adapters):
    """So a layer's cost names it once."""
    kept, again = (
        block_flops(make(name).model, adapters, how, 16, products) for how in ("none", "block")
    )
    assert again.lowest - kept.lowest == again.trained - kept.trained > 0


def test_of_several_turns_of_a_loop_the_lowest_has_its_inputs_gradient_computed_too():
    step = make("tiny-llama", recompute="none")
    costs = row_costs(step.model, lora.Lora(8), step.recompute, LENGTH)
    block = costs[2]
    assert block.inner_gradient < block.input_gradient
    one, two = (step_parts(costs, names) for names in ([block.name], [block.name, costs[3].name]))
    assert two.input_gradients - one.input_gradients == block.input_gradient - block.inner_gradient


def test_what_is_given_is_not_computed_and_what_a_teacher_computes_is():
    step, trained = make("tiny-llama", recompute="none"), ("block_02",)
    whole, below = formula(step, trained), formula(step, trained, prefix=True)
    block = 2 * LENGTH * (256 * (256 + 2 * 128 + 256) + 3 * 256 * 640) + 4 * LENGTH**2 * 256
    assert below == ROWS * 2 * block
    assert formula(step, trained, given=True) == whole - below
    taught = step._replace(distillation=Distillation(2.0, 0.5))
    assert formula(taught, trained) - whole == ROWS * (block + 2 * (2 * LENGTH * 256 * 264))


# Bytes of a narrow Llama block by hand: kernels q and o [16, 16], k and v [16, 8], gate and up [16,
# 24], down [24, 16]
NARROW = from_preset(
    "tiny-llama",
    num_hidden_layers=3,
    hidden_size=16,
    intermediate_size=24,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)
KERNELS, COLUMNS, NORMS, VOCAB, WIDTH = 1920, 112, 32, 264, 16
BLOCK_BYTES = {
    "float32": 4 * (KERNELS + NORMS),
    "bfloat16": 2 * (KERNELS + NORMS),
    "int8": KERNELS + 4 * COLUMNS + 4 * NORMS,  # a scale for each column
    "nf4": KERNELS // 2
    + 4 * COLUMNS
    + 4 * NORMS,  # half a byte a value; a scale for each column of up to 64 values
}
TABLE_BYTES = {
    "float32": 4 * VOCAB * WIDTH,
    "bfloat16": 2 * VOCAB * WIDTH,
    "int8": VOCAB * WIDTH + 4 * VOCAB,  # a scale for each row
    "nf4": VOCAB * WIDTH // 2 + 4 * VOCAB,
}
HEAD_BYTES = dict.fromkeys(BLOCK_BYTES, 4 * WIDTH) | {"bfloat16": 2 * WIDTH}
ADAPTER_PARAMS = 4 * sum((32, 24, 24, 32, 40, 40, 40))  # rank 4: a and b of each kernel


def narrow(adapted):
    found = jax.eval_shape(NARROW.init, jax.random.key(0))
    one = jax.eval_shape(lambda: lora.init(jax.random.key(0), found["block_00"], lora.Lora(4)))
    return found, {item: one if adapted else found[item] for item in own_items(NARROW, adapted)}


@pytest.mark.parametrize("dtype", BLOCK_BYTES)
def test_bytes_that_travel_are_those_of_a_hand_count(dtype):
    found, own = narrow(False)
    sizes = transfer_sizes(own, dtype, base=without(found, own))
    assert sizes.full["block_01"] == BLOCK_BYTES["float32"]
    assert sizes.frozen["block_01"] == BLOCK_BYTES[dtype]
    assert (sizes.frozen["embed"], sizes.frozen["head"]) == (TABLE_BYTES[dtype], HEAD_BYTES[dtype])
    assert sizes.full["embed"] == sizes.frozen["embed"], "what never trains is only had as stored"
    found, own = narrow(True)
    sizes = transfer_sizes(own, dtype, base=found)
    assert sizes.full["block_01.lora"] == 4 * ADAPTER_PARAMS
    assert sizes.frozen["block_01.lora"] == (4 if dtype == "float32" else 2) * ADAPTER_PARAMS
    assert sizes.full["block_01"] == sizes.frozen["block_01"] == BLOCK_BYTES[dtype]


@pytest.mark.parametrize("dtype", BLOCK_BYTES)
@pytest.mark.parametrize("adapted", [False, True])
def test_bytes_of_a_nodes_state_are_those_of_a_hand_count(adapted, dtype):
    step = LanguageStep(
        NARROW, update_rule("adamw", momentum=0.0, weight_decay=0.0), 1.0, adapted=adapted
    )
    settings = lora.Lora(4) if adapted else None
    state = state_bytes(step, own_items(NARROW, adapted)[1:2], dtype, settings)
    params = ADAPTER_PARAMS if adapted else KERNELS + NORMS
    others = 2 * (4 if dtype == "float32" else 2) * ADAPTER_PARAMS if adapted else 0
    blocks = (3 if adapted else 2) * BLOCK_BYTES[dtype]
    assert state.frozen == TABLE_BYTES[dtype] + HEAD_BYTES[dtype] + blocks + others
    assert (state.trained, state.gradients, state.received) == (4 * params, 4 * params, 0)
    assert state.optimizer == 2 * 4 * params + 4  # two moments, and the number of steps
    assert state.total == sum(state)
    program = step_program(step, own_items(NARROW, adapted)[1:2], BatchShape(2, 8), dtype, settings)
    trainable, states, frozen, received = map(num_bytes, program.arguments[:4])
    place_of_the_block = 4
    assert (trainable, states, received) == (state.trained, state.optimizer, 0)
    assert frozen == state.frozen + place_of_the_block


@pytest.mark.parametrize("rank", [1, 3])
def test_a_node_of_smaller_rank_holds_its_columns_to_train_and_the_others_to_read(rank):
    step = LanguageStep(
        NARROW, update_rule("adamw", momentum=0.0, weight_decay=0.0), 1.0, adapted=True
    )
    trained, settings = own_items(NARROW, True)[1:2], lora.Lora(4)
    whole = state_bytes(step, trained, "int8", settings)
    state = state_bytes(step, trained, "int8", settings, rank=rank)
    own = 4 * rank * ADAPTER_PARAMS // 4
    assert (state.trained, state.gradients, state.optimizer) == (own, own, 2 * own + 4)
    assert state.frozen == whole.frozen + 4 * ADAPTER_PARAMS - own
    program = step_program(step, trained, BatchShape(2, 8), "int8", settings, rank)
    trainable, states, frozen, _ = map(num_bytes, program.arguments[:4])
    place_of_the_block = 4
    assert (trainable, states) == (state.trained, state.optimizer)
    assert frozen == state.frozen + place_of_the_block


# The compiled step


@pytest.mark.slow
def test_the_compiled_step_of_a_smaller_rank_reserves_less_by_what_it_does_not_train():
    step = make("tiny-llama", adapted=True)
    trained, settings = own_items(step.model, True)[1:2], lora.Lora(64)
    peaks, states = [], []
    for rank in (0, 2):
        program = step_program(step, trained, BatchShape(1, 16), "int8", settings, rank)
        built = jax.jit(program.function, donate_argnums=(0, 1)).lower(*program.arguments)
        memory = built.compile(QUICK).memory_analysis()
        peaks.append(memory.argument_size_in_bytes + memory.temp_size_in_bytes)
        state = state_bytes(step, trained, "int8", settings, rank=rank)
        states.append(state.total - state.gradients)
    # Gradients are temporaries, which take the place of others: they are left out here.
    assert peaks[0] - peaks[1] >= 0.9 * (states[0] - states[1]) > 0


def temporary_bytes(blocks, dtype, recompute="block"):
    """Of a step that trains the first of `blocks` blocks, as the compiler counts."""
    step = make("tiny-llama", blocks, recompute=recompute)
    items = own_items(step.model, False)

    def arguments():
        params = step.model.init(jax.random.key(0))
        freeze = functools.partial(quantization.freeze, dtype=dtype)
        trainable = {"block_0": params[items[0]]}
        own = stack.stack_trees([freeze(params[item]) for item in items[1:]])
        frozen = FrozenModel(
            stack.FrozenBlocks({}, own, jnp.int32(0)), {end: freeze(params[end]) for end in ENDS}
        )
        ids = jnp.zeros((1, ROWS, LENGTH), jnp.int32)
        rows = TextBatch(ids, ids, jnp.ones(ids.shape), ids)
        states = init_states(step.rule, trainable, tuple(trainable))
        return trainable, states, frozen, {}, rows, jax.random.key(0), jnp.float32(0)

    function = jax.jit(train_step(step, ("block_0",)), donate_argnums=(0, 1))
    compiled = function.lower(*jax.eval_shape(arguments)).compile(QUICK)
    return compiled.memory_analysis().temp_size_in_bytes


def test_a_deeper_model_needs_the_memory_of_inputs_more_and_of_no_dequantized_weights():
    """8 blocks more; one dequantized has 2.6 MB. (nf4 on CPUs: the compiler unpacks its values, to
    a byte each.)
    """
    saved = ROWS * LENGTH * 256 * 4
    assert (temporary_bytes(12, "int8") - temporary_bytes(4, "int8")) / 8 <= 1.02 * saved
