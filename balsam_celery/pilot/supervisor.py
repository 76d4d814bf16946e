"""The pilot's main process: registers, exchanges with the service, ends the workers in time.

It has one thread, never blocks on a worker or node, and never runs a program itself, so that it can
fork a new worker at any moment. The workers are those of one host or of several
(:mod:`balsam_celery.pilot.staff`, :mod:`balsam_celery.pilot.hosts`).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Celery

from balsam_celery import keys
from balsam_celery.celeryapp import redis_client
from balsam_celery.errors import SiteError
from balsam_celery.pilot import worker
from balsam_celery.pilot.context import PilotContext
from balsam_celery.pilot.crew import Loss
from balsam_celery.pilot.fence import Fence
from balsam_celery.pilot.hosts import Hosts
from balsam_celery.pilot.leavings import Leavings
from balsam_celery.pilot.openfiles import allow_more
from balsam_celery.pilot.pidfiles import write_pid_file
from balsam_celery.pilot.post import Post
from balsam_celery.pilot.predecessors import end_leftovers
from balsam_celery.pilot.signals import WARNINGS, Signals, wait
from balsam_celery.pilot.staff import OneHost, Staff, StartError
from balsam_celery.private import write_private
from balsam_celery.wire import (
    Heartbeat,
    MalformedMessage,
    PilotEnded,
    PilotOrder,
    Record,
    Registered,
    WorkerLost,
    decode,
    encode,
)

logger = logging.getLogger(__name__)

#: Seconds between looks at Redis, at workers that start, and at workers that are to stop.
_TICK, _STARTING_TICK, _STOPPING_TICK = 0.5, 0.05, 0.05
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, *WARNINGS, signal.SIGCHLD)


class Supervisor:
    """One pilot, from its first worker to its last word."""

    def __init__(self, context: PilotContext, app: Celery[Any]) -> None:
        self._context = context
        self._settings = context.site.settings
        prefix = self._settings.key_prefix
        self._client = redis_client(context.site, timeout=2.0)
        self._post = Post(self._client, prefix, context.pilot, "pilot")
        self._control = keys.control(prefix, context.pilot)
        self._heartbeats = keys.heartbeats(prefix, context.pilot)
        self._records: dict[int, str] = {}  # numbered, until acknowledged
        self._last_number = 0
        self._losses: list[Loss] = []  # the service is to be told
        self._leavings: list[Leavings] = []
        self._registered = False
        self._next_tick = self._next_beat = 0.0
        self._state = "running"
        self._signals = Signals(_SIGNALS)
        self._staff: Staff
        if context.one_host:
            self._staff = OneHost(context, app, self._before_fork)
        else:
            allow_more()
            self._staff = Hosts(context, app, self._before_fork, lambda: self._post.reached)
        self._fence = Fence(context.allocation_dir, context.pilot, self._staff.adopt)

    def run(self) -> int:
        """Run until the allocation's end, an order to drain, or a signal; the exit status."""
        try:
            write_pid_file(self._context.directory / "pilot.pid")
            self._fence.raise_up()
            end_leftovers(self._context)
        except OSError as error:
            tell_error(self._context, f"cannot start: {error.strerror}: {error.filename}")
            return 1
        reason, status = None, 0
        try:
            self._staff.start()
            while reason is None:
                reason = self._turn()
        except StartError as error:
            reason, status = str(error), 1
            tell_error(self._context, reason)
        except OSError as error:
            # an end without a drain would take all that runs, on every node
            logger.exception("a fault of the pilot")
            reason, status = f"a fault of the pilot: {error}", 1
        self._drain(reason)
        return status

    def _turn(self) -> str | None:
        """Wait for something or a tick and act on it; returns why to drain, if there is reason."""
        files = {self._signals.fileno(): False, **self._staff.files()}
        wait(files, self._next_tick - time.monotonic())
        for number in self._signals.take():
            if number != signal.SIGCHLD:
                return f"{signal.Signals(number).name} received"
        self._losses += self._staff.turn()
        self._greet()
        if self._registered:
            self._tell_losses()
        if self._staff.deserted:
            return "no worker stays alive"
        if self._staff.asked:
            return self._staff.asked
        if time.monotonic() < self._next_tick:
            return None
        self._next_tick = time.monotonic() + (_TICK if self._registered else _STARTING_TICK)
        if time.time() >= self._context.last_moment:
            return "the allocation's end is near"
        if self._fence.closed():
            return "a newer incarnation of this allocation's pilot runs"
        return self._exchange()

    def _before_fork(self) -> list[int]:
        """The child must share neither connection nor signals."""
        self._client.connection_pool.disconnect()
        return [self._signals.fileno()]

    # workers

    def _greet(self) -> None:
        """Register once all workers consume."""
        if self._registered or (nodes := self._staff.consuming()) is None:
            return
        self._registered = True
        context = self._context
        self._send(
            Registered(
                context.pilot,
                context.allocation,
                os.uname().nodename,
                os.getpid(),
                context.end_time,
                nodes,
                time.time(),
                context.native_id,
            )
        )
        logger.info("all workers consume: %d nodes", len(nodes))

    def _tell_losses(self) -> None:
        losses, self._losses = self._losses, []
        for loss in losses:
            if loss.fate == "gone":
                self._give_up(loss)
                continue
            restarted = loss.fate == "restarted"
            self._send(
                WorkerLost(
                    self._context.pilot,
                    loss.context.node,
                    loss.reason,
                    restarted,
                    time.time(),
                    confirmed=restarted,
                )
            )

    def _give_up(self, loss: Loss) -> None:
        """Deliver what a worker has left that is no more; then the service is told that."""
        self._leavings.append(
            Leavings(loss.context, loss.reason, self._staff.adopt, self._before_helper)
        )
        self._deliver_leavings()

    def _before_helper(self) -> list[int]:
        return [*self._before_fork(), *self._staff.files()]

    def _deliver_leavings(self) -> None:
        for one in list(self._leavings):
            if one.over():
                self._send(one.record)
                one.close()
                self._leavings.remove(one)

    # service

    def _send(self, record: Record) -> None:
        self._last_number += 1
        text = encode(record)
        self._records[self._last_number] = text
        self._post.push([], [(self._last_number, text)])

    def _exchange(self) -> str | None:
        """Heartbeat, acknowledgements, orders; returns the reason of an order to drain."""
        commands: list[tuple[str, ...]] = [("LPOP", self._control, "100")]
        now = time.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + self._settings.pilot.heartbeat_interval
            beat = encode(Heartbeat(time.time(), os.getpid(), self._state))
            commands.append(("HSET", self._heartbeats, "pilot", beat))
            # the service deletes those of pilots that it knows; not all live until they register
            commands.append(("EXPIRE", self._heartbeats, str(keys.HEARTBEATS_LAST)))
        # also while Redis is away: their patience is with the file system
        self._deliver_leavings()
        answer = self._post.exchange(list(self._records.items()), commands)
        if answer is None:
            return None
        for number in answer.acknowledged:
            self._records.pop(number, None)
        for text in answer.results[0] or ():
            try:
                order = decode(PilotOrder, text)
            except MalformedMessage as error:
                logger.error("refused an order that is not one: %s", error)
                continue
            if order.action == "drain":
                return order.reason or "ordered by the service"
            self._staff.lose(order.node, order.reason, given_back=order.action == "release")
        return None

    # end

    def _drain(self, reason: str) -> None:
        logger.info("drains: %s", reason)
        self._state = "draining"
        self._staff.stop(reason)
        while not self._staff.stopped:
            files = {self._signals.fileno(): False, **self._staff.files()}
            wait(files, _STOPPING_TICK)
            self._signals.take()
            self._losses += self._staff.turn()
            if time.monotonic() > self._next_beat:
                self._exchange()
        if self._registered:
            self._tell_losses()
        self._exchange_until(lambda: not self._leavings)
        for one in self._leavings:
            one.close()
        if not self._staff.delivered or self._leavings:
            # the service reads the outboxes once the scheduler says that the job has ended
            logger.warning("some outcomes were not acknowledged: they stay in the outboxes")
            return
        self._send(PilotEnded(self._context.pilot, reason, time.time()))
        self._exchange_until(lambda: not self._records)
        logger.info("ended")

    def _exchange_until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + worker.ACKNOWLEDGE_WITHIN
        while not done() and time.monotonic() < deadline:
            self._exchange()
            wait({self._signals.fileno(): False}, _STOPPING_TICK)
            self._signals.take()


def tell_error(context: PilotContext, reason: str) -> None:
    """Say why the pilot cannot start: in its log, in the job's output, and to the service."""
    logger.error("%s", reason)
    leave_error(context.allocation_dir, reason)


def leave_error(directory: Path, reason: str) -> None:
    """Say why the pilot cannot start: in the job's output, and to the service.

    Args:
        directory: the allocation's, which is not made where it is missing.
        reason: told as one line.
    """
    line = " ".join(reason.split())
    print(f"pilot: {line}", file=sys.stderr, flush=True)
    if not directory.is_dir():
        return  # nobody has asked for such an allocation, so nobody looks there
    try:
        write_private(directory / keys.ERROR_FILE, f"{line}\n")
    except SiteError as error:
        print(f"pilot: {error}", file=sys.stderr, flush=True)
