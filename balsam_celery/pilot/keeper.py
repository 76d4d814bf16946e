"""A node's keeper: starts the node's worker, watches over it, sweeps, and ends all when told.

It belongs to the pilot's main process on the head node, to which it has a link. When that breaks,
or says nothing for a minute, the keeper ends everything on its node: for all that it knows, the
pilot goes on without it. What has cut it off may have made the shared file system hang, too. So it
touches nothing there between its first step, when nothing runs here, and that end: its log is
written by another process (:mod:`~balsam_celery.pilot.keeperlog`), pid files by those whom they
name.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time

import redis

from balsam_celery import keys, procs
from balsam_celery.celeryapp import make_pilot_app, redis_client
from balsam_celery.cutoff import STOP_SLACK, beat_every
from balsam_celery.pilot.channel import Channel, ChannelBroken
from balsam_celery.pilot.context import Parent, PilotContext, WorkerContext
from balsam_celery.pilot.crew import Crew, Member, delivered
from balsam_celery.pilot.environment import inherited
from balsam_celery.pilot.inventory import surveyed
from balsam_celery.pilot.link import (
    Beat,
    Briefing,
    Consumes,
    Died,
    Drain,
    Drained,
    Drains,
    FromKeeper,
    Hello,
    Leave,
    Sweep,
    Swept,
    ToKeeper,
    Trouble,
    decode_message,
    encode,
)
from balsam_celery.pilot.pidfiles import read_pid_file, write_pid_file
from balsam_celery.pilot.process import attempts_with_ranks, end_processes, signal_all
from balsam_celery.pilot.signals import ALONE, TOGETHER, WARNINGS, Signals, wait
from balsam_celery.wire import MalformedMessage

logger = logging.getLogger(__name__)

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: Seconds between looks, while the worker starts and later.
_STARTING_TICK, _TICK = 0.05, 0.5
#: Seconds for one try to reach the head, and between tries; the same for Redis and for sweeps.
_CONNECT, _PAUSE = 3.0, 1.0
#: Seconds within which a worker that was killed is gone, unless it hangs in the kernel.
_REAPED_WITHIN = 5.0
#: Seconds that the head has to say what it means that this node was told to end.
_ORDER_WITHIN = 5.0


class Keeper:
    """One node's.

    Args:
        briefing: what it must know.
        node: its node.
        again: an earlier life may have left something here.
        helper: pid of a child of this process that is not to be ended.

    Raises (when made):
        StopIteration: the pilot has no such node.
    """

    def __init__(self, briefing: Briefing, node: str, *, again: bool, helper: int) -> None:
        invitation = briefing.invitation
        self._invitation = invitation
        site = briefing.make_site()
        self._settings = site.settings
        self._silence = site.settings.pilot.silence_timeout
        told = next(one for one in invitation.nodes if one.name == node)
        self._capacity = surveyed(told, os.environ)
        pilot = PilotContext(
            site=site,
            pilot=invitation.pilot,
            allocation=invitation.allocation,
            nodes=invitation.nodes,
            end_time=invitation.end_time,
            environment=inherited(os.environ, site.settings),
        )
        self._pilot = pilot
        self._context = WorkerContext(pilot, node, (self._capacity,))
        self._gang = WorkerContext(pilot, keys.GANG, pilot.nodes)
        self._again = again
        self._signals = Signals((*_ENDING, *WARNINGS, ALONE, TOGETHER, signal.SIGCHLD))
        self._channel: Channel | None = None
        parent = Parent("the keeper of its node", "lost", orders=True)
        self._crew = Crew(make_pilot_app(site), parent, self._before_fork)
        self._member = Member(self._context)
        self._crew.members.append(self._member)
        self._crew.others.add(helper)
        self._sweeps: dict[int, Sweep] = {}  # by pid of the child that does it
        self._failed: list[tuple[float, Sweep]] = []  # when to do them again
        self._started = self._told = self._draining = self._killed = self._left = False
        self._drained: bool | None = None
        self._trouble = ""
        self._next_try = self._next_beat = self._kill_at = 0.0
        self._drain_at, self._asked = float("inf"), ""

    def run(self) -> int:
        """Keep the node until the pilot lets go of it; returns the exit status."""
        procs.become_subreaper()
        pid_file = self._pilot.directory / f"{self._context.node}.keeper.pid"
        earlier = read_pid_file(pid_file)
        write_pid_file(pid_file)
        if self._again:
            self._hunt(earlier)
        self._channel = self._connect()
        if self._channel is None:
            logger.error("the pilot cannot be reached at %s", self._invitation.addresses)
            return 1
        name, host = self._context.node, os.uname().nodename
        self._say(Hello(name, os.getpid(), host, self._capacity, self._again))
        while not self._left:
            self._turn()
        return 0

    def _turn(self) -> None:
        tick = _TICK if self._told or self._trouble else _STARTING_TICK
        files = {self._signals.fileno(): False}
        if self._channel is not None:
            files[self._channel.fileno()] = self._channel.writing
        wait(files, tick)
        for number in self._signals.take():
            if number in _ENDING and not self._draining and not self._asked:
                # the head must know before outcomes come from here, or it would send more
                self._asked = f"{signal.Signals(number).name} received on {self._context.node}"
                self._drain_at = time.monotonic() + _ORDER_WITHIN
                self._say(Drains(self._asked))
        if time.monotonic() > self._drain_at:
            self._drain(self._asked, alone=True)
        self._hear()
        self._reap()
        self._sweep_again()
        if self._draining:
            self._stop()
        elif not self._started:
            self._start()
        elif not self._told and self._member.ready:
            self._told = True
            self._say(Consumes())

    # the earlier life

    def _hunt(self, keeper: procs.Identity | None) -> None:
        """Make sure that nothing of an earlier life lives; its worker ends itself, as a rule."""
        if keeper is not None:
            procs.send(keeper, signal.SIGKILL)
        worker = read_pid_file(self._context.pid_path)
        deadline = time.monotonic() + self._settings.site.kill_grace + STOP_SLACK
        while worker is not None and procs.alive(worker) and time.monotonic() < deadline:
            time.sleep(_STARTING_TICK)
        roots = frozenset(one for one in (keeper, worker) if one is not None)
        end_processes((self._context.mark,), self._context.brands, 0.0, roots)

    # the worker

    def _before_fork(self) -> list[int]:
        files = [self._signals.fileno()]
        if self._channel is not None:
            files.append(self._channel.fileno())
        return files

    def _start(self) -> None:
        """Start the worker once Redis answers; say what is in the way."""
        if time.monotonic() < self._next_try:
            return
        self._next_try = time.monotonic() + _PAUSE
        client = redis_client(self._pilot.site, timeout=5.0)
        try:
            client.ping()
        except (redis.RedisError, OSError) as error:
            reason = f"cannot reach Redis: {error}"
            if reason != self._trouble:
                logger.error("%s; trying again", reason)
                self._say(Trouble(reason))
            self._trouble = reason
            return
        finally:
            client.close()
        self._trouble = ""
        self._started = True
        self._crew.start(self._member)

    def _reap(self) -> None:
        workers, others = self._crew.reap()
        for member, status in workers:
            if self._draining:
                self._crew.end_programs(member)
                self._drained = delivered(status)
                self._say(Drained(self._drained))
                continue
            loss = self._crew.replace(member, status)
            self._say(Died(loss.reason, loss.fate == "restarted"))
        for pid, status in others.items():
            done = self._sweeps.pop(pid, None)
            if done is None:
                continue  # the helper
            if status == 0:
                self._say(Swept(done.number))
            else:
                logger.error("sweep %d failed: again", done.number)
                self._put_off(done)

    def _put_off(self, order: Sweep) -> None:
        """At once it would fail again, as often as this machine can fork."""
        self._failed.append((time.monotonic() + _PAUSE, order))

    def _sweep_again(self) -> None:
        now = time.monotonic()
        due = [order for when, order in self._failed if when <= now]
        self._failed = [one for one in self._failed if one[0] > now]
        for order in due:
            self._sweep(order, again=True)

    # orders

    def _hear(self) -> None:
        if self._channel is None:
            return
        try:
            self._channel.flush()
            texts = self._channel.receive()
            if time.monotonic() - self._channel.heard > self._silence:
                raise ChannelBroken(f"no word for {self._silence} s")
            if time.monotonic() >= self._next_beat:
                self._next_beat = time.monotonic() + beat_every(self._silence)
                self._channel.send(encode(Beat()))
        except ChannelBroken as error:
            self._abandoned(str(error))
            return
        for text in texts:
            try:
                self._obey(decode_message(text, ToKeeper))
            except MalformedMessage as error:
                logger.error("refused an order that is not one: %s", error)

    def _obey(self, order: ToKeeper) -> None:
        match order:
            case Drain():
                self._drain(order.reason, alone=order.alone)
            case Sweep():
                self._sweep(order)
            case Leave():
                logger.info("leaves")
                self._end_rest(0.0, gang=not order.alone)
            case Beat():
                pass

    def _say(self, message: FromKeeper) -> None:
        if self._channel is not None:
            try:
                self._channel.send(encode(message))
            except ChannelBroken as error:
                self._abandoned(str(error))

    def _sweep(self, order: Sweep, *, again: bool = False) -> None:
        """In a child: it may take long, and this process has to listen."""
        try:
            pid = os.fork()
        except OSError as error:
            if not again:
                logger.error("sweep %d: %s: trying again", order.number, error.strerror)
            self._put_off(order)
            return
        if pid == 0:
            status = 1
            try:
                for file in self._before_fork():
                    os.close(file)
                if order.signal:
                    signal_all(procs.Quarry(marks=frozenset(order.marks)), order.signal)
                else:
                    end_processes(order.marks, order.attempts, order.grace)
                status = 0
            except BaseException:
                logger.exception("sweep %d", order.number)
            finally:
                os._exit(status)
        self._crew.others.add(pid)
        self._sweeps[pid] = order

    # end

    @property
    def _hasty(self) -> float:
        return float(self._settings.site.kill_grace)

    def _drain(self, reason: str, *, alone: bool) -> None:
        if self._draining:
            return
        logger.info("drains: %s", reason)
        self._draining = self._told = True
        # only with its pilot a worker has time for checkpoints
        patience = self._hasty if alone else self._pilot.patience(time.time())
        self._kill_at = time.monotonic() + patience + STOP_SLACK
        self._crew.signal(ALONE if alone else TOGETHER)
        if not self._crew.living:
            # what one that could not be started again has left in its outbox stays there
            self._drained = not self._crew.waiting
            self._crew.waiting = []
            self._say(Drained(self._drained))

    def _stop(self) -> None:
        """See to it that a draining worker ends, and, without a pilot, all else."""
        now = time.monotonic()
        late = bool(self._crew.living) and now > self._kill_at
        if late and not self._killed:
            self._killed, self._kill_at = True, now + _REAPED_WITHIN
            self._crew.signal(signal.SIGKILL)
        elif self._channel is None and (late or self._drained is not None):
            # a worker that a file system keeps in the kernel starts nothing more, and may stay
            # there for as long as that hangs
            self._end_rest(self._hasty)

    def _end_rest(self, grace: float, *, gang: bool = True) -> None:
        """End what may be left here, and leave.

        ``gang``: also ranks of tasks over several nodes, whose worker cannot ask for a sweep any
        more. Where it can, its tasks are on other nodes, which may share this machine.
        """
        # the head counts on no more (balsam_celery.cutoff)
        over_at = time.monotonic() + 2 * grace
        marks = [self._context.mark]
        ranks: tuple[str, ...] = ()
        if gang:
            marks.append(self._gang.mark)
            ranks = attempts_with_ranks(self._gang.mark)
        pids = [member.pid for member in self._crew.living if member.pid is not None]
        workers = frozenset(filter(None, map(procs.identity, pids)))
        end_processes(tuple(marks), ranks, grace, workers)
        if gang:
            # what has outlived its ranks and emptied its environment is known by the gang worker's
            # outbox alone. That is on the shared file system, so it comes last
            brands = self._gang.brands
            end_processes((), brands, min(grace, max(0.0, over_at - time.monotonic())))
        self._left = True

    def _abandoned(self, why: str) -> None:
        if self._channel is not None:
            logger.error("the link is broken (%s): everything on this node is ended", why)
            self._channel.close()
            self._channel = None
            self._drain("its pilot cannot be reached", alone=True)
            self._kill_at = min(self._kill_at, time.monotonic() + self._hasty + STOP_SLACK)

    # the link

    def _connect(self) -> Channel | None:
        """A link to the head: the first address that answers and knows the token."""
        deadline = time.monotonic() + self._settings.pilot.start_timeout
        while time.monotonic() < deadline:
            for address in self._invitation.addresses:
                try:
                    connection = socket.create_connection(address, timeout=_CONNECT)
                except OSError as error:
                    logger.info("%s:%d: %s", *address, error)
                    continue
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                channel = Channel(connection, self._invitation.token.encode(), "node")
                try:
                    self._await_greeting(channel)
                except ChannelBroken as error:
                    logger.warning("%s:%d is not the pilot: %s", *address, error)
                    channel.close()
                    continue
                return channel
            if any(number in _ENDING for number in self._signals.take()):
                return None
            time.sleep(_PAUSE)
        return None

    def _await_greeting(self, channel: Channel) -> None:
        """Raises: ChannelBroken: the peer does not prove soon that it is the pilot."""
        deadline = time.monotonic() + _CONNECT
        while not channel.authentic:
            if time.monotonic() > deadline:
                raise ChannelBroken("it says nothing")
            wait({channel.fileno(): channel.writing}, deadline - time.monotonic())
            channel.flush()
            if channel.receive() and not channel.authentic:
                raise ChannelBroken("it is not authentic")
