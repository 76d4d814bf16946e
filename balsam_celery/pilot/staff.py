"""All workers of a pilot, wherever they run: what its main process has to know of them."""

from __future__ import annotations

import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from celery import Celery

from balsam_celery import procs
from balsam_celery.cutoff import STOP_SLACK
from balsam_celery.errors import BalsamError
from balsam_celery.pilot.context import Parent, PilotContext
from balsam_celery.pilot.crew import Crew, Loss, Member, delivered
from balsam_celery.resources import NodeCapacity


class StartError(BalsamError):
    """The pilot cannot start; one line says why."""


class Staff(ABC):
    """The workers; nothing here blocks.

    Attributes:
        delivered: so far, every worker that stopped had all its outcomes acknowledged, and it is
            known that nothing of it lives.
        asked: why the whole pilot is to end, if somebody has told a node so.
    """

    delivered: bool = True
    asked: str = ""
    _crew: Crew

    @abstractmethod
    def start(self) -> None:
        """Begin to start them.

        Raises:
            StartError: that is impossible.
        """

    def adopt(self, pid: int) -> None:
        """Reap a child of this process that is no worker, and let it be until then."""
        self._crew.others.add(pid)

    @abstractmethod
    def files(self) -> dict[int, bool]:
        """What to wait for, and whether to write."""

    @abstractmethod
    def turn(self) -> Iterable[Loss]:
        """Do what is due; returns the losses since the last turn.

        Raises:
            StartError: it turns out that no worker will ever consume.
        """

    @abstractmethod
    def consuming(self) -> tuple[NodeCapacity, ...] | None:
        """The nodes, once all of their workers consume."""

    @property
    @abstractmethod
    def deserted(self) -> bool:
        """No worker stays alive."""

    @abstractmethod
    def lose(self, node: str, reason: str, *, given_back: bool = False) -> None:
        """The scheduler has taken a node away, or is to be given it back: nothing runs there."""

    @abstractmethod
    def stop(self, reason: str) -> None:
        """Begin to end them all."""

    @property
    @abstractmethod
    def stopped(self) -> bool:
        """No process of them lives; asked after :meth:`stop`, between turns."""


class OneHost(Staff):
    """The workers of one host, its node being real or its virtual nodes several.

    Args:
        context: the pilot.
        app: a Celery application without a connection.
        before_fork: see :class:`Crew`.
    """

    def __init__(
        self,
        context: PilotContext,
        app: Celery[Any],
        before_fork: Callable[[], Iterable[int]],
    ) -> None:
        self._context = context
        self._crew = Crew(app, Parent(), before_fork)
        self._crew.members = [Member(one) for one in context.workers()]
        self._stopping = False
        self._kill_at = 0.0
        self._released: dict[str, str] = {}  # why, by name of the node

    def start(self) -> None:
        procs.become_subreaper()
        for member in self._crew.members:
            self._crew.start(member)

    def files(self) -> dict[int, bool]:
        return {}

    def turn(self) -> list[Loss]:
        workers, _ = self._crew.reap()
        if not self._stopping:
            losses = [self._ended(member, status) for member, status in workers]
            return [one for loss in losses for one in loss.steps()]
        for member, status in workers:
            self.delivered = self.delivered and delivered(status)
            self._crew.end_programs(member)
        if self._crew.living and time.monotonic() > self._kill_at:
            self._kill_at = float("inf")
            self._crew.signal(signal.SIGKILL)
        return []

    def _ended(self, member: Member, status: int) -> Loss:
        reason = self._released.get(member.context.node)
        if reason is None:
            return self._crew.replace(member, status)
        self._crew.end_programs(member)
        return Loss(member.context, reason, "gone")

    def consuming(self) -> tuple[NodeCapacity, ...] | None:
        return self._context.nodes if all(member.ready for member in self._crew.members) else None

    @property
    def deserted(self) -> bool:
        return not self._crew.living and not self._crew.waiting

    def lose(self, node: str, reason: str, *, given_back: bool = False) -> None:
        """One host is lost as a whole, and then nobody asks; a virtual node may be given back."""
        for member in self._crew.living if given_back and not self._stopping else ():
            if member.context.node == node and node not in self._released:
                assert member.pid is not None, "it lives"
                self._released[node] = reason
                os.kill(member.pid, signal.SIGTERM)

    def stop(self, reason: str) -> None:
        self._stopping = True
        patience = self._context.patience(time.time())
        self._kill_at = time.monotonic() + patience + STOP_SLACK
        # what the one before has left in its outbox stays there
        self.delivered = self.delivered and not self._crew.waiting
        self._crew.waiting = []
        self._crew.signal(signal.SIGTERM)

    @property
    def stopped(self) -> bool:
        if self._crew.living:
            return False
        for member in self._crew.members:
            self._crew.end_programs(member)
        return True
