"""A visit: what a node is to train, what it is ordered with, and what it gives back."""

from collections.abc import Generator, Mapping
from typing import NamedTuple

from snake_jax.params import LayerNames, Params, PyTree
from snake_jax.training.optimizers import OptimizerStates


class Visit(NamedTuple):
    """One node's turn.

    Attributes:
      turn: which in the run, from 0; a taken-over turn has two visits.
      cycle: from 0.
      node: from 0.
      layers: the layers it trains, in model order.
      share: the part of the turn's steps it does, `(0, 1)` for all.
      event: empty; `interrupted` (stops early, hands in what it has), `lost` (stops early, nothing
        comes back), `takeover` (an idle node goes on in the place of one of those) or `waited` (no
        other could, so its own node goes on once it is back).
      others: further nodes that hold a part of the model in this visit.
      giver: over a graph of neighbours the node that hands the model over, so that a stand-in is a
        neighbour of its; None: the server does, or there is no graph.
    """

    turn: int
    cycle: int
    node: int
    layers: LayerNames
    share: tuple[float, float] = (0.0, 1.0)
    event: str = ""
    others: tuple[int, ...] = ()
    giver: int | None = None


Round = tuple[Visit, ...]


class Order(NamedTuple):
    """What a node is asked to do. It holds no array: what the visit reads is named by its version,
    and the engine brings what the node lacks of it.

    Attributes:
      visit: who trains what.
      learning_rate: of all its steps.
      layers: `{layer: version}` of all that the visit reads or trains.
      states: `{layer: version}` of optimizer states to go on from; layers not in it start afresh.
      memory: version of what the node remembers for its method's client, see
        `training.update.Client`; None: nothing yet.
      shared: version of what the server tells all nodes for it.
    """

    visit: Visit
    learning_rate: float
    layers: Mapping[str, int]
    states: Mapping[str, int] = {}
    memory: int | None = None
    shared: int = 0


class Serialized(NamedTuple):
    """Bytes that really went between processes for a visit, as they were serialized.

    Attributes:
      to_node: layers and what travels beside them, from the server or from another node.
      to_controller: what the controller got of what was trained: to merge it, or as its mirror.
    """

    to_node: int
    to_controller: int


class Lost(NamedTuple):
    """A visit whose outcome does not come, and why."""

    visit: Visit
    why: str


class Ending(NamedTuple):
    """How a visit went, as a method is told before it decides what comes next.

    Attributes:
      visit: which, as it was carried out.
      event: empty: as planned; `interrupted`: it stopped early and what it had was handed in;
        `lost`: nothing came back.
    """

    visit: Visit
    event: str = ""


Rounds = Generator[Round, tuple[Ending, ...], None]
"""The rounds of a run, one after the other. Each is sent how its visits went, in their order."""


class Outcome(NamedTuple):
    """What a visit gives back.

    Attributes:
      visit: which.
      layers: the trained layers' new parameters.
      states: their optimizer states.
      loss: mean over the visit's examples, NaN where it did no step.
      finite: whether all losses and new parameters are finite.
      iterations: optimizer steps done.
      examples: examples seen.
      examples_held: examples the node holds.
      train_s: seconds the program ran, compilation apart; those of a program that trained several
        nodes are shared equally among them, so that sums stay true.
      text: of language models.
      memory: what the node remembers from now on, see `training.update.Client`.
      report: what the node tells the server for the method's client.
      serialized: where the node is a process of its own; None: nothing was.
      started: `{layer: version}` of all that the visit read, as its node had it; None: not said.
      checksum: of all its arrays, as the node sent them (`engines.updates.checksum`); None: they
        were not sent.
      ended: why it ended before its last epoch, in words; empty: it did not.
    """

    visit: Visit
    layers: Params
    states: OptimizerStates
    loss: float
    finite: bool
    iterations: int
    examples: int
    examples_held: int
    train_s: float
    text: "Text | None" = None
    memory: PyTree = None
    report: PyTree = None
    serialized: Serialized | None = None
    started: Mapping[str, int] | None = None
    checksum: int | None = None
    ended: str = ""


class Passed(NamedTuple):
    """Rows that went through a language model.

    Attributes:
      length: tokens in each.
      rows: how many, padding rows too.
      prefix: whether only the blocks below the first that trains were run.
      given: whether the output of those was given.
    """

    length: int
    rows: int
    prefix: bool = False
    given: bool = False


class Text(NamedTuple):
    """What a visit on a language model counts besides.

    Attributes:
      tokens: no padding.
      target_tokens: those with a loss.
      passed: through the model.
    """

    tokens: int
    target_tokens: int
    passed: tuple[Passed, ...]


def nothing_of(visit: Visit) -> Outcome:
    """The outcome of a visit that was lost, for what is counted: no step was seen of it.

    It is what a visit gives that flags have lost before its first step (`--interrupt=TURN@0
    --interruption=lost`), so a real failure and its replay are counted alike.
    """
    return Outcome(
        visit,
        layers={},
        states={},
        loss=float("nan"),
        finite=True,
        iterations=0,
        examples=0,
        examples_held=0,
        train_s=0.0,
        text=Text(0, 0, ()),
    )
