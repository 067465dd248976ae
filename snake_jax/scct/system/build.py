"""From settings to all that a run is: models, data, devices. Compiles small inits alone."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from snake_jax import streams
from snake_jax.data.text import personal, questions
from snake_jax.data.text.questions import Question
from snake_jax.data.text.tokenizers import Tokenizer, check_fits, load_tokenizer
from snake_jax.errors import UserError
from snake_jax.models import hub, presets, serial, span
from snake_jax.models import prefix as prefixes
from snake_jax.models.bert import Bert
from snake_jax.models.encoder import Encoder
from snake_jax.models.language import LanguageModel
from snake_jax.params import Params
from snake_jax.scct import drawing, latency
from snake_jax.scct import scenario as scenarios
from snake_jax.scct.drawing import Law
from snake_jax.scct.scenario import Model, Scenario
from snake_jax.scct.system import cloud, membership
from snake_jax.scct.system.cloud import Large
from snake_jax.scct.system.examples import DeviceExamples, Reader, encode
from snake_jax.scct.system.membership import DeviceEvent
from snake_jax.scct.system.settings import PERSONAL, SystemSettings, checked

_HEAD_WIDTH = 16  # of a fresh small model's attention


class DeviceData(NamedTuple):
    """One device's questions.

    Attributes:
      train: to train on.
      held_out: to evaluate on, by sort.
    """

    train: DeviceExamples
    held_out: dict[str, DeviceExamples]


class System(NamedTuple):
    """All that a run is, and never changes.

    Attributes:
      settings: what was asked for.
      encoder: the small model, of all devices.
      large: the large one.
      base: its frozen parameters.
      start: small model that a device begins with; None: each draws its own.
      data: of each device.
      tokenizer: of the large model.
      scenario: devices, edge and cloud; what the devices hold already is not in it.
      law: what the epochs are drawn from.
      events: devices that come and go.
    """

    settings: SystemSettings
    encoder: Encoder
    large: Large
    base: Params
    start: Params | None
    data: tuple[DeviceData, ...]
    tokenizer: Tokenizer
    scenario: Scenario
    law: Law
    events: tuple[DeviceEvent, ...]

    @property
    def blocks(self) -> tuple[str, ...]:
        """The small model's layers that may be split between."""
        return self.encoder.layer_names[1:]


def prepare(settings: SystemSettings) -> System:
    """Checks the settings and loads models and data.

    Raises:
      UserError: a setting, file or folder is wrong.
    """
    checked(settings)
    model, base = _large(settings)
    tokenizer = load_tokenizer(settings.tokenizer)
    check_fits(tokenizer, model.vocab_size)
    encoder, start, small_tokenizer = _small(settings, tokenizer)
    context_first = settings.head == "generate"
    small = Reader(small_tokenizer, min(settings.max_length, encoder.max_positions))
    room = model.max_positions - settings.max_answer
    if settings.max_length > room:
        raise UserError(
            f"--max_length={settings.max_length}: with --max_answer={settings.max_answer} more "
            f"than the {model.max_positions} positions of {model.name}; take at most {room}"
        )
    reader = Reader(tokenizer, settings.max_length, context_first)
    asked = _questions(settings)
    data = []
    answers = (settings.max_answer, settings.answer_end)
    for train, held_out in asked:
        sorts = {sort: encode(some, small, reader, *answers) for sort, some in held_out.items()}
        data.append(DeviceData(encode(train, small, reader, *answers), sorts))
    scenario, law = _scenario(settings, encoder)
    return System(
        settings=settings,
        encoder=encoder,
        large=Large(model, "generate" if context_first else "span", settings.arm == "cloudo_all"),
        base=base,
        start=start,
        data=tuple(data),
        tokenizer=tokenizer,
        scenario=scenario,
        law=law,
        events=membership.parse(settings.events, settings.nodes, settings.epochs),
    )


def fresh_small(system: System, owner: int) -> Params:
    """The small model that a device begins with; with a span head where it answers alone."""
    key = jax.random.fold_in(streams.key(system.settings.seed, "key/weights"), owner)
    params = system.encoder.init(key) if system.start is None else dict(system.start)
    if system.settings.arm == "small":
        params[cloud.SPAN] = span.init(key, system.encoder.width)
    return params


def fresh_trained(system: System) -> Params:
    """What trains in the cloud, as it begins."""
    settings, model = system.settings, system.large.model
    if not settings.has_large:
        return {}
    key = streams.key(settings.seed, "key/adapters")
    trained: Params = {}
    if settings.arm == "cloudo_all":
        trained |= system.base
    else:
        names, hidden = model.layer_names[1:-1], model.architecture.hidden_size
        trained |= serial.init(key, names, hidden, settings.adapter_width)
    if settings.has_small:
        size = prefixes.token_size(model, system.base)
        own = jax.random.fold_in(key, len(model.layer_names))
        trained[cloud.PROJECTION] = prefixes.init_projection(own, system.encoder.width, model, size)
    if settings.head == "span":
        head = model.table(system.base)
        own = jax.random.fold_in(key, len(model.layer_names) + 1)
        trained[cloud.SPAN] = span.init(own, head.shape[-1])
    return trained


def _large(settings: SystemSettings) -> tuple[LanguageModel, Params]:
    """The large model and its weights."""
    if settings.model in presets.PRESETS:
        model = presets.from_preset(settings.model)
        return model, jax.jit(model.init)(streams.key(settings.seed, "key/weights"))
    if not Path(settings.model).is_dir():
        raise UserError(
            f"--model={settings.model}: no folder and no preset; presets are "
            f"{', '.join(presets.PRESETS)}"
        )
    model, params = hub.load_pretrained(settings.model)
    return model, jax.tree.map(jnp.asarray, params)


def _small(
    settings: SystemSettings, tokenizer: Tokenizer
) -> tuple[Encoder, Params | None, Tokenizer]:
    """The small model, its weights where it has some, and how it reads."""
    if settings.small_model:
        encoder, params = hub.load_encoder(settings.small_model)
        own = load_tokenizer(settings.small_model)
        check_fits(own, encoder.architecture.vocab_size)
        return encoder, jax.tree.map(jnp.asarray, params), own
    width = settings.small_width
    architecture = Bert(
        vocab_size=tokenizer.vocab_size,
        hidden_size=width,
        num_hidden_layers=settings.small_layers,
        num_attention_heads=width // _HEAD_WIDTH,
        intermediate_size=4 * width,
        max_position_embeddings=settings.max_length + 8,
    )
    return Encoder("small", architecture, 0.0), None, tokenizer


Asked = tuple[list[Question], dict[str, list[Question]]]
"""A device's questions to train on, and those held out by sort."""


def _questions(settings: SystemSettings) -> list[Asked]:
    """Of every device."""
    if settings.data == PERSONAL:
        drawn = personal.draw(
            settings.seed, settings.nodes, settings.train_questions, settings.held_out
        )
        asked = []
        for device in drawn:
            sorts = {"shared": list(device.shared), "personal": list(device.personal)}
            asked.append((list(device.train), sorts))
        return asked
    by_title: dict[str, list[Question]] = {}
    for question in questions.read(settings.data):
        by_title.setdefault(question.title, []).append(question)
    if len(by_title) < settings.nodes:
        raise UserError(
            f"--data={settings.data}: {len(by_title)} articles for --nodes={settings.nodes}; each "
            f"device needs one"
        )
    own: list[list[Question]] = [[] for _ in range(settings.nodes)]
    for number, some in enumerate(by_title.values()):
        own[number % settings.nodes] += some
    return [_held_out(settings, node, some) for node, some in enumerate(own)]


def _held_out(settings: SystemSettings, node: int, some: list[Question]) -> Asked:
    """A device's questions, whole contexts of which are held out."""
    by_context: dict[str, list[Question]] = {}
    for question in some:
        by_context.setdefault(question.context, []).append(question)
    contexts = list(by_context)
    order = streams.generator(settings.seed, "scct/hold_out", node).permutation(len(contexts))
    held_out, train = list[Question](), list[Question]()
    for place in order:
        of_one = by_context[contexts[place]]
        (held_out if len(held_out) < settings.held_out else train).extend(of_one)
    if not train:
        raise UserError(
            f"--held_out={settings.held_out}: node {node} has {len(some)} questions, none is left "
            f"to train on; hold out fewer"
        )
    return train, {"questions": held_out[: settings.held_out]}


def _scenario(settings: SystemSettings, encoder: Encoder) -> tuple[Scenario, Law]:
    """Of the file, or drawn by the seed, scaled to this small model."""
    model = Model(
        layers=encoder.num_blocks,
        hidden=encoder.width,
        input_length=settings.max_length,
        label_length=settings.max_answer,
        batch=settings.batch_size,
        bits=32,
        backward_ratio=2.0,
    )
    law = dataclasses.replace(scaled(model), epochs=settings.epochs, iterations=settings.iterations)
    if not settings.scenario:
        drawn = drawing.drawn(
            settings.seed, settings.nodes, settings.subcarriers, settings.samples, law
        )
        return drawn, law
    found = scenarios.read(settings.scenario)
    if len(found.devices) != settings.nodes or found.model.layers != model.layers:
        raise UserError(
            f"--scenario={settings.scenario}: {len(found.devices)} devices and "
            f"{found.model.layers} layers; this run has {settings.nodes} and {model.layers}"
        )
    return dataclasses.replace(found, epochs=law.epochs, iterations=law.iterations), law


def scaled(model: Model) -> Law:
    """Table III's devices, edge and links for a small model of another size.

    FLOP/s are divided by how many fewer FLOPs a layer has than one of RoBERTa-base, hertz and
    bits/s by how many fewer numbers a batch has (at the same ratio of signal to noise), bytes of
    memory are in layers anyway: an iteration takes about the seconds that it takes there.
    """
    base = drawing.LAW
    paper = base.model
    flops = latency.layers_flops(model, 1) / latency.layers_flops(paper, 1)
    sent = model.batch * model.input_length * model.hidden
    numbers = sent / (paper.batch * paper.input_length * paper.hidden)
    low, high = base.flops_per_s
    deep = model.layers / paper.layers
    server = dataclasses.replace(
        base.server,
        flops_per_s=base.server.flops_per_s * flops,
        subcarrier_hz=base.server.subcarrier_hz * numbers,
        noise_w_per_hz=base.server.noise_w_per_hz / numbers,
    )
    fibre = dataclasses.replace(base.cloud, bits_per_s=base.cloud.bits_per_s * numbers)
    return Law(
        model=model,
        server=server,
        cloud=fibre,
        flops_per_s=(low * flops, high * flops),
        layers=(max(1.0, base.layers[0] * deep), base.layers[1] * deep),
    )
