"""Workers on this host: forked, reaped, started again, given up."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from celery import Celery

from balsam_celery import procs
from balsam_celery.pilot import worker
from balsam_celery.pilot.context import Parent, WorkerContext
from balsam_celery.pilot.process import end_all
from balsam_celery.pilot.signals import wait

logger = logging.getLogger(__name__)

#: A worker that died so often within so many seconds is not started again.
_DEATHS, _WITHIN = 5, 60.0
#: Seconds between tries to fork a worker for which there was no room.
_AGAIN = 1.0

#: ``restarted``: a new one took its queue. ``unknown``: it is given up, and what lives of it nobody
#: can tell yet. ``gone``: nothing of one that was given up lives.
Fate = Literal["restarted", "gone", "unknown"]


@dataclass(frozen=True, slots=True)
class Loss:
    """A worker that died, or was lost with its node."""

    context: WorkerContext
    reason: str
    fate: Fate

    def steps(self) -> list[Loss]:
        """This, in the order in which it is to be told.

        That a worker is given up comes first: before its attempts come back, or they would be sent
        there again.
        """
        return [replace(self, fate="unknown"), self] if self.fate == "gone" else [self]


class Member:
    """A worker's place in the pilot, held by one process after another."""

    def __init__(self, context: WorkerContext) -> None:
        self.context = context
        self.pid: int | None = None
        self._ready = -1
        self._deaths: deque[float] = deque(maxlen=_DEATHS)

    def began(self, pid: int, ready: int) -> None:
        """A process has taken the place; ``ready`` is the pipe of its first word."""
        self.pid, self._ready = pid, ready

    def ended(self) -> None:
        """The process has been reaped."""
        os.close(self._ready)
        self.pid, self._ready = None, -1

    @property
    def ready(self) -> bool:
        """The worker has said that it consumes; its word stays in the pipe."""
        return self._ready >= 0 and bool(wait({self._ready: False}, 0))

    def hopeless(self) -> bool:
        """Count a death; tells whether it is one too many."""
        now = time.monotonic()
        self._deaths.append(now)
        return len(self._deaths) == _DEATHS and now - self._deaths[0] < _WITHIN


class Crew:
    """The workers that are children of this process, which has one thread.

    Args:
        app: a Celery application without a connection.
        parent: what a worker is to do when this process dies.
        before_fork: called before each fork; lets go of what a child must not share, and returns
            the descriptors that it must close.

    Attributes:
        members: one for each worker.
        others: pids of children that are no workers.
        waiting: members that get a process once there is room for one.
    """

    def __init__(
        self, app: Celery[Any], parent: Parent, before_fork: Callable[[], Iterable[int]]
    ) -> None:
        self._app = app
        self._parent = parent
        self._before_fork = before_fork
        self.members: list[Member] = []
        self.others: set[int] = set()
        self.waiting: list[Member] = []
        self._next_try = 0.0

    @property
    def living(self) -> list[Member]:
        """Those that have a process."""
        return [member for member in self.members if member.pid is not None]

    def start(self, member: Member) -> None:
        """Fork a worker now, or, where programs have taken all processes, once there is room."""
        try:
            self.fork(member)
        except OSError as error:
            logger.error("worker %s: %s: trying again", member.context.name, error.strerror)
            self.waiting.append(member)
            self._next_try = time.monotonic() + _AGAIN

    def fork(self, member: Member, sweeps: int | None = None) -> None:
        """Fork a worker; ``sweeps`` is its end of the channel by which it asks for sweeps.

        Raises:
            OSError: there is no room for a process or a descriptor.
        """
        inherited = self._before_fork()
        ready, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            pid = worker.fork(member.context, self._app, write, self._parent, inherited, sweeps)
        except OSError:
            os.close(ready)
            raise
        finally:
            os.close(write)
        member.began(pid, ready)
        logger.info("worker %s: process %d", member.context.name, pid)

    def _start_waiting(self) -> None:
        if not self.waiting or time.monotonic() < self._next_try:
            return
        self._next_try = time.monotonic() + _AGAIN
        with contextlib.suppress(OSError):
            while self.waiting:
                self.fork(self.waiting[0])
                del self.waiting[0]

    def reap(self) -> tuple[list[tuple[Member, int]], dict[int, int]]:
        """Reap children; returns workers and other children among them with their wait status.

        Also a good moment for those that wait to be started.
        """
        self._start_waiting()
        workers: list[tuple[Member, int]] = []
        others: dict[int, int] = {}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return workers, others
            if pid == 0:
                return workers, others
            for member in self.members:
                if member.pid == pid:
                    member.ended()
                    workers.append((member, status))
            if pid in self.others:
                self.others.remove(pid)
                others[pid] = status

    def replace(self, member: Member, status: int) -> Loss:
        """End what a dead worker ran, and start a new one in its place unless that is hopeless."""
        self.end_programs(member)
        reason = self.bury(member, status)
        if member.hopeless():
            logger.error("worker %s is given up", member.context.name)
            return Loss(member.context, reason, "gone")
        self.start(member)
        return Loss(member.context, reason, "restarted")

    def bury(self, member: Member, status: int) -> str:
        """Note a worker's death; returns how it died."""
        code = os.waitstatus_to_exitcode(status)
        reason = f"ended by signal {-code}" if code < 0 else f"exit status {code}"
        logger.error("worker %s died: %s", member.context.name, reason)
        return reason

    def end_programs(self, member: Member) -> None:
        """End what a dead worker has left: by its mark, and orphans that came to this process.

        For a subreaper alone, all of whose children are workers or ``others``.
        """
        marks = frozenset((member.context.mark,))
        while True:
            known = {one.pid for one in self.living if one.pid is not None} | self.others
            orphans = frozenset(procs.unknown_children(known))
            end_all(procs.Quarry(roots=orphans, marks=marks), 0)
            if not orphans:
                return

    def signal(self, number: int) -> None:
        """Send a signal to every worker."""
        for member in self.living:
            assert member.pid is not None, "it lives"
            if number == signal.SIGKILL:
                logger.error("worker %s does not stop: killed", member.context.name)
            os.kill(member.pid, number)


def delivered(status: int) -> bool:
    """Tell whether a worker that was told to stop ended with all its outcomes acknowledged."""
    return os.waitstatus_to_exitcode(status) == worker.DELIVERED
