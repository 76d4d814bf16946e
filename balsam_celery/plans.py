"""What packing is told and what it answers.  Pure values; times in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from balsam_celery.resources import Counts, NodeCapacity, Resources

#: Seconds for which nodes are idle when no end is told: a number that JSON has.
ENDLESS = 1e9


@dataclass(frozen=True, slots=True)
class Demand:
    """Waiting tasks of one shape.

    Attributes:
        resources: what each asks for.
        wall_time: limit of each in seconds.
        count: how many.
        priority: larger is served first.
        expected_time: seconds that each is expected to run, ``None``: its limit. For
            amounts of work only, which are sums.
        restartable: each may start where only ``fits`` fits.
        waited: seconds since the oldest of them was created.
        fits: seconds in which each has most likely ended, ``None``: its limit. Placement starts a
            restartable one where these are left, so no allocation may have less.
    """

    resources: Resources
    wall_time: int
    count: int
    priority: int = 0
    expected_time: float | None = None
    restartable: bool = False
    waited: float = 0.0
    fits: float | None = None

    @property
    def duration(self) -> float:
        """Seconds that planning takes each for."""
        if self.expected_time is None:
            return float(self.wall_time)
        return max(1.0, min(self.expected_time, float(self.wall_time)))

    def needs(self, kill_grace: int) -> float:
        """Seconds that an allocation must have left for one to start in it."""
        if not self.restartable or self.fits is None:
            return float(kill_grace + self.wall_time)
        return kill_grace + min(self.fits, self.wall_time)


@dataclass(frozen=True, slots=True)
class Lane:
    """One node of an allocation.

    Attributes:
        free_cores: cores free now.
        busy_for: seconds until all are, at the latest (0: now).
        likely_for: seconds until all are, as is expected; ``None``: ``busy_for``.
        gpus: millionths free now of each GPU, in any order; ``None``: all.
        memory: bytes free now; ``None``: all.
        resources: how much is free now of each thing that the site counts; ``None``: all.
        occupancy: sum of 1/``node_packing_count`` of the tasks on it that gave one.
        name: of the node.
        idle_for: seconds for which nothing has run on it; ``None``: something does.
        node: what it has; ``None``: what the allocation says of its nodes.
    """

    free_cores: int
    busy_for: float = 0.0
    likely_for: float | None = None
    gpus: tuple[int, ...] | None = None
    memory: int | None = None
    resources: Counts | None = None
    occupancy: float = 0.0
    name: str = ""
    idle_for: float | None = None
    node: NodeCapacity | None = None

    @property
    def wait(self) -> float:
        """Seconds until it is likely to be free."""
        return self.busy_for if self.likely_for is None else min(self.likely_for, self.busy_for)


@dataclass(frozen=True, slots=True)
class Existing:
    """An allocation that waits or runs.

    Attributes:
        id: its id.
        queue: name of its queue; a queue that has left ``site.toml`` counts in the total only.
        state: ``"queued"`` (or not yet submitted) or ``"running"``.
        nodes: number of nodes.
        usable: seconds in which its workers can run tasks, from now (running) or from its start
            (queued); 0 when it drains or is being cancelled.
        node: what each node has, unless its lane says otherwise.
        lanes: its nodes while it runs; empty: all free.
        waited: seconds for which a queued one has been queued.
        idle_for: seconds for which nothing has run in one that runs; ``None``: something does, or
            it only starts.
        head: name of the node that it cannot do without; empty: it only starts.
    """

    id: str
    queue: str
    state: Literal["queued", "running"]
    nodes: int
    usable: float
    node: NodeCapacity
    lanes: tuple[Lane, ...] = ()
    waited: float = 0.0
    idle_for: float | None = None
    head: str = ""


@dataclass(frozen=True, slots=True)
class Window:
    """Nodes of a queue that are idle now, and for how many seconds."""

    queue: str
    nodes: int
    seconds: float = ENDLESS


@dataclass(frozen=True, slots=True)
class Request:
    """An allocation to ask for.

    Attributes:
        queue: name of the queue.
        nodes: number of nodes.
        wall_time: seconds.
        reason: why, for people.
        code: ``backlog``; ``window``: sized to start at once; ``overdue``: a smaller one beside
            one that waits too long.
        tasks: how many of the waiting tasks it is asked for.
    """

    queue: str
    nodes: int
    wall_time: int
    reason: str
    code: str = "backlog"
    tasks: int = 0


class Waiting(NamedTuple):
    """Tasks for which nothing exists, and nothing may be asked for now.

    Attributes:
        demand: the tasks.
        reason: why, for people.
        code: ``max-allocations``, ``max-queued``, ``budget``, ``no-queue`` or ``machine-full``.
    """

    demand: Demand
    reason: str
    code: str


@dataclass(frozen=True, slots=True)
class Note:
    """What becomes of an allocation that exists.

    Attributes:
        id: of the allocation.
        code: ``kept``; ``overdue``: kept, though it waits too long; ``ending``: it drains or is
            being cancelled; cancelled: ``unneeded``, ``too-large``, ``too-small``; drained:
            ``idle``, ``time-over``, ``in-the-way``.
        reason: why, for people.
    """

    id: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Release:
    """Idle nodes that a running allocation gives back.

    Attributes:
        id: of the allocation.
        nodes: their names.
    """

    id: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Flow:
    """``count`` tasks of ``demand`` are planned for one allocation.

    Attributes:
        allocation: its id, ``None`` when it is yet to be asked for.
        request: else its place among the plan's requests.
    """

    demand: Demand
    count: int
    allocation: str | None = None
    request: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What packing decides.

    Attributes:
        requests: allocations to ask for.
        cancel: ids of queued allocations to give up.
        waiting: what neither exists nor may be asked for now.
        drain: ids of running allocations in which nothing is to start any more.
        release: nodes of others to be given back.
        notes: one for each allocation that exists.
        flows: which tasks are planned for which allocation, in the order of filling.
    """

    requests: tuple[Request, ...] = ()
    cancel: tuple[str, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    drain: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    release: tuple[Release, ...] = ()
    flows: tuple[Flow, ...] = field(default=(), compare=False)
