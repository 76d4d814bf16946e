"""The gang worker's side of R8: no process of an attempt lives on any of its nodes.

The worker asks the pilot's main process, which asks the keepers of the nodes, over a pair of
sockets; an answer means that every node has confirmed.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable

from balsam_celery.pilot.attempt import Attempt, attempt_brand
from balsam_celery.pilot.channel import Channel, ChannelBroken
from balsam_celery.pilot.link import (
    AskSweep,
    NodeDoubt,
    NodeLost,
    SweepDone,
    ToGang,
    decode_message,
    encode,
)
from balsam_celery.pilot.signals import wait
from balsam_celery.wire import MalformedMessage

logger = logging.getLogger(__name__)

#: Both ends of the pair are this pilot's own processes: there is nothing to prove.
PAIR_TOKEN = b"pair"
_TICK = 1.0
_GONE = "the main process of its pilot is gone"


class Sweeper(threading.Thread):
    """The thread that hears answers; :meth:`sweep` may be called from any other.

    Args:
        connection: the worker's end of the pair.
        on_trouble: told of nodes that were lost or may be, before any answer that comes later.
    """

    def __init__(
        self, connection: socket.socket, on_trouble: Callable[[NodeLost | NodeDoubt], None]
    ) -> None:
        super().__init__(name="sweeper", daemon=True)
        self._channel = Channel(connection, PAIR_TOKEN, "node")
        self._on_trouble = on_trouble
        self._lock = threading.Condition()
        self._number = 0
        self._answers: dict[int, str] = {}
        self._broken = ""
        self._unconfirmed: set[tuple[str, int]] = set()

    def sweep(self, attempt: Attempt, grace: float, signal: int = 0) -> str:
        """End every process of the attempt on all its nodes: TERM, grace, KILL.

        With a ``signal`` that is only sent to its ranks.

        Returns once every node has confirmed. It takes as long as it takes: an attempt whose node
        is lost is over when the scheduler says so.

        Returns:
            "", or, when the pilot ends, what was not confirmed.
        """
        nodes = tuple(share.node for share in attempt.spec.shares)
        return self.sweep_nodes(attempt.key, nodes, grace, signal)

    def sweep_nodes(
        self, key: tuple[str, int], nodes: tuple[str, ...], grace: float, signal: int = 0
    ) -> str:
        """:meth:`sweep` of the attempt ``key`` on these nodes."""
        brand = attempt_brand(*key)
        with self._lock:
            self._number += 1
            number = self._number
            if not self._broken:
                try:
                    self._channel.send(encode(AskSweep(number, brand, nodes, grace, signal)))
                except ChannelBroken:
                    self._broken = _GONE
            self._lock.wait_for(lambda: number in self._answers or self._broken)
            unconfirmed = self._answers.pop(number, self._broken)
            if unconfirmed and not signal:
                logger.error("attempt %s: %s", brand, unconfirmed)
                self._unconfirmed.add(key)
            return unconfirmed

    def unconfirmed(self, key: tuple[str, int]) -> bool:
        """Tell whether a process of that attempt may live: its end must not be reported (R4)."""
        with self._lock:
            return key in self._unconfirmed

    def run(self) -> None:
        """Hear answers until the main process is gone."""
        while True:
            wait({self._channel.fileno(): self._channel.writing}, _TICK)
            try:
                with self._lock:
                    self._channel.flush()
                    texts = self._channel.receive()
            except ChannelBroken:
                break
            for text in texts:
                try:
                    self._heard(decode_message(text, ToGang))
                except MalformedMessage as error:
                    logger.error("refused an answer that is not one: %s", error)
        with self._lock:
            self._broken = _GONE
            self._lock.notify_all()

    def _heard(self, message: ToGang) -> None:
        match message:
            case SweepDone():
                with self._lock:
                    self._answers[message.number] = message.unconfirmed
                    self._lock.notify_all()
            case NodeLost() | NodeDoubt():
                self._on_trouble(message)
