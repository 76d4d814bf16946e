"""How long tasks are expected to run: as the user says, else as was learned."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from sqlalchemy import Connection

from balsam_celery.runtimes import (
    ENOUGH,
    FITS,
    SURE,
    Histogram,
    Learned,
    after_cut,
    left,
    shape_of,
)
from balsam_celery.states import State
from balsam_celery.store import runtimes
from balsam_celery.store.rows import TaskRow

#: Seconds for which a connection keeps what it has read.
KEEP = 10.0
_KEY = "balsam.estimates"


class Runs(Protocol):
    """What is read of a task, or of tasks of one shape."""

    @property
    def application(self) -> str: ...
    @property
    def num_nodes(self) -> int: ...
    @property
    def ranks_per_node(self) -> int: ...
    @property
    def threads_per_rank(self) -> int: ...
    @property
    def gpus_per_rank(self) -> float: ...
    @property
    def wall_time(self) -> int: ...
    @property
    def expected_time(self) -> float | None: ...
    @property
    def ran(self) -> float | None: ...
    @property
    def restartable(self) -> bool: ...
    @property
    def checkpoint_grace(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Estimates:
    """Expected times; ``None`` where neither the user nor earlier runs tell one.

    Attributes:
        learned: what is known.
        read: when it was, seconds since the epoch.
    """

    learned: Learned = field(default_factory=Learned)
    read: float = 0.0
    _known: dict[tuple[object, ...], Histogram | None] = field(default_factory=dict)
    _fits: dict[Histogram, float] = field(default_factory=dict)

    def fits(self, task: Runs) -> float | None:
        """Seconds in which it has most likely ended: for a start that must end in time."""
        expected = None if task.expected_time is None else SURE * task.expected_time
        if expected is None and (known := self._histogram(task)) is not None:
            expected = self._fits.get(known)
            if expected is None:
                expected = self._fits[known] = known.quantile(FITS)
        expected = after_cut(expected, task.ran, task.wall_time)
        if expected is None or not task.restartable:
            return expected
        # the last of it is for its checkpoint, should it not have ended by then
        return expected + task.checkpoint_grace

    def mean(self, tasks: Runs) -> float | None:
        """Mean seconds: for amounts of work, which are sums over many tasks.

        A quantile would be wrong there, and most where a few run much longer than the others.
        """
        expected = tasks.expected_time
        if expected is None and (known := self._histogram(tasks)) is not None:
            expected = known.mean
        return after_cut(expected, tasks.ran, tasks.wall_time)

    def remaining(self, task: TaskRow, grace: int, now: float) -> float:
        """Mean seconds until a task that is on a pilot gives back what it holds.

        Too short a guess costs little, for packing looks again soon; too long a one asks for
        nodes that nobody needs. A task that has outlived its estimate goes on, as do those that
        ran longer than it has so far; only its limit ends it.

        Args:
            task: DISPATCHED or RUNNING.
            grace: seconds between TERM and KILL once its limit is over.
            now: seconds since the epoch.
        """
        limit = max(0.0, task.changed + task.wall_time + grace - now)
        # of a task that is only dispatched, ``changed`` is not when it started
        elapsed = max(0.0, now - task.changed) if task.state is State.RUNNING else 0.0
        known = self._histogram(task)
        rest = left(task.expected_time, known, task.ran, task.wall_time, elapsed)
        return limit if rest is None else min(limit, rest)

    def _histogram(self, task: Runs) -> Histogram | None:
        if not self.learned.applications:
            return None
        shape = (task.num_nodes, task.ranks_per_node, task.threads_per_rank, task.gpus_per_rank)
        key = (task.application, *shape)
        if key not in self._known:
            self._known[key] = self.learned.histogram(task.application, shape_of(*shape))
        return self._known[key]


def estimates(conn: Connection, now: float) -> Estimates:
    """What is known at ``now``, or was at most :data:`KEEP` seconds before.

    Kept with the database connection, which no two threads use at once.
    """
    kept: Estimates | None = conn.info.get(_KEY)
    if kept is None or not 0 <= now - kept.read < KEEP:
        kept = conn.info[_KEY] = Estimates(runtimes.learned(conn, ENOUGH), now)
    return kept
