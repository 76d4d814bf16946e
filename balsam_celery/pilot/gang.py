"""The gang worker of a pilot over several hosts, as the pilot's main process keeps it."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from balsam_celery.launchers.steps import end_step
from balsam_celery.pilot.attempt import attempt_mark, rank_mark
from balsam_celery.pilot.channel import Channel, ChannelBroken
from balsam_celery.pilot.context import WorkerContext
from balsam_celery.pilot.crew import Crew, Loss, Member, delivered
from balsam_celery.pilot.host import Host
from balsam_celery.pilot.link import (
    AskSweep,
    FromGang,
    NodeDoubt,
    NodeLost,
    SweepDone,
    ToGang,
    decode_message,
    encode,
)
from balsam_celery.pilot.process import end_processes
from balsam_celery.pilot.ranks import step_name
from balsam_celery.pilot.sweep import PAIR_TOKEN
from balsam_celery.pilot.sweeping import Done
from balsam_celery.wire import MalformedMessage

logger = logging.getLogger(__name__)

#: Seconds between tries to make sure that a job step has ended, and to fork.
_STEP_PAUSE = _PAUSE = 1.0
#: Sweeps nodes: (nodes, or ``None`` for all; marks; attempts; grace; told at the end; only this
#: signal, or 0) → number.
SweepNodes = Callable[
    [tuple[str, ...] | None, tuple[str, ...], tuple[str, ...], float, Done, int], int
]
#: Forgets the sweep of a number for which only certain nodes are waited for, if it is so.
Abandon = Callable[[int, Collection[str]], bool]


class Gang:
    """Its process, and the pair of sockets by which it asks for sweeps.

    Args:
        context: the worker.
        crew: of this process; gets one more member.
        sweep: ends processes on other nodes.
        abandon: lets a sweep be.
        before_fork: see :class:`Crew`.
    """

    def __init__(
        self,
        context: WorkerContext,
        crew: Crew,
        sweep: SweepNodes,
        abandon: Abandon,
        before_fork: Callable[[], Iterable[int]],
    ) -> None:
        self._crew = crew
        self._sweep = sweep
        self._abandon = abandon
        self._before_fork = before_fork
        self._context = context
        self._member = Member(context)
        crew.members.append(self._member)
        self._channel: Channel | None = None
        self._losses: list[Loss] = []
        self._doubts: dict[str, NodeLost | NodeDoubt] = {}  # by node; a new process is told again
        self._cleaning = self._hopeless = False
        self._reason = ""
        self._cleaner = 0  # pid of the child that does it
        self._due: Callable[[], None] | None = None  # there was no room for a process
        self._due_at = 0.0
        self._sweep_of_all = 0  # number of the sweep that follows
        self.stopping = False
        self.delivered = True
        self.given_up = False

    @property
    def ready(self) -> bool:
        """It consumes."""
        return self._member.ready

    @property
    def quiet(self) -> bool:
        """No process of it lives, nor of what it ran, as far as can be known."""
        return self._member.pid is None and not self._cleaning and self._due is None

    def start(self, silent: frozenset[str] = frozenset()) -> None:
        """Fork it; what an earlier one had on ``silent`` nodes may live there."""
        self._member.context = replace(self._context, silent=silent)
        self._attempt(self._fork)

    def _attempt(self, what: Callable[[], None]) -> None:
        """Do what takes a process, now or, where programs have taken all, once there is room."""
        hindered, self._due = self._due is not None, None
        try:
            what()
        except OSError as error:
            if not hindered:
                logger.error("worker %s: %s: trying again", self._context.name, error.strerror)
            self._due, self._due_at = what, time.monotonic() + _PAUSE

    def _fork(self) -> None:
        if self.stopping:
            self.delivered = False  # what the one before has left in its outbox stays there
            return
        here, there = socket.socketpair()
        self._channel = Channel(here, PAIR_TOKEN, "head")
        with there:
            try:
                self._crew.fork(self._member, there.fileno())
            except OSError:
                self._close()
                raise
        for message in self._doubts.values():
            self._tell(message)

    def files(self) -> dict[int, bool]:
        """What to wait for, and whether to write."""
        return {} if self._channel is None else {self._channel.fileno(): self._channel.writing}

    def turn(self, reaped: Mapping[int, int]) -> list[Loss]:
        """Hear what it asks; returns its losses since the last turn.

        Args:
            reaped: children that have ended, with their wait status.
        """
        if self._due is not None and time.monotonic() >= self._due_at:
            self._attempt(self._due)
        if self._cleaner in reaped:
            status = reaped[self._cleaner]
            self._cleaner = 0
            self._cleaned(status)
        if self._channel is not None:
            try:
                self._channel.flush()
                texts = self._channel.receive()
            except ChannelBroken:
                self._close()  # it has died, and will be reaped
                texts = []
            for text in texts:
                try:
                    self._asked(decode_message(text, FromGang | None))
                except MalformedMessage as error:
                    logger.error("refused a request that is not one: %s", error)
        losses, self._losses = self._losses, []
        return losses

    def _asked(self, one: AskSweep) -> None:
        channel = self._channel

        def done(unconfirmed: str) -> None:
            if self._channel is channel:  # else another process asks by now
                self._tell(SweepDone(one.number, unconfirmed))

        # while ranks have their grace, launchers and their daemons, which carry the other mark, are
        # left alone: they would not wait for it
        marks = [rank_mark(one.attempt)]
        if one.signal:
            self._sweep(one.nodes, tuple(marks), (), 0.0, done, one.signal)
            return
        if one.grace == 0:
            marks.append(attempt_mark(one.attempt))
        self._sweep(one.nodes, tuple(marks), (one.attempt,), one.grace, done, 0)

    def tell_of(self, host: Host, left: int) -> None:
        """Tell it how a node of the pilot fares, and how many are not lost."""
        message: NodeLost | NodeDoubt
        if host.lost:
            message = NodeLost(host.name, host.lost, left)
        else:
            why = host.trouble if host.channel is None else host.asked
            message = NodeDoubt(host.name, why)
        self._doubts[host.name] = message
        self._tell(message)

    def _tell(self, message: ToGang) -> None:
        if self._channel is not None:
            try:
                self._channel.send(encode(message))
            except ChannelBroken:
                self._close()

    def _close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = None

    def died(self, status: int) -> None:
        """It was reaped: what it ran is ended on all nodes, then a new one takes its place."""
        self._close()
        if self.stopping:
            self.delivered = self.delivered and delivered(status)
            if os.waitstatus_to_exitcode(status) >= 0:
                return  # it has swept by itself
            reason = ""
        else:
            reason = self._crew.bury(self._member, status)
        self._cleaning = True
        self._reason = reason
        self._hopeless = self._member.hopeless()
        self._attempt(self._clean)

    def _clean(self) -> None:
        """End launchers, which run here, and job steps; in a child, for it may take long."""
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for file in self._before_fork():
                    os.close(file)
                end_processes((self._context.mark,), self._context.brands, 0)
                self._end_steps()
                status = 0
            except BaseException:
                logger.exception("what worker %s has left", self._context.name)
            finally:
                os._exit(status)
        self._crew.others.add(pid)
        self._cleaner = pid

    def _end_steps(self) -> None:
        """A launcher that is killed leaves its job step to Slurm."""
        environment = self._context.pilot.environment
        if "SLURM_JOB_ID" not in environment:
            return
        for task, attempt in self._context.unended:
            while not end_step(step_name(task, attempt), environment):
                time.sleep(_STEP_PAUSE)

    def _cleaned(self, status: int) -> None:
        """The child has ended: what is left on all nodes is swept."""
        if status != 0:
            logger.error("what worker %s has left is ended again", self._context.name)
            self._attempt(self._clean)
            return
        mark, brands = self._context.mark, self._context.brands
        self._sweep_of_all = self._sweep(None, (mark,), brands, 0.0, self._swept, 0)

    def _swept(self, unconfirmed: str) -> None:
        """All nodes have confirmed, or nobody will."""
        self._cleaning = False
        if unconfirmed:
            self.delivered = False
        if self.stopping:
            if self._context.unended:
                self.delivered = False  # nobody has told of their end
        elif self._hopeless:
            self._give_up()
            self._losses.append(Loss(self._context, self._reason, "gone"))
        else:
            self._losses.append(Loss(self._context, self._reason, "restarted"))
            self.start()

    def _give_up(self) -> None:
        if not self.given_up:
            logger.error("worker %s is given up", self._context.name)
            self.given_up = True
            self._losses.append(Loss(self._context, self._reason, "unknown"))

    def cannot_be_cleaned(self, silent: frozenset[str]) -> list[Loss]:
        """Nobody can ask some nodes: it comes back without their word.

        What it had there stays its own until somebody knows, or the scheduler has given them up.
        One that does not come back waits for that too.
        """
        if self._cleaning and not self.stopping:
            if self._hopeless:
                self._give_up()
            elif self._abandon(self._sweep_of_all, silent):
                logger.error("worker %s: not swept: %s", self._context.name, ", ".join(silent))
                self._cleaning = False
                self._losses.append(Loss(self._context, self._reason, "restarted"))
                self.start(silent)
        losses, self._losses = self._losses, []
        return losses
