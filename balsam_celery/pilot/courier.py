"""Carries outcomes to the service and brings its answers; one thread, one Redis connection.

Every outcome is written to the outbox first, then pushed to the service's inbox, then pushed again,
less and less often, until the service acknowledges it (R5). While Redis is away
outcomes wait in the outbox and programs run on.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import redis

from balsam_celery import keys
from balsam_celery.outbox import Outbox
from balsam_celery.pilot.attempt import Attempt
from balsam_celery.pilot.context import WorkerContext
from balsam_celery.pilot.post import Post
from balsam_celery.pilot.process import peak_memory
from balsam_celery.wire import Ended, Heartbeat, Record, Started, encode

logger = logging.getLogger(__name__)

#: Outcomes are gathered for so long, unless a slot is idle (DESIGN section 3).
GATHER = 0.02
#: A start is reported on its own only for programs that live so long; the outcome tells it too.
ANNOUNCE_AFTER = 0.05
#: Digits of a limit that is none of ours.
_DIGITS = 10
#: Seconds between looks at limits and at what is due to be sent again.
TICK = 1.0


class Courier(threading.Thread):
    """The thread; :meth:`put`, :meth:`announce` and :meth:`tell` may be called from any other.

    Args:
        context: the worker.
        outbox: where outcomes are kept.
        client: its own Redis client.
        on_limit: told the concurrency that placement sees.
    """

    def __init__(
        self,
        context: WorkerContext,
        outbox: Outbox,
        client: redis.Redis,
        on_limit: Callable[[int], None],
    ) -> None:
        super().__init__(name="courier", daemon=True)
        self._outbox = outbox
        self._on_limit = on_limit
        site, pilot = context.pilot.site, context.pilot.pilot
        prefix = site.settings.key_prefix
        self._node = context.node
        self._pid = 0
        self._heartbeats = keys.heartbeats(prefix, pilot)
        self._limits = keys.limits(prefix, pilot)
        self._beat_every = site.settings.pilot.heartbeat_interval
        self._post = Post(client, prefix, pilot, context.node)
        self._lock = threading.Condition()
        self._outcomes: deque[Ended] = deque()
        self._first = 0.0  # when the oldest of them came
        self._urgent = False
        self._records: list[Record] = []
        self._starts: deque[Attempt] = deque()
        self._announced: list[Attempt] = []
        self._planned = False  # the thread will look at the starts by itself
        self._state = "running"
        self._finish_by: float | None = None

    # called by other threads

    def put(self, outcome: Ended, idle: bool) -> None:
        """Deliver an outcome; at once when a slot is idle."""
        with self._lock:
            if not self._outcomes:
                self._first = time.monotonic()
            self._outcomes.append(outcome)
            if (idle and not self._urgent) or len(self._outcomes) == 1:
                self._urgent = self._urgent or idle
                self._lock.notify()

    def announce(self, attempt: Attempt) -> None:
        """Tell the service of a start, if the program lives long enough for that to matter."""
        with self._lock:
            self._starts.append(attempt)
            if not self._planned:
                self._planned = True
                self._lock.notify()

    def tell(self, record: Record) -> None:
        """Deliver a record that needs no acknowledgement."""
        with self._lock:
            self._records.append(record)
            self._urgent = True
            self._lock.notify()

    def again(self, task: str, attempt: int) -> bool:
        """Deliver the outcome of an attempt that has ended here again; false if it is not known."""
        outcome = self._outbox.outcome(task, attempt)
        if outcome is None:
            return False
        self.put(outcome, True)
        return True

    def finish(self, within: float) -> bool:
        """Deliver what is left and stop; tells whether all was acknowledged in so many seconds."""
        with self._lock:
            self._state = "draining"
            self._finish_by = time.monotonic() + within
            self._lock.notify()
        self.join()
        return not self._outbox.held()

    # the thread

    def run(self) -> None:
        """Carry on until :meth:`finish`."""
        self._pid = os.getpid()
        self._post.push([], self._outbox.unacknowledged())
        next_tick = next_beat = time.monotonic()
        while True:
            outcomes, records = self._gather(next_tick)
            now = time.monotonic()
            numbered = self._outbox.end(outcomes) if outcomes else []
            if numbered or records:
                self._post.push(records, numbered)
            finishing = self._finish_by
            if now >= next_tick or finishing is not None:
                next_tick = now + (TICK if finishing is None else 0.05)
                beat = now >= next_beat
                next_beat = now + self._beat_every if beat else next_beat
                self._tick(beat)
            if finishing is not None:
                with self._lock:
                    empty = not self._outcomes and not self._records
                if empty and (not self._outbox.held() or now > finishing):
                    self._tick(True)
                    return

    def _gather(self, until: float) -> tuple[list[Ended], list[Record]]:
        """Wait for something to do, not past ``until``."""
        with self._lock:
            while not self._urgent and self._finish_by is None:
                due = until
                if self._outcomes:
                    due = min(due, self._first + GATHER)
                if self._starts:
                    due = min(due, self._announce_due())
                left = due - time.monotonic()
                if left <= 0:
                    break
                self._lock.wait(left)
            if self._finish_by is not None and not self._urgent and not self._outcomes:
                self._lock.wait(max(0.0, min(0.05, until - time.monotonic())))
            outcomes = list(self._outcomes)
            self._outcomes.clear()
            self._urgent = False
            records = [*self._records, *self._due_starts()]
            self._records = []
            return outcomes, records

    def _announce_due(self) -> float:
        """When the oldest start is to be looked at, on the monotonic clock."""
        first = self._starts[0]
        return first.deadline - first.spec.wall_time + ANNOUNCE_AFTER

    def _due_starts(self) -> Sequence[Started]:
        due = []
        while self._starts and self._announce_due() <= time.monotonic():
            attempt = self._starts.popleft()
            if (start := _start_of(attempt)) is not None:
                attempt.peak = peak_memory(start.pid)
                self._announced.append(attempt)
                due.append(start)
        self._planned = bool(self._starts)
        return due

    def _announce_again(self) -> None:
        """A Redis that was away may have forgotten starts that it had taken."""
        self._announced = [attempt for attempt in self._announced if not attempt.over]
        if self._post.came_back:
            self._post.came_back = False
            starts = [_start_of(attempt) for attempt in self._announced]
            self._post.push([start for start in starts if start is not None], [])

    def _tick(self, beat: bool) -> None:
        commands: list[tuple[str, ...]] = [("HGET", self._limits, self._node)]
        if beat:
            self._outbox.mend()
            heartbeat = Heartbeat(time.time(), self._pid, self._state, self._outbox.held())
            commands.append(("HSET", self._heartbeats, self._node, encode(heartbeat)))
            commands.append(("EXPIRE", self._heartbeats, str(keys.HEARTBEATS_LAST)))
        answer = self._post.exchange(self._outbox.unacknowledged(), commands)
        if answer is None:
            return
        self._announce_again()
        if answer.acknowledged:
            self._outbox.acknowledge(answer.acknowledged)
        limit = answer.results[0]
        if isinstance(limit, bytes) and limit.isdigit() and len(limit) < _DIGITS:
            self._on_limit(int(limit))


def _start_of(attempt: Attempt) -> Started | None:
    """The report that its program runs, ``None`` unless it does."""
    if attempt.over or attempt.started is None or attempt.pid is None:
        return None
    return Started(attempt.spec.id, attempt.spec.attempt, attempt.started, attempt.pid)
