"""What a run of the system is asked for: checked, and kept as config.json.

Needs no jax, so that a wrong flag is told at once.
"""

from dataclasses import dataclass

from snake_jax.config import pick
from snake_jax.errors import UserError
from snake_jax.names import SCCT_ARMS, SCCT_MECHANISMS

PERSONAL = "personal"
"""The data set of `snake_jax.data.text.personal`."""
OF_SCCT = ("scctt", "scctl", "sccts")
"""Mechanisms that are one training with three clocks."""


@dataclass(frozen=True)
class SystemSettings:
    """A run.

    Attributes:
      data: `personal`, or a file in SQuAD's format.
      model: of the cloud: a folder in the form of Hugging Face, or a preset with random weights.
      tokenizer: its folder; empty: the bytes.
      small_model: folder of a pretrained encoder; empty: a fresh one that reads as the large model.
      small_layers: L of a fresh one.
      small_width: its d_hid.
      arm: what trains where, see `SCCT_ARMS`.
      mechanisms: whose clocks run, by comma; empty: all of the arm. The first one's split points
        say what travels.
      head: generate (an answer's tokens) or span (where in the context it begins and ends).
      nodes: N devices.
      rounds: R.
      epochs: T, of a round.
      iterations: J, of an epoch.
      batch_size: b.
      adapter_width: of the serial adapters.
      adapter_rate: eta_c, of all that trains in the cloud.
      small_rate: eta_s, of the small models.
      optimizer: of both.
      adapter_loss: sum of the devices' losses (equation 9), or their mean.
      plain_loss: when equation 8's second term is computed: evaluation, always or never. It changes
        no gradient.
      backup: whether a round ends with the edge's layers sent back to their device.
      splits: method of the large timescale.
      scenario: a JSON file of devices, edge and cloud; empty: one is drawn.
      subcarriers: K of a drawn one.
      samples: Q of a drawn one.
      events: devices that join, leave and drop, see `snake_jax.scct.system.membership`.
      train_questions: a device of `personal`.
      held_out: questions a device, of each sort of `personal`.
      max_length: tokens of an input.
      max_answer: tokens of an answer.
      answer_end: text that ends an answer; empty: the end of text. A frozen model can only write
        what its training had: one that never saw an end of text needs another, such as a full stop.
      eval_every: rounds between evaluations; the last is always one.
      seed: of all that is drawn.
    """

    data: str = PERSONAL
    model: str = "tiny-llama"
    tokenizer: str = ""
    small_model: str = ""
    small_layers: int = 4
    small_width: int = 64
    arm: str = "scct"
    mechanisms: str = ""
    head: str = "generate"
    nodes: int = 4
    rounds: int = 10
    epochs: int = 2
    iterations: int = 10
    batch_size: int = 8
    adapter_width: int = 16
    adapter_rate: float = 1e-3
    small_rate: float = 1e-3
    optimizer: str = "adam"
    adapter_loss: str = "sum"
    plain_loss: str = "evaluation"
    backup: bool = True
    splits: str = "alns"
    scenario: str = ""
    subcarriers: int = 200
    samples: int = 20
    events: str = ""
    train_questions: int = 256
    held_out: int = 32
    max_length: int = 96
    max_answer: int = 12
    answer_end: str = ""
    eval_every: int = 1
    seed: int = 0

    @property
    def clocks(self) -> tuple[str, ...]:
        """The mechanisms that are clocked."""
        if self.mechanisms:
            return tuple(self.mechanisms.split(","))
        return of_arm(self.arm)

    @property
    def has_small(self) -> bool:
        """Whether devices have a small model."""
        return self.arm in ("scct", "scct_shared", "small")

    @property
    def has_large(self) -> bool:
        """Whether the cloud's model takes part."""
        return self.arm != "small"


def of_arm(arm: str) -> tuple[str, ...]:
    """The mechanisms that clock an arm."""
    if arm in ("scct", "scct_shared"):
        return OF_SCCT
    return ("cloudo",) if arm.startswith("cloudo") else ("device",)


def checked(settings: SystemSettings) -> SystemSettings:
    """The settings themselves.

    Raises:
      UserError: one is wrong, or two do not go together.
    """
    pick("arm", settings.arm, SCCT_ARMS)
    pick("head", settings.head, ("generate", "span"))
    pick("optimizer", settings.optimizer, ("sgd", "adam", "adamw", "rmsprop"))
    pick("adapter_loss", settings.adapter_loss, ("sum", "mean"))
    pick("plain_loss", settings.plain_loss, ("evaluation", "always", "never"))
    for name in ("nodes", "rounds", "epochs", "iterations", "batch_size", "small_layers"):
        _at_least(settings, name, 1)
    for name in ("train_questions", "held_out", "max_answer", "eval_every", "adapter_width"):
        _at_least(settings, name, 1)
    _at_least(settings, "max_length", 8)
    for mechanism in settings.clocks:
        pick("mechanisms", mechanism, SCCT_MECHANISMS)
        if mechanism not in of_arm(settings.arm):
            raise UserError(
                f"--mechanisms={settings.mechanisms}: {mechanism} does not clock "
                f"--arm={settings.arm}; take of {', '.join(of_arm(settings.arm))}"
            )
    if settings.arm == "small" and settings.head != "span":
        raise UserError("--arm=small: a small model alone writes no words; give --head=span")
    if not settings.small_model and settings.small_width % 16:
        raise UserError(f"--small_width={settings.small_width}: want a multiple of 16")
    return settings


def _at_least(settings: SystemSettings, name: str, least: int) -> None:
    if getattr(settings, name) < least:
        raise UserError(f"--{name}={getattr(settings, name)}: want at least {least}")
