"""What the API is sent and answers: the objects of its OpenAPI document."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from snake_jax.services.pool import PoolState
from snake_jax.services.results import NodeResult, RunEvent
from snake_jax.services.store import Service, ServiceEvent
from snake_jax.services.terms import ServiceProgress, ServiceTerms

_PRINTABLE = r"^[^\u0000-\u001f\u007f]*$"
Label = Annotated[str, Field(max_length=80, pattern=_PRINTABLE)]
Setting = bool | int | float | str


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Requirements(_Message):
    """What a service needs while it runs."""

    slots: int = Field(default=1, ge=1, le=1024, description="slots that it takes")


class Limits(_Message):
    """What a service may take."""

    run_s: float | None = Field(
        default=None, ge=1, le=1e9, description="seconds that it may run in all; null: no limit"
    )
    restarts: int = Field(
        default=3, ge=0, le=100, description="how often it is started again after it was killed"
    )


class Registration(_Message):
    """A service to register."""

    task: Literal["classify", "finetune"] = Field(description="the command of snake-jax")
    settings: dict[str, Setting] = Field(
        default_factory=dict,
        max_length=200,
        description="flags of that command by name; those left out keep their defaults; files "
        "are named by their path in the data folders of the Service Provider",
    )
    name: Label = Field(default="", description="what you call it")
    owner: Label = Field(default="", description="whose it is: owners share the slots")
    requirements: Requirements = Requirements()
    limits: Limits = Limits()

    def asked(self) -> ServiceTerms:
        """The same for the Service Provider."""
        return ServiceTerms(
            task=self.task,
            settings=self.settings,
            name=self.name,
            owner=self.owner,
            slots=self.requirements.slots,
            run_s=self.limits.run_s or 0.0,
            restarts=self.limits.restarts,
        )


class ServiceShown(_Message):
    """A service as it stands; times are seconds since 1970."""

    number: int
    name: str
    owner: str
    task: str
    settings: dict[str, Setting]
    requirements: Requirements
    limits: Limits
    state: Literal["waiting", "running", "ending", "finished", "failed", "cancelled"]
    cause: str = Field(description="why it is in this state")
    attempt: int = Field(description="how often it was started")
    registered_s: float
    started_s: float | None = Field(description="when it was last started")
    ended_s: float | None = Field(description="when it ended for good")
    used_s: float = Field(description="seconds that it ran in earlier turns")
    rounds: int = Field(description="finished rounds: lines of its metrics")
    last: dict[str, Any] | None = Field(description="the last line of its metrics")


class Services(_Message):
    """All services, and the slots that they share."""

    slots: int
    slots_in_use: int
    services: list[ServiceShown]


class EventShown(_Message):
    """Something that happened to a service, or to a node in its run."""

    time_s: float
    event: str
    cause: str
    visit: int | None = Field(default=None, description="of the run that it concerns")
    node: int | None = Field(default=None, description="of the run, whom it happened to")


class Events(_Message):
    """What happened to a service and in its run, in order."""

    events: list[EventShown]


class NodeShown(_Message):
    """What a node of a service has done so far."""

    node: int
    visits: int
    layers: list[str] = Field(description="that it trained last")
    last_visit: int | None = Field(description="a number of a line of metrics, from 0")
    bytes_sent: int
    bytes_received: int


class Nodes(_Message):
    """The nodes of a service that have taken part so far, by number."""

    nodes: list[NodeShown]


class PoolNodeShown(_Message):
    """A node that services share; times are seconds since 1970."""

    node: int
    host: str
    alive: bool
    since_s: float = Field(description="when it came or went")
    visits: int = Field(description="that it served, of all services")
    busy_s: float = Field(description="seconds that it was leased for")
    service: int | None = Field(description="whose visit it carries out; null: it is free")
    turn: int | None = Field(description="of that visit")
    layers: list[str] = Field(description="that that visit trains")
    leased_s: float | None = Field(description="since when")
    waiting: list[int] = Field(description="services that wait for it, the longest first")


class PoolEventShown(_Message):
    """Something that happened to a node that services share."""

    time_s: float
    node: int
    event: str
    cause: str


class PoolShown(_Message):
    """The nodes that services share, by number, and what happened to them; none without a pool."""

    nodes: list[PoolNodeShown]
    events: list[PoolEventShown]


class FileShown(_Message):
    """A file of a result."""

    name: str
    bytes: int


class Files(_Message):
    """The files of a result."""

    files: list[FileShown]


class Refusal(_Message):
    """Why something was not done, in a line."""

    error: str


def service_shown(service: Service, progress: ServiceProgress) -> ServiceShown:
    """A service as the API tells of it."""
    return ServiceShown(
        number=service.number,
        name=service.name,
        owner=service.owner,
        task=service.task,
        settings=json.loads(service.settings),
        requirements=Requirements(slots=service.slots),
        limits=Limits(run_s=service.run_s or None, restarts=service.restarts),
        state=service.state,  # type: ignore[arg-type]
        cause=service.cause,
        attempt=service.attempt,
        registered_s=service.registered_s,
        started_s=service.started_s or None,
        ended_s=service.ended_s or None,
        used_s=service.used_s,
        rounds=progress.place.lines,
        last=json.loads(progress.last) if progress.last else None,
    )


def events_shown(events: Sequence[ServiceEvent], in_run: Sequence[RunEvent]) -> Events:
    """What the Service Provider did and what the run tells, by time, as the API tells of it."""
    shown = [
        EventShown(time_s=event.time_s, event=event.event, cause=event.cause) for event in events
    ]
    shown += [EventShown(**event._asdict()) for event in in_run]
    return Events(events=sorted(shown, key=lambda event: event.time_s))


def pool_shown(state: PoolState) -> PoolShown:
    """The pool as the API tells of it."""
    shown = []
    for node in state.nodes:
        wishes = [wish for wish in state.wishes if wish.node == node.node]
        leased = next((wish for wish in wishes if wish.granted_s), None)
        fields = node._asdict() | {"alive": bool(node.alive)}
        one = PoolNodeShown(
            **fields,
            service=leased.service if leased else None,
            turn=leased.turn if leased else None,
            layers=json.loads(leased.layers) if leased else [],
            leased_s=leased.granted_s if leased else None,
            waiting=[wish.service for wish in wishes if not wish.granted_s],
        )
        shown.append(one)
    events = [PoolEventShown(**event._asdict()) for event in state.events]
    return PoolShown(nodes=shown, events=events)


def node_shown(node: NodeResult) -> NodeShown:
    """A node as the API tells of it."""
    return NodeShown(**node._asdict())
