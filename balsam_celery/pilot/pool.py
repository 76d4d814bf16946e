"""The worker's pool: starts attempts when their cores are free, on threads that stay.

Celery's own pools run a function per message; here a message only adds attempts, and the pool
decides when each starts. It also owns killing: what it runs ends by a verdict, never by a signal
alone.
"""

from __future__ import annotations

import logging
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from celery.concurrency.base import BasePool

from balsam_celery.pilot.attempt import Attempt
from balsam_celery.pilot.ending import Ending
from balsam_celery.pilot.signals import WARNINGS
from balsam_celery.pilot.slots import Slots
from balsam_celery.wire import Ended, Outcome

logger = logging.getLogger(__name__)

#: By which those end programs who end everything: a user, a scheduler, which may warn them first.
_ENDING_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM, *WARNINGS)
#: Those that MPICH's mpiexec tells of by their bare numbers. Not HUP and INT: a program that fails
#: ends with 1 or 2 all the time.
_BARE_SIGNALS = (signal.SIGKILL, signal.SIGTERM)
#: Its exit code when it loses ranks or its own proxies before it knows by what.
_LOST_RANKS = 255
#: Seconds within which a worker learns that its pilot ends: a little more than the watchdog's tick.
_CAUSE_WITHIN = 1.5

Run = Callable[[Attempt], Ended]
#: Takes an outcome; the flag tells that a slot went idle, so that nothing is gained by waiting.
Report = Callable[[Ended, bool], None]


class AttemptPool(BasePool):
    """Runs attempts; see :meth:`attach` for what makes it work.

    Attributes:
        limit: concurrency as ``celery inspect stats`` shows it: what placement says is free or
            in use here. What may start is decided by the cores themselves.
        processed: attempts that started here.
    """

    signal_safe = False
    task_join_will_block = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lock = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._work: queue.SimpleQueue[Attempt] = queue.SimpleQueue()
        self._stopping: tuple[Outcome, str] | None = None
        self._doubts: dict[str, str] = {}  # why nodes may be lost, by name
        self.processed = 0

    def attach(self, slots: Slots, run: Run, ending: Ending, report: Report) -> None:
        """Give the pool its cores, what runs and ends an attempt, and where outcomes go."""
        self._slots = slots
        self._run = run
        self._ending = ending
        self._report = report

    def submit(self, attempts: Sequence[Attempt]) -> None:
        """Take attempts; each starts as soon as its cores are free."""
        with self._lock:
            stopping = self._stopping
            if stopping is None:
                for attempt in attempts:
                    self._slots.add(attempt)
                self._dispatch(self._slots.start())
                return
        for attempt in attempts:
            self._report(attempt.ended(*stopping), True)

    def _dispatch(self, attempts: Sequence[Attempt]) -> None:
        left = deque(attempts)
        while left:
            attempt = left.popleft()
            if self._idle:
                self._idle -= 1
            else:
                name = f"waiter-{len(self._threads) + 1}"
                thread = threading.Thread(target=self._serve, name=name, daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    # programs have taken all processes that there can be
                    self._slots.release(attempt)
                    why = attempt.finish() or ("unfit", f"cannot start: {error}")
                    self._report(attempt.ended(*why), True)
                    left += self._slots.start()
                    continue
                self._threads.append(thread)
            self.processed += 1
            self._work.put(attempt)

    def _serve(self) -> None:
        while True:
            attempt: Attempt | None = self._work.get()
            while attempt is not None:
                attempt = self._serve_one(attempt)

    def _serve_one(self, attempt: Attempt) -> Attempt | None:
        """Run one to its end; returns the next one for this thread, if its end made room."""
        try:
            ended = self._run(attempt)
        except Exception as error:
            logger.exception("attempt %s: a fault of the pilot", attempt.brand)
            attempt.finish()
            self._ending.end(attempt, 0)
            ended = attempt.ended("lost", f"a fault of the pilot: {error!r}")
        with self._lock:
            ended = self._with_cause(ended, attempt)
            self._slots.release(attempt)
            starting = self._slots.start() if self._stopping is None else []
            following = starting.pop(0) if starting else None
            if following is None:
                self._idle += 1
            else:
                self.processed += 1
            # before anyone is told that it runs no more: a drain must find its outcome delivered;
            # and before anything else, which may fail
            self._report(ended, following is None)
            self._dispatch(starting)
            self._lock.notify_all()
        return following

    def _with_cause(self, ended: Ended, attempt: Attempt) -> Ended:
        """``ended``, or ``lost`` where a node of it had trouble, or the outcome of :meth:`drain`.

        Who ends a whole allocation signals programs and worker in any order: an end by a signal
        that is not ours waits for a moment to see whether the worker is to stop too. A launcher
        that loses a node ends before anybody is sure of the loss, with an exit code of its own.
        """
        launched = attempt.launched is not None
        code = ended.exit_code or 0
        # a shell or a launcher tells of a signal by its own exit code
        told = (ended.signal or code - 128) in _ENDING_SIGNALS
        failed = ended.outcome == "signal" or (ended.outcome == "exit" and ended.exit_code != 0)
        if failed and (
            told or (launched and code in (*_BARE_SIGNALS, _LOST_RANKS)) or self._doubt(attempt)
        ):
            self._lock.wait_for(lambda: self._stopping is not None, _CAUSE_WITHIN)
        if failed and self._stopping is not None:
            outcome, reason = self._stopping
            return replace(ended, outcome=outcome, reason=reason)
        if failed and (doubt := self._doubt(attempt)):
            return replace(ended, outcome="lost", reason=f"{doubt} ({ended.reason})")
        return ended

    def _doubt(self, attempt: Attempt) -> str:
        nodes = [share.node for share in attempt.spec.shares if share.node in self._doubts]
        return attempt.doubt or (self._doubts[nodes[0]] if nodes else "")

    def doubt(self, node: str, reason: str) -> None:
        """A node may be lost, and with it what runs there now or later, until the reason is ""."""
        with self._lock:
            if reason:
                self._doubts[node] = reason
                return
            past = self._doubts.pop(node, "")
            for attempt in self._slots.running.values():
                if past and attempt.is_on(node):
                    attempt.doubt = past

    def running(self) -> list[Attempt]:
        """Attempts that run."""
        with self._lock:
            return list(self._slots.running.values())

    def waiting(self) -> list[Attempt]:
        """Attempts that wait for their cores, in order."""
        with self._lock:
            return list(self._slots.waiting.values())

    def condemn(
        self,
        verdicts: Sequence[tuple[tuple[str, int], Outcome, str]],
        *,
        waiting_only: bool = False,
        gently: bool = True,
    ) -> list[tuple[str, int]]:
        """End attempts with imposed outcomes: waiting ones at once, running ones in the background.

        Args:
            verdicts: (key, outcome, reason) each.
            waiting_only: leave those that run alone.
            gently: those with a ``checkpoint_grace`` have time for a checkpoint.

        Returns:
            Keys that are not here.
        """
        unknown, withdrawn, doomed = [], [], []
        with self._lock:
            for key, outcome, reason in verdicts:
                if (waiting := self._slots.withdraw(key)) is not None:
                    withdrawn.append(waiting.ended(outcome, reason))
                elif (attempt := self._slots.running.get(key)) is None:
                    unknown.append(key)
                elif not waiting_only and attempt.condemn(outcome, reason):
                    doomed.append(attempt)
        for ended in withdrawn:
            self._report(ended, True)
        if doomed:
            self._ending.begin(doomed, gently=gently)
        return unknown

    def drain(self, reason: str, outcome: Outcome = "drained", *, gently: bool = True) -> None:
        """Start nothing more and end all that waits or runs; returns when it has ended.

        Args:
            reason: of each end.
            outcome: ``drained`` tells the service that the whole pilot stops, ``lost`` that this
                worker alone does.
            gently: as in :meth:`condemn`.
        """
        with self._lock:
            self._stopping = outcome, reason
            self._lock.notify_all()
            keys = [*self._slots.waiting, *self._slots.running]
        self.condemn([(key, outcome, reason) for key in keys], gently=gently)
        with self._lock:
            self._lock.wait_for(lambda: not self._slots.running)

    def on_apply(self, *args: Any, **kwargs: Any) -> Any:
        """Never called: the worker knows no Celery task that runs in Python."""
        raise NotImplementedError("a pilot's worker runs programs only")

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()  # type: ignore[misc]  # not in the stubs
        info.update({"threads": len(self._threads), "processed": self.processed})
        return info
