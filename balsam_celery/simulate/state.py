"""What a simulated scheduler may see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from balsam_celery.ledger import Ledger
from balsam_celery.packing import Plan
from balsam_celery.placement import Pass
from balsam_celery.simulate.backlog import Backlog
from balsam_celery.simulate.batch import Idle
from balsam_celery.simulate.estimates import Estimates
from balsam_celery.simulate.machine import Machine
from balsam_celery.simulate.workload import Workload


@dataclass(slots=True)
class Allocation:
    """A batch job of ours; times in seconds.

    Attributes:
        id, queue, nodes, wall_time: what was asked for.
        submitted: when. state: ``"queued"``; ``"starting"``: it runs, its workers do not yet;
            ``"live"``; ``"ended"``.
        started, ended: when, ``None``: not yet.
        draining: nothing may start in it.
        idle_since: since when nothing runs in it, ``None``: something does.
        idle_nodes: places of its nodes on which nothing runs, as bit sets, by since when.
        given_back: how many nodes the scheduler has back; ``charged_back``: node-seconds that it
            was charged for those.
        starved: at some time while it was live nothing waited.
        used_of: node-seconds of attempts that succeeded in it, of each thing that its nodes have.
    """

    id: str
    queue: str
    nodes: int
    wall_time: int
    submitted: float
    state: Literal["queued", "starting", "live", "ended"] = "queued"
    started: float | None = None
    ended: float | None = None
    draining: bool = False
    idle_since: float | None = None
    idle_nodes: dict[float, int] = field(default_factory=dict)
    given_back: int = 0
    charged_back: float = 0.0
    starved: bool = False
    used_of: tuple[float, ...] = (0.0,)

    @property
    def used(self) -> float:
        """Node-seconds used of that thing of which most was used: no fewer could have done it."""
        return max(self.used_of)

    def use(self, shares: Sequence[float], seconds: float) -> None:
        """Count in an attempt that succeeded; ``shares``: of each thing that nodes have."""
        before = self.used_of if len(self.used_of) == len(shares) else (0.0,) * len(shares)
        self.used_of = tuple(
            used + share * seconds for used, share in zip(before, shares, strict=True)
        )

    @property
    def charged(self) -> float:
        """Node-seconds from its start to its end, of each node until it was given back; 0 while it
        has not ended."""
        if self.started is None or self.ended is None:
            return 0.0
        kept = self.nodes - self.given_back
        return self.charged_back + kept * (self.ended - self.started)

    @property
    def reserved(self) -> float:
        """Node-seconds that it is charged if it lasts to the end of its time."""
        return self.charged_back + (self.nodes - self.given_back) * self.wall_time

    def give_back(self, nodes: int, now: float) -> None:
        """Count out nodes, which are charged until ``now``."""
        self.given_back += nodes
        self.charged_back += nodes * (now - (self.started or 0.0))

    def note_idle(self, free: int, now: float) -> bool:
        """Note on which places (a bit set) nothing runs now; true if some were not idle before."""
        known = 0
        idle = {}
        for since, places in self.idle_nodes.items():
            if places & free:
                idle[since] = places & free
                known |= places
        if fresh := free & ~known:
            idle[now] = idle.get(now, 0) | fresh
        self.idle_nodes = idle
        return bool(fresh)


@dataclass(slots=True)
class State:
    """Everything at one moment.

    Attributes:
        machine: the machine and the site's settings.
        workload: of each task only the kind may be read by a scheduler that is not clairvoyant.
        backlog: what waits.
        ledger: what is free in live pilots.
        allocations: those that have not ended by id, the oldest first.
        estimates: of runtimes.
        attempts: how often each task was started.
        idle: what a job could have at once; empty when the scheduler does not tell.
        charged: node-seconds of allocations that have ended.
    """

    machine: Machine
    workload: Workload
    backlog: Backlog
    ledger: Ledger
    allocations: dict[str, Allocation]
    estimates: Estimates
    attempts: list[int]
    idle: list[Idle] = field(default_factory=list)
    charged: float = 0.0

    @property
    def budget(self) -> float | None:
        """Node-seconds that may still be charged, as the service counts them: those that have not
        ended may run to the end of their time.
        """
        budget = self.machine.policy.budget
        if budget is None:
            return None
        return budget - self.charged - sum(one.reserved for one in self.allocations.values())


class Planner(Protocol):
    """Decides what starts where, and which allocations to ask for."""

    @property
    def name(self) -> str:
        """Shown in tables."""

    @property
    def idle_timeout(self) -> float | None:
        """Seconds without work after which a pilot ends; ``None``: the machine's setting."""

    @property
    def interval(self) -> float | None:
        """Seconds between its looks at the backlog; ``None``: the machine's, on change only."""

    def place(self, state: State, now: float) -> Pass:
        """What starts now (ids are numbers of tasks as text)."""

    def pack(self, state: State, now: float) -> Plan:
        """What to ask for and to give up now."""
