"""Devices that join, leave and drop: who is there in which epoch of a round.

Events are written `KIND:NODE@ROUND.EPOCH`, by comma: `drop:1@2.1,leave:0@3,join:0@5`. Rounds count
from 1. A device that leaves or drops `@2.1` does so in round 2 after its first epoch; `@2` before
it. One that *leaves* takes what was trained of its model with it and stays away until it joins. One
that *drops* loses what the round trained of it, as the edge's part is out of reach: it comes back
in the next round with its backup of the last round's end. A device whose first event is to join is
absent before.
"""

import re
from typing import NamedTuple

from snake_jax.errors import UserError

_EVENT = re.compile(r"(join|leave|drop):(\d+)@(\d+)(?:\.(\d+))?")


class DeviceEvent(NamedTuple):
    """What a device does, in round `round` after `epochs` epochs of it."""

    kind: str
    node: int
    round: int
    epochs: int


class Presence(NamedTuple):
    """A device in a round.

    Attributes:
      epochs: that it takes part in, from the first.
      keeps: whether what is trained of it lasts; not where it drops.
    """

    epochs: int
    keeps: bool


def parse(text: str, nodes: int, epochs: int) -> tuple[DeviceEvent, ...]:
    """The events that a flag says, in order of time.

    Raises:
      UserError: one is not of that form, or names no device or epoch.
    """
    events = []
    for word in filter(None, text.split(",")):
        match = _EVENT.fullmatch(word.strip())
        if not match:
            raise UserError(f"--events: {word}: want KIND:NODE@ROUND.EPOCH, as drop:1@2.1")
        kind = match[1]
        node, number, epoch = int(match[2]), int(match[3]), int(match[4] or 0)
        if node >= nodes or number < 1 or epoch >= epochs:
            raise UserError(
                f"--events: {word}: want a node below {nodes}, a round from 1 and an epoch below "
                f"{epochs}"
            )
        if kind == "join" and epoch:
            raise UserError(f"--events: {word}: devices join between rounds; leave out .{epoch}")
        events.append(DeviceEvent(kind, node, number, epoch))
    return tuple(sorted(events, key=lambda event: (event.round, event.epochs)))


def presences(
    events: tuple[DeviceEvent, ...], nodes: int, epochs: int, number: int
) -> list[Presence]:
    """Every device's presence in a round, `number` from 1."""
    return [_presence(events, node, epochs, number) for node in range(nodes)]


def _presence(events: tuple[DeviceEvent, ...], node: int, epochs: int, number: int) -> Presence:
    own = [event for event in events if event.node == node]
    is_there = not own or own[0].kind != "join"
    for event in own:
        if event.round > number:
            break
        if event.kind == "join":
            is_there = True
        elif event.round == number:
            stays = event.epochs if is_there else 0
            return Presence(stays, event.kind == "leave")
        elif event.kind == "leave":
            is_there = False
    return Presence(epochs if is_there else 0, True)
