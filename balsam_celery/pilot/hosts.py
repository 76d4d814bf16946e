"""The workers of a pilot over several hosts: a keeper on each, the gang worker here.

A node whose keeper is lost is started again once, by a launch of its own. If that fails the node
is lost, and nobody knows what lives there (R4), until the scheduler has given it up and a keeper
that was only cut off has had the time to end everything.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

from celery import Celery

from balsam_celery import cutoff, keys
from balsam_celery.errors import BalsamError
from balsam_celery.pilot import link
from balsam_celery.pilot.asked import judge
from balsam_celery.pilot.channel import Channel, ChannelBroken
from balsam_celery.pilot.context import Parent, PilotContext, WorkerContext
from balsam_celery.pilot.crew import Crew, Loss
from balsam_celery.pilot.gang import Gang
from balsam_celery.pilot.gathering import Gathering
from balsam_celery.pilot.host import Host
from balsam_celery.pilot.launches import Launches
from balsam_celery.pilot.links import Links
from balsam_celery.pilot.staff import Staff, StartError
from balsam_celery.pilot.starting import node_launcher
from balsam_celery.pilot.sweeping import Done, Sweeping
from balsam_celery.resources import NodeCapacity
from balsam_celery.wire import MalformedMessage

logger = logging.getLogger(__name__)

#: Seconds beyond a keeper's own patience until the head goes on without its answer.
_ANSWER = 10.0
#: Seconds for keepers to leave and launchers to end by themselves.
_LEAVING = 5.0


class Hosts(Staff):
    """See the module.

    Args:
        context: the pilot.
        app: a Celery application without a connection.
        before_fork: see :class:`Crew`.
        sees_redis: tells whether this process reaches Redis.
    """

    def __init__(
        self,
        context: PilotContext,
        app: Celery[Any],
        before_fork: Callable[[], Iterable[int]],
        sees_redis: Callable[[], bool],
    ) -> None:
        self._context = context
        self._settings = context.site.settings
        self._silence = self._settings.pilot.silence_timeout
        self._hosts = {node.name: Host(node) for node in context.nodes}
        self._crew = Crew(app, Parent(), self._before_fork)
        self._own_before_fork = before_fork
        self._sees_redis = sees_redis
        self._sweeping = Sweeping()
        self._gang: Gang | None = None
        self._launches: Launches | None = None
        self._links: Links | None = None
        self._gathering: Gathering | None = None
        self._losses: list[Loss] = []
        self._decided = self._stopping = self._left = False
        self._next_beat = 0.0
        self._stop_at = self._leave_at = float("inf")

    def _before_fork(self) -> list[int]:
        return [*self._own_before_fork(), *self.files()]

    def start(self) -> None:
        context = self._context
        try:
            launcher = node_launcher(context, os.environ)
            self._links = Links(secrets.token_hex(32))
            self._links.invite(context)
            self._launches = Launches(context, launcher, self._crew, self._hosts)
            self._gathering = Gathering(context, self._hosts, self._launches, self._sees_redis)
            self._launches.start_all(self._settings.pilot.start_timeout / 2)
        except (BalsamError, OSError) as error:
            raise StartError(str(error)) from None

    def files(self) -> dict[int, bool]:
        channels = (host.channel for host in self._hosts.values())
        files = {one.fileno(): one.writing for one in channels if one is not None}
        for part in (self._links, self._launches, self._gang):
            if part is not None:
                files.update(part.files())
        return files

    def turn(self) -> list[Loss]:
        if self._links is None or self._launches is None or self._gathering is None:
            return []  # the start has failed
        workers, others = self._crew.reap()
        for _, status in workers:
            assert self._gang is not None, "the only worker here"
            self._gang.died(status)
        for node in self._launches.turn(others):
            self.lose(node, "its launcher says that the node failed")
        self.asked, alone = judge(self._hosts.values())
        for host in [] if self._stopping or self.asked else alone:
            self._lost(host, host.asked)
            self._order(host, link.Drain(host.asked, alone=True))
        for channel, hello, texts in self._links.greetings():
            self._greet(channel, hello, texts)
        self._hear()
        self._beat()
        if self._gang is not None:
            self._losses += self._gang.turn(others)
            if silent := frozenset(host.name for host in self._hosts.values() if host.silent):
                self._losses += self._gang.cannot_be_cleaned(silent)
        if not self._stopping and not self._decided and self._gathering.over():
            self._decide()
        self._launches.start_queued()
        losses, self._losses = self._losses, []
        return losses

    # keepers

    def _greet(self, channel: Channel, hello: link.Hello, texts: list[str]) -> None:
        host = self._hosts.get(hello.node)
        if host is None or host.channel is not None or host.vacant or self._left:
            logger.warning("a keeper of %s on %s is not wanted", hello.node, hello.host)
            channel.close()
            return
        logger.info("node %s: keeper %d on %s", hello.node, hello.pid, hello.host)
        host.came(channel, hello)
        for order in self._sweeping.orders(host.name):
            self._order_sweep(host, order)
        if self._stopping or host.lost:
            self._order(host, link.Drain(host.lost or "the pilot ends", alone=not self._stopping))
        else:
            self._tell_gang(host)
        self._take(host, texts)

    def _hear(self) -> None:
        for host in list(self._hosts.values()):
            if host.channel is not None:
                try:
                    host.channel.flush()
                    texts = host.channel.receive()
                    if time.monotonic() - host.channel.heard > self._silence:
                        raise ChannelBroken(f"no word for {self._silence} s")
                except ChannelBroken as error:
                    self._broke(host, str(error))
                else:
                    self._take(host, texts)
            elif host.late and not host.lost and self._decided:
                self._lost(host, host.trouble)
            if host.over and not host.vacant:
                self._vacant(host)

    def _beat(self) -> None:
        if time.monotonic() >= self._next_beat:
            self._next_beat = time.monotonic() + cutoff.beat_every(self._silence)
            for host in self._hosts.values():
                self._order(host, link.Beat())

    def _order(self, host: Host, order: Any) -> None:
        if not host.send(order):
            self._broke(host, "the connection was closed")

    def _take(self, host: Host, texts: list[str]) -> None:
        for text in texts:
            try:
                self._heard(host, link.decode_message(text, link.FromKeeper))
            except MalformedMessage as error:
                logger.error("node %s: refused what it says: %s", host.name, error)

    def _heard(self, host: Host, message: link.FromKeeper) -> None:
        match message:
            case link.Consumes():
                first = not host.consumes
                host.consumes, host.trouble = True, ""
                if first and host.used and not host.lost:
                    self._losses.append(self._loss(host, "its keeper was lost", "restarted"))
            case link.Trouble():
                host.trouble = message.reason
                logger.error("node %s: %s", host.name, message.reason)
            case link.Died():
                logger.error("node %s: its worker died: %s", host.name, message.reason)
                if message.restarted:
                    self._losses.append(self._loss(host, message.reason, "restarted"))
                else:
                    host.lost, host.consumes = message.reason, False
                    if host.used:
                        self._losses.append(self._loss(host, host.lost, "unknown"))
                    self._gone(host)
            case link.Swept():
                self._sweeping.confirmed(host.name, message.number)
            case link.Drains():
                host.asked, host.asked_at = message.reason, time.monotonic()
                self._tell_gang(host)
            case link.Drained():
                host.drained = message.delivered
                if host.released:
                    host.taken = True  # by the keeper's own end nothing lives there
                    self._order(host, link.Leave(alone=True))
                elif host.lost:
                    self._gone(host)
            case _:
                pass  # a beat

    def _broke(self, host: Host, why: str) -> None:
        """The link to a keeper is broken."""
        host.close()
        # one that was told to leave has ended everything before
        left = 0.0
        if not (host.released and host.taken):
            left = self._settings.over_after
        host.over_at = time.monotonic() + left
        if self._left or (self._stopping and host.drained is not None):
            return
        log = logger.info if host.released else logger.error
        log("node %s: its keeper is lost: %s", host.name, why)
        if self._stopping or host.lost:
            return
        host.trouble = f"its keeper is lost: {why}"
        if host.again or self._launches is None:
            self._lost(host, host.trouble)
        else:
            self._launches.again(host)
            self._tell_gang(host)

    # losses

    def _loss(self, host: Host, reason: str, fate: Any) -> Loss:
        return Loss(WorkerContext(self._context, host.name, (host.capacity,)), reason, fate)

    def _lost(self, host: Host, reason: str) -> None:
        """A node is lost, and what lives there nobody knows."""
        logger.error("node %s is lost: %s", host.name, reason)
        host.lost = reason
        host.deadline = float("inf")
        if host.start is not None:
            host.start.stop()
        if host.used:
            self._losses.append(self._loss(host, reason, "unknown"))
        self._tell_gang(host)

    def _gone(self, host: Host) -> None:
        """Nothing lives that the worker of a lost node has left."""
        if host.used and not host.gone:
            self._losses.append(self._loss(host, host.lost, "gone"))
        host.gone = True

    def _vacant(self, host: Host) -> None:
        """No process at all lives on a node."""
        host.vacant = True
        self._gone(host)
        self._sweeping.gone(host.name)

    def _tell_gang(self, host: Host) -> None:
        if self._gang is not None and host.used:
            left = sum(one.used and not one.lost for one in self._hosts.values())
            self._gang.tell_of(host, left)

    def lose(self, node: str, reason: str, *, given_back: bool = False) -> None:
        host = self._hosts.get(node)
        if host is None or host.taken or self._stopping or (given_back and host.lost):
            return
        host.taken, host.released = not given_back, given_back
        if not host.lost:
            self._lost(host, reason)
        # what still lives there is to end decently, and its keeper says when it has
        self._order(host, link.Drain(reason, alone=True))

    # the start

    def _decide(self) -> None:
        """The pilot has the nodes that consume now."""
        self._decided = True
        used = [host for host in self._hosts.values() if host.consumes and not host.lost]
        for host in self._hosts.values():
            if host in used:
                continue
            reason = host.lost or host.trouble or "its worker did not start in time"
            logger.error("node %s is not used: %s", host.name, reason)
            host.lost = reason
            if host.start is not None:
                host.start.stop()
            self._order(host, link.Drain(reason, alone=True))
        for host in used:
            host.used = True
        if len(used) > 1:
            nodes = tuple(host.capacity for host in used)
            worker = WorkerContext(self._context, keys.GANG, nodes)
            sweeps = (self._sweep, self._sweeping.abandon)
            self._gang = Gang(worker, self._crew, *sweeps, self._before_fork)
            self._gang.start()

    def _sweep(
        self,
        nodes: tuple[str, ...] | None,
        marks: tuple[str, ...],
        attempts: tuple[str, ...],
        grace: float,
        done: Done,
        number: int = 0,
    ) -> int:
        there = [h for h in self._hosts.values() if not h.vacant]
        hosts = [one for one in there if (one.used if nodes is None else one.name in nodes)]
        order = self._sweeping.begin(
            [one.name for one in hosts], marks, attempts, grace, done, number
        )
        for host in hosts:
            self._order_sweep(host, order)
        return order.number

    def _order_sweep(self, host: Host, order: link.Sweep) -> None:
        if host.name == self._context.nodes[0].name and order.grace > 0:
            # the launcher runs here, with the brand, and ranks elsewhere may still have grace;
            # the gang worker, which runs here too, sees to what they leave on this node
            order = dataclasses.replace(order, attempts=())
        self._order(host, order)

    def consuming(self) -> tuple[NodeCapacity, ...] | None:
        gang = self._gang
        if not self._decided or (gang is not None and not (gang.ready or gang.given_up)):
            return None
        used = [host for host in self._hosts.values() if host.used]
        return tuple(dataclasses.replace(one.capacity, lost=bool(one.lost)) for one in used)

    @property
    def deserted(self) -> bool:
        return self._decided and all(host.lost for host in self._hosts.values() if host.used)

    # the end

    def stop(self, reason: str) -> None:
        self._stopping = True
        patience = self._context.patience(time.time())
        self._stop_at = time.monotonic() + patience + cutoff.STOP_SLACK
        if self._gang is not None:
            self._gang.stopping = True
        self._crew.signal(signal.SIGTERM)
        for host in self._hosts.values():
            self._order(host, link.Drain(reason))
        if self._launches is not None:
            self._launches.stopping = True
            self._launches.stop_idle()

    @property
    def stopped(self) -> bool:
        now = time.monotonic()
        if now > self._stop_at:
            self._stop_at = float("inf")
            self._leave_at = now + _ANSWER
            self._crew.signal(signal.SIGKILL)
        self._sweeping.give_up([h.name for h in self._hosts.values() if h.channel is None])
        if not self._left:
            quiet = self._gang is None or self._gang.quiet
            here = [host for host in self._hosts.values() if host.channel is not None]
            if (quiet and all(host.drained is not None for host in here)) or now > self._leave_at:
                self._leave()
            return False
        late = now > self._leave_at
        if any(host.channel is not None for host in self._hosts.values()) and not late:
            return False
        launches = self._launches
        if launches is not None and launches.living:
            if late:
                launches.stop()
            else:
                launches.stop_idle()
            return False
        self._finish()
        return True

    def _leave(self) -> None:
        """Let the keepers go; what they have not said by now is not known."""
        self._left = True
        self._leave_at = time.monotonic() + _LEAVING
        gang = self._gang
        self.delivered = gang is None or (gang.delivered and gang.quiet)
        self.delivered &= all(h.gone or h.drained for h in self._hosts.values() if h.used)
        for host in self._hosts.values():
            self._order(host, link.Leave())

    def _finish(self) -> None:
        for host in self._hosts.values():
            host.close()
        if self._links is not None:
            self._links.close()
        if self._launches is not None:
            self._launches.finish()
