"""The flags of `snake-jax scct --train`: the fields of `snake_jax.scct.system.settings`."""

from dataclasses import fields
from typing import Any

from absl import flags
from absl.flags import FlagValues

from snake_jax import names
from snake_jax.scct.system.settings import SystemSettings

# What --train itself says, and what other tasks of the command have too.
_ELSEWHERE = ("data", "splits", "seed")
_HELP = {
    "model": "the large model in the cloud: a folder in the form of Hugging Face, or a preset",
    "tokenizer": "its tokenizer's folder; empty: bytes",
    "small_model": "folder of a pretrained BERT or RoBERTa; empty: a fresh one",
    "small_layers": "layers of a fresh small model",
    "small_width": "its width",
    "arm": "what trains: scct; scct_shared (one small model of all devices); cloudo (adapters in "
    "the cloud alone); cloudo_all (all its weights); small (small models with a span head)",
    "mechanisms": "whose clocks run, by comma: scctt, scctl, sccts; cloudo; empty: all of the arm",
    "head": "generate an answer's tokens, or a span: where in the context it begins and ends",
    "nodes": "devices",
    "rounds": "R; split points are chosen before each",
    "epochs": "T of a round; resources are allocated before each",
    "iterations": "J of an epoch",
    "batch_size": "examples of a device in an iteration",
    "adapter_width": "of the serial adapters",
    "adapter_rate": "learning rate of the cloud",
    "small_rate": "learning rate of the small models",
    "optimizer": "of both",
    "adapter_loss": "the adapters' loss: the sum of the devices' losses, or their mean",
    "plain_loss": "when equation 8's second term is computed, which changes no gradient",
    "backup": "whether a round ends with the edge's layers sent back to their devices",
    "scenario": "a JSON file of devices, edge and cloud; empty: drawn by the seed",
    "subcarriers": "of a drawn scenario",
    "samples": "of a drawn scenario",
    "events": "devices that come and go, KIND:NODE@ROUND.EPOCH by comma: drop:1@2.1,leave:0@3",
    "train_questions": "of personal: questions a device",
    "held_out": "questions a device to evaluate on",
    "max_length": "tokens of an input",
    "max_answer": "tokens of an answer",
    "answer_end": "text that ends an answer, as a full stop, for a model that knows no end of text",
    "eval_every": "rounds between evaluations",
}
_CHOICES = {
    "arm": names.SCCT_ARMS,
    "head": ("generate", "span"),
    "optimizer": ("sgd", "adam", "adamw", "rmsprop"),
    "adapter_loss": ("sum", "mean"),
    "plain_loss": ("evaluation", "always", "never"),
}
FIELDS = tuple(field.name for field in fields(SystemSettings) if field.name not in _ELSEWHERE)


def define(values: FlagValues) -> None:
    """A flag for each field, with its default."""
    for field in fields(SystemSettings):
        name, text = field.name, _HELP.get(field.name, "")
        default: Any = field.default
        if name in _ELSEWHERE:
            continue
        if name in _CHOICES:
            flags.DEFINE_enum(name, default, _CHOICES[name], text, flag_values=values)
        elif isinstance(default, bool):
            flags.DEFINE_bool(name, default, text, flag_values=values)
        elif isinstance(default, int):
            flags.DEFINE_integer(name, default, text, flag_values=values)
        elif isinstance(default, float):
            flags.DEFINE_float(name, default, text, flag_values=values)
        else:
            flags.DEFINE_string(name, default, text, flag_values=values)


def settings(data: str, values: FlagValues) -> SystemSettings:
    """What the flags say."""
    given: dict[str, Any] = {name: values[name].value for name in (*FIELDS, "splits", "seed")}
    if values["mechanisms"].value == "cloudo" and not values["arm"].present:
        given["arm"] = "cloudo"
    return SystemSettings(data=data, **given)
