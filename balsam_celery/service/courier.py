"""The thread that tells the world of what is committed: effects and events (R7)."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from celery import Celery

from balsam_celery.errors import StoreError
from balsam_celery.service import flower_events
from balsam_celery.service.cases import Change
from balsam_celery.service.effects import AWAY, BATCH, Performer
from balsam_celery.service.publish import Publisher

log = logging.getLogger(__name__)

#: Events that wait for a Redis that is away; the oldest are dropped, they are for the eye only.
_EVENTS = 20_000
#: Seconds between two looks for effects whose time has come.
_LOOK = 0.5
#: Shortest and longest pause, in seconds, while Redis or the database is away.
_PAUSES = (0.2, 5.0)


class Courier(threading.Thread):
    """Performs effects while its service leads.

    Args:
        app: the Celery application.
        make_performer: called in the thread, with its publisher.
        is_leader: asked before each round.
    """

    def __init__(
        self,
        app: Celery[Any],
        make_performer: Callable[[Publisher], Performer],
        is_leader: Callable[[], bool],
    ) -> None:
        super().__init__(name="balsam-courier", daemon=True)
        self._app = app
        self._make_performer = make_performer
        self._is_leader = is_leader
        self._events: deque[flower_events.Event] = deque(maxlen=_EVENTS)
        self._wake = threading.Event()
        self._ended = False

    def tell(self, changes: Iterable[Change]) -> None:
        """Announce changes that are committed, and look for effects now."""
        for change in changes:
            self._events.extend(flower_events.of_change(change))
        self._wake.set()

    def end(self) -> None:
        """Stop after the round that is under way."""
        self._ended = True
        self._wake.set()

    def run(self) -> None:
        """Work until :meth:`end`."""
        publisher = Publisher(self._app)
        performer = self._make_performer(publisher)
        pause = 0.0
        while not self._ended:
            self._wake.wait(pause or _LOOK)
            self._wake.clear()
            if not self._is_leader() or self._ended:
                continue
            try:
                self._round(publisher, performer)
            except (*AWAY, StoreError) as error:
                if not pause:
                    log.warning("effects wait: %s", error)
                pause = min(max(2 * pause, _PAUSES[0]), _PAUSES[1])
                # a wake-up does not shorten the pause
                threading.Event().wait(pause)
            except Exception:
                # a bug must not end the thread: every other task's result depends on it
                log.exception("effects wait")
                pause = _PAUSES[1]
                threading.Event().wait(pause)
            else:
                if pause:
                    log.info("effects go on")
                pause = 0.0
        publisher.close()

    def _round(self, publisher: Publisher, performer: Performer) -> None:
        while self._is_leader() and not self._ended:
            told = list(self._events)
            flower_events.publish(self._app, publisher, told)
            for _ in told:
                self._events.popleft()
            if performer.perform() < BATCH:
                return
