"""A worker's watch: wall times, orphans, the pilot's life, and the signal to drain."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence

from balsam_celery.pilot.attempt import Attempt
from balsam_celery.pilot.context import Parent
from balsam_celery.pilot.pool import AttemptPool
from balsam_celery.pilot.process import Spawner, peak_memory
from balsam_celery.pilot.runner import timeout_reason
from balsam_celery.pilot.signals import ALONE, TOGETHER, noted, outlive_warnings, wait
from balsam_celery.wire import Outcome

logger = logging.getLogger(__name__)

#: Seconds between looks when nothing is due.
_TICK = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Watchdog(threading.Thread):
    """The thread. Make it on the main thread: it takes the process's signals.

    Args:
        pool: whose attempts it watches.
        spawner: whose orphans it reaps.
        parent: pid of the process that forked the worker, and what its death means. A keeper alone
            says what to do: who ends a node signals both.
        on_drain: called once, on this thread, when the worker is to stop; with the reason,
            the outcome of its attempts, and whether there is time for checkpoints.
        last_moment: when the pilot stops what runs, seconds since the epoch.
    """

    def __init__(
        self,
        pool: AttemptPool,
        spawner: Spawner,
        parent: tuple[int, Parent],
        on_drain: Callable[[str, Outcome, bool], None],
        last_moment: float,
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._pool = pool
        self._spawner = spawner
        self._parent = parent
        self._on_drain = on_drain
        self._last_moment = last_moment
        self._wake, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (*_SIGNALS, ALONE, TOGETHER):
            signal.signal(number, noted)
        outlive_warnings()
        # the kernel's signal becomes a byte here whatever the main thread is busy with
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def run(self) -> None:
        """Watch until the worker is to stop."""
        while True:
            ready = wait({self._wake: False}, self._check())
            received = os.read(self._wake, 64) if ready else b""
            pid, parent = self._parent
            ending = (TOGETHER,) if parent.orders else _SIGNALS
            if any(number in ending for number in received):
                self._on_drain("its pilot stops", "drained", True)
                return
            if parent.orders and ALONE in received:
                self._on_drain("its node is taken away", "lost", False)
                return
            if os.getppid() != pid:
                self._on_drain(f"{parent.name} died", parent.outcome, False)
                return

    def _check(self) -> float:
        """Act on what is due; returns seconds until the next look."""
        now = time.monotonic()
        running = self._pool.running()
        late = [attempt for attempt in running if attempt.deadline <= now]
        if late:
            self._pool.condemn(
                [(attempt.key, "timeout", timeout_reason(attempt.spec)) for attempt in late]
            )
        self._tell_of_the_end(running)
        for attempt in running:
            if attempt.pid is not None and not attempt.over:
                attempt.peak = max(attempt.peak, peak_memory(attempt.pid))
        self._spawner.orphans()
        due = min((a.deadline for a in running if a.deadline > now), default=now + _TICK)
        return max(0.0, min(_TICK, due - now))

    def _tell_of_the_end(self, running: Sequence[Attempt]) -> None:
        """End what needs the rest of the allocation for its checkpoint."""
        left = self._last_moment - time.time()
        near = [one for one in running if left <= one.spec.checkpoint_grace > 0]
        if near:
            reason = "the allocation's end is near"
            self._pool.condemn([(attempt.key, "cut", reason) for attempt in near])
