"""The pilot's main process: forks the workers, watches over them, ends them in time.

It has one thread and never runs a program itself, so that it can fork a new worker at any moment.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import time
from collections import deque
from typing import Any

from celery import Celery

from balsam_celery import keys, procs
from balsam_celery.celeryapp import redis_client
from balsam_celery.pilot import worker
from balsam_celery.pilot.context import PilotContext, WorkerContext
from balsam_celery.pilot.leavings import Leavings
from balsam_celery.pilot.post import Post
from balsam_celery.pilot.process import end_all
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

#: A worker that died so often within so many seconds is not started again.
_DEATHS, _WITHIN = 5, 60.0
#: Seconds between looks at Redis, at workers that start, and at workers that are to stop.
_TICK, _STARTING_TICK, _STOPPING_TICK = 0.5, 0.05, 0.05
#: Seconds beyond the kill grace after which a stopping worker is killed.
_STOP_SLACK = 20.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
INCARNATION = "incarnation"


class Member:
    """A worker's place in the pilot, held by one process after another."""

    def __init__(self, context: WorkerContext) -> None:
        self.context = context
        self.pid: int | None = None
        self.ready = -1
        self.deaths: deque[float] = deque(maxlen=_DEATHS)
        self.leavings: Leavings | None = None


class Supervisor:
    """One pilot, from its first worker to its last word."""

    def __init__(self, context: PilotContext, app: Celery[Any]) -> None:
        self._context = context
        self._app = app
        self._members = [Member(one) for one in context.workers()]
        self._settings = context.site.settings
        prefix = self._settings.key_prefix
        self._client = redis_client(context.site, timeout=2.0)
        self._post = Post(self._client, prefix, context.pilot, "pilot")
        self._control = keys.control(prefix, context.pilot)
        self._heartbeats = keys.heartbeats(prefix, context.pilot)
        self._records: dict[int, str] = {}  # numbered, until acknowledged
        self._last_number = 0
        self._registered = False
        self._next_tick = self._next_beat = 0.0
        self._state = "running"
        self._incarnation = context.allocation_dir / INCARNATION

    def run(self) -> int:
        """Run until the allocation's end, an order to drain, or a signal; returns 0."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        procs.become_subreaper()
        _write_pid_file(self._context.directory / "pilot.pid")
        self._incarnation.write_text(self._context.pilot, encoding="utf-8")
        for member in self._members:
            self._start(member)
        reason = None
        while reason is None:
            reason = self._turn()
        self._drain(reason)
        return 0

    def _turn(self) -> str | None:
        """Wait for a signal or a tick and act on it; returns why to drain, if there is reason."""
        received = signal.sigtimedwait(_SIGNALS, max(0.0, self._next_tick - time.monotonic()))
        if received is not None and received.si_signo != signal.SIGCHLD:
            return f"{signal.Signals(received.si_signo).name} received"
        for member, status in self._reap():
            self._replace(member, status)
        if all(member.pid is None for member in self._members):
            return "no worker stays alive"
        self._greet()
        if time.monotonic() < self._next_tick:
            return None
        self._next_tick = time.monotonic() + (_TICK if self._registered else _STARTING_TICK)
        if self._context.end_time - time.time() <= self._settings.pilot.drain_margin:
            return "the allocation's end is near"
        if self._fenced():
            return "a newer incarnation of this allocation's pilot runs"
        return self._exchange()

    # workers

    def _start(self, member: Member) -> None:
        # the child must not share a connection
        self._client.connection_pool.disconnect()
        member.ready, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        member.pid = worker.fork(member.context, self._app, write)
        os.close(write)
        _write_pid_file(member.context.pid_path, member.pid)
        logger.info("worker %s: process %d", member.context.name, member.pid)

    def _reap(self) -> list[tuple[Member, int]]:
        """Reap children; returns the workers among them with their wait status."""
        ended: list[tuple[Member, int]] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return ended
            if pid == 0:
                return ended
            for member in self._members:
                if member.pid == pid:
                    member.pid = None
                    os.close(member.ready)
                    member.ready = -1
                    ended.append((member, status))

    def _replace(self, member: Member, status: int) -> None:
        """End what a dead worker ran, and start a new one in its place."""
        self._end_programs(member)
        now = time.monotonic()
        member.deaths.append(now)
        hopeless = len(member.deaths) == _DEATHS and now - member.deaths[0] < _WITHIN
        reason = _how(status)
        logger.error("worker %s died: %s", member.context.name, reason)
        if hopeless:
            self._give_up(member, reason)
            return
        self._start(member)
        context = member.context
        self._send(WorkerLost(self._context.pilot, context.node, reason, True, time.time()))

    def _give_up(self, member: Member, reason: str) -> None:
        """Deliver what a worker has left that does not stay alive; then the service is told."""
        logger.error("worker %s is given up", member.context.name)
        try:
            member.leavings = Leavings(member.context, self._client, reason)
        except OSError as error:
            # its attempts come back when the allocation has ended
            logger.error("outbox of %s: %s", member.context.name, error.strerror)
        else:
            self._deliver_leavings()

    def _deliver_leavings(self) -> None:
        for member in self._members:
            if member.leavings is not None and member.leavings.deliver():
                self._send(member.leavings.record)
                member.leavings.close()
                member.leavings = None

    def _end_programs(self, member: Member) -> None:
        """End what a dead worker has left: by its mark, and orphans that came to this process."""
        marks = frozenset((member.context.mark,))
        while True:
            known = {one.pid for one in self._members if one.pid is not None}
            orphans = frozenset(procs.unknown_children(known))
            end_all(procs.Quarry(roots=orphans, marks=marks), 0)
            if not orphans:
                return

    def _greet(self) -> None:
        """Register once all workers consume."""
        if self._registered or any(not _is_ready(member) for member in self._members):
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
                context.nodes,
                time.time(),
            )
        )
        logger.info("all workers consume")

    # service

    def _send(self, record: Record) -> None:
        self._last_number += 1
        text = encode(record)
        self._records[self._last_number] = text
        self._post.push([], [(self._last_number, text)])

    def _exchange(self) -> str | None:
        """Heartbeat, acknowledgements, orders; returns the reason of an order to drain."""
        commands: list[tuple[str, ...]] = [("LPOP", self._control)]
        now = time.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + self._settings.pilot.heartbeat_interval
            beat = encode(Heartbeat(time.time(), os.getpid(), self._state))
            commands.append(("HSET", self._heartbeats, "pilot", beat))
        answer = self._post.exchange(list(self._records.items()), commands)
        if answer is None:
            return None
        for number in answer.acknowledged:
            self._records.pop(number, None)
        self._deliver_leavings()
        if answer.results[0] is None:
            return None
        try:
            return decode(PilotOrder, answer.results[0]).reason or "ordered by the service"
        except MalformedMessage as error:
            logger.error("refused an order that is not one: %s", error)
            return None

    def _fenced(self) -> bool:
        try:
            current = self._incarnation.read_text(encoding="utf-8")
        except OSError as error:
            logger.warning("%s cannot be read: %s", self._incarnation, error.strerror)
            return False
        return current not in ("", self._context.pilot)

    # end

    def _drain(self, reason: str) -> None:
        logger.info("drains: %s", reason)
        self._state = "draining"
        for member in self._members:
            if member.pid is not None:
                os.kill(member.pid, signal.SIGTERM)
        delivered = True
        deadline = time.monotonic() + self._settings.site.kill_grace + _STOP_SLACK
        killed = False
        while any(member.pid is not None for member in self._members):
            signal.sigtimedwait((signal.SIGCHLD,), _STOPPING_TICK)
            for member, status in self._reap():
                delivered = delivered and os.waitstatus_to_exitcode(status) == worker.DELIVERED
                self._end_programs(member)
            if time.monotonic() > deadline and not killed:
                killed = True
                for member in self._members:
                    if member.pid is not None:
                        logger.error("worker %s does not stop: killed", member.context.name)
                        os.kill(member.pid, signal.SIGKILL)
            if time.monotonic() > self._next_beat:
                self._exchange()
        for member in self._members:
            self._end_programs(member)
        if not delivered or any(member.leavings for member in self._members):
            # the service reads the outboxes once the scheduler says that the job has ended
            logger.warning("some outcomes were not acknowledged: they stay in the outboxes")
            return
        self._send(PilotEnded(self._context.pilot, reason, time.time()))
        deadline = time.monotonic() + worker.ACKNOWLEDGE_WITHIN
        while self._records and time.monotonic() < deadline:
            self._exchange()
            signal.sigtimedwait((signal.SIGCHLD,), _STOPPING_TICK)
        logger.info("ended")


def _is_ready(member: Member) -> bool:
    """Tell whether the worker has said that it consumes; its word stays in the pipe."""
    return member.ready >= 0 and bool(select.select([member.ready], [], [], 0)[0])


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"ended by signal {-code}" if code < 0 else f"exit status {code}"


def _write_pid_file(path: Any, pid: int | None = None) -> None:
    found = procs.identity(pid or os.getpid())
    if found is not None:
        content = {"pid": found.pid, "start_time": found.start_time, "boot_id": found.boot_id}
        path.write_text(json.dumps(content), encoding="utf-8")
