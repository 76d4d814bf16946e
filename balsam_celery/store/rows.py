"""Rows as frozen values, for readers.

The fields are the columns of :mod:`balsam_celery.store.schema`, in its order; times are seconds
since the epoch, JSON columns hold the plain JSON values.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, TypedDict

from sqlalchemy import RowMapping

from balsam_celery.amounts import counts_from
from balsam_celery.resources import Resources
from balsam_celery.states import State


class AllocationState(StrEnum):
    """State of an allocation; ENDED only on the scheduler's word (R4)."""

    REQUESTED = "REQUESTED"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    ENDED = "ENDED"
    #: The scheduler refused it for good.
    FAILED = "FAILED"


class PilotState(StrEnum):
    """State of a pilot (one incarnation inside an allocation)."""

    LIVE = "LIVE"
    #: Nothing more is placed on it.
    DRAINING = "DRAINING"
    ENDED = "ENDED"


class EffectKind(StrEnum):
    """What the service does once the transaction that asked for it is committed (R7)."""

    #: Store the row's result in the Celery result backend.
    RESULT = "result"
    #: Drop a result stored before, because of ``retry``.
    FORGET = "forget"
    #: Send the Celery message of a step.
    SEND = "send"
    #: Call an errback.
    ERRBACK = "errback"


class Shape(Protocol):
    """The columns of a task that say what it asks of nodes."""

    @property
    def num_nodes(self) -> int: ...
    @property
    def ranks_per_node(self) -> int: ...
    @property
    def threads_per_rank(self) -> int: ...
    @property
    def threads_per_core(self) -> int: ...
    @property
    def gpus_per_rank(self) -> float: ...
    @property
    def node_packing_count(self) -> int | None: ...
    @property
    def memory_per_node(self) -> int: ...
    @property
    def resources_per_node(self) -> str: ...


def resources_of(row: Shape, cpu_affinity: str = "depth") -> Resources:
    """What a task with these columns asks of nodes."""
    return Resources(
        num_nodes=row.num_nodes,
        ranks_per_node=row.ranks_per_node,
        threads_per_rank=row.threads_per_rank,
        threads_per_core=row.threads_per_core,
        gpus_per_rank=row.gpus_per_rank,
        node_packing_count=row.node_packing_count,
        cpu_affinity=cpu_affinity,
        memory_per_node=row.memory_per_node,
        resources_per_node=counts_from(row.resources_per_node),
    )


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task: columns of ``schema.task`` and its tags, sorted."""

    id: str
    kind: str
    name: str
    workflow: str
    application: str
    command: list[str]
    literal: bool
    arguments: dict[str, Any]
    inputs: str
    celery: dict[str, Any]
    errbacks: list[Any]
    argv: list[str] | None
    num_nodes: int
    ranks_per_node: int
    threads_per_rank: int
    threads_per_core: int
    gpus_per_rank: float
    node_packing_count: int | None
    cpu_affinity: str
    memory_per_node: int
    resources_per_node: str
    launcher: str | None
    environment: dict[str, str]
    wall_time: int
    expected_time: float | None
    priority: int
    max_retries: int
    retry_on: list[Any] | None
    retry_delay: float | None
    restartable: bool
    checkpoint_grace: int
    end_signal: str
    on_parent_failure: str
    not_before: float
    hooks: dict[str, Any]
    input_files: list[Any]
    data: dict[str, Any]
    state: State
    attempt: int
    failures: int
    ran: float | None
    cuts: int
    waiting_on: int
    kill_requested: float | None
    kill_reason: str
    pilot: str | None
    shares: list[dict[str, Any]] | None
    work_dir: str | None
    reason: str
    result: Any
    created: float
    changed: float
    finished: float | None
    tags: tuple[str, ...] = ()

    @classmethod
    def of(cls, row: RowMapping, tags: tuple[str, ...] = ()) -> TaskRow:
        """The task in ``row``, which holds every column of ``schema.task``."""
        values = dict(row)
        values["state"] = State(values["state"])
        return cls(**values, tags=tags)

    @property
    def resources(self) -> Resources:
        """What it asks of nodes."""
        return resources_of(self, self.cpu_affinity)


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One run of a task; ``ended`` is ``None`` while it lasts.  Memory is in bytes."""

    task: str
    number: int
    allocation: str | None
    pilot: str | None
    nodes: list[dict[str, Any]]
    argv: list[str]
    work_dir: str | None
    environment_digest: str
    dispatched: float
    started: float | None
    ended: float | None
    outcome: str | None
    exit_code: int | None
    signal: int | None
    user_time: float | None
    system_time: float | None
    max_memory: int | None
    stdout_tail: str | None
    stderr_tail: str | None
    reason: str

    @classmethod
    def of(cls, row: RowMapping) -> AttemptRow:
        """The attempt in ``row``."""
        return cls(**dict(row))


@dataclass(frozen=True, slots=True)
class EventRow:
    """One change of a task's state; ``from_state`` is ``None`` for its creation."""

    id: int
    task: str
    from_state: State | None
    to_state: State
    time: float
    who: str
    message: str

    @classmethod
    def of(cls, row: RowMapping) -> EventRow:
        """The event in ``row``."""
        values = dict(row)
        source = values["from_state"]
        values["from_state"] = None if source is None else State(source)
        values["to_state"] = State(values["to_state"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class AllocationRow:
    """A batch job, asked for or submitted; ``wall_time`` in seconds.

    ``reason`` is of its state, ``asked_for`` why packing wanted it. ``nodes_back`` of its ``nodes``
    the scheduler has back, after it was charged ``charged_back`` node-seconds for them.
    """

    id: str
    queue: str
    nodes: int
    wall_time: int
    state: AllocationState
    native_id: str | None
    cancel_requested: float | None
    created: float
    submitted: float | None
    started: float | None
    ended: float | None
    reason: str
    run_dir: str
    asked_for: str
    nodes_back: int = 0
    charged_back: float = 0.0

    @classmethod
    def of(cls, row: RowMapping) -> AllocationRow:
        """The allocation in ``row``."""
        values = dict(row)
        values["state"] = AllocationState(values["state"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class PilotRow:
    """A pilot; ``nodes`` is a list of plain ``resources.NodeCapacity``.

    By name of a node: ``idle_nodes`` since when nothing runs there, ``giving_back`` how far it is
    given back (:class:`GivingBack`).
    """

    id: str
    allocation: str
    state: PilotState
    host: str
    pid: int
    nodes: list[dict[str, Any]]
    registered: float
    heartbeat: float
    end_time: float
    ended: float | None
    idle_since: float | None
    reason: str
    stop_at: float | None = None
    idle_nodes: dict[str, float] | None = None
    giving_back: dict[str, GivingBack] | None = None

    @classmethod
    def of(cls, row: RowMapping) -> PilotRow:
        """The pilot in ``row``."""
        values = dict(row)
        values["state"] = PilotState(values["state"])
        return cls(**values)


class GivingBack(TypedDict):
    """A node on its way back to the scheduler; times in seconds since the epoch.

    ``asked``: when it was decided. ``left``: the pilot has let go of it. ``back``: the scheduler
    has it. ``refused``: why the scheduler did not take it; "": it was not refused.
    """

    asked: float
    left: float | None
    back: float | None
    refused: str


@dataclass(frozen=True, slots=True)
class EffectRow:
    """Something to do outside SQL, repeated until it is done."""

    id: int
    task: str
    kind: EffectKind
    payload: Any
    created: float
    tries: int
    not_before: float

    @classmethod
    def of(cls, row: RowMapping) -> EffectRow:
        """The effect in ``row``."""
        values = dict(row)
        values["kind"] = EffectKind(values["kind"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class ApplicationRow:
    """A named command with defaults, as ``balsam app add`` keeps it."""

    name: str
    command: list[str]
    defaults: dict[str, Any]
    description: str
    created: float

    @classmethod
    def of(cls, row: RowMapping) -> ApplicationRow:
        """The application in ``row``."""
        return cls(**dict(row))
