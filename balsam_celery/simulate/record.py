"""What a run leaves: attempts, allocations and sums, from which metrics and the picture come."""

from __future__ import annotations

from dataclasses import dataclass, field

from balsam_celery.resources import NodeShare
from balsam_celery.simulate.state import Allocation


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a task; ``outcome``: ``"done"``, ``"timeout"`` (limit over) or ``"cut"``."""

    task: int
    number: int
    allocation: str
    shares: tuple[NodeShare, ...]
    start: float
    end: float
    outcome: str


@dataclass(slots=True)
class Promise:
    """What a task that did not fit was promised: ``since`` when, and to start by ``by``."""

    since: float
    by: float


@dataclass(slots=True)
class Record:
    """Sums over a run; node-seconds and seconds.

    Attributes:
        allocations: those that started, in order of their ends.
        attempts: each run, when a trace was asked for.
        lost: node-seconds of attempts that an allocation's end cut.
        first_start: by task, -1: it never started.
        finished: by task, -1: it never ended.
        done, timeouts, orphans: tasks that succeeded; ran into their limit; never started because
            a parent failed.
        promised: the longest that a task at the head of the queue (the widest of the highest
            priority) waited from when it was given a reservation.
        late: most seconds by which one of those started after the time first promised.
        passes, plans: how often placement and packing were run.
    """

    first_start: list[float]
    finished: list[float]
    allocations: list[Allocation] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    lost: float = 0.0
    done: int = 0
    timeouts: int = 0
    orphans: int = 0
    promised: float = 0.0
    late: float = 0.0
    passes: int = 0
    plans: int = 0

    @property
    def ended(self) -> int:
        """Tasks that are over, however."""
        return self.done + self.timeouts + self.orphans

    @property
    def used(self) -> float:
        """Node-seconds of attempts that succeeded, of what each allocation had the most use."""
        return sum(one.used for one in self.allocations)

    @property
    def charged(self) -> float:
        """Node-seconds from start to end of all allocations."""
        return sum(one.charged for one in self.allocations)
