"""Leadership of the service: a lease in SQL, renewed while it lasts (R1)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection

from balsam_celery.holders import new_holder
from balsam_celery.store import lease
from balsam_celery.store.engine import Store

T = TypeVar("T")
log = logging.getLogger(__name__)

NAME = "service"
#: Seconds after which a leader that fell silent is replaced; renewed at a third of it.
TIME_TO_LIVE = 6.0


class NotLeading(Exception):
    """The lease is another's: do nothing more in the leader's name."""


class Leadership:
    """One candidate for the lease.

    Attributes:
        holder: unique in the world and time.
        term: of the lease while it is ours, else ``None``.
    """

    def __init__(self, store: Store, ttl: float = TIME_TO_LIVE) -> None:
        self._store = store
        self._ttl = ttl
        self._renewed = 0.0
        self.holder = new_holder()
        self.term: int | None = None

    @property
    def is_leader(self) -> bool:
        """The lease was ours when last looked at, and has not run out since."""
        return self.term is not None and time.monotonic() < self._renewed + self._ttl

    def keep(self) -> bool:
        """Take or renew the lease when it is time to; tell whether it is ours.

        Raises:
            StoreError: the database did not answer.
        """
        begun = time.monotonic()
        if self.is_leader and begun < self._renewed + self._ttl / 3:
            return True
        if self.term is not None and not lease.renew(
            self._store, NAME, self.holder, self.term, self._ttl
        ):
            log.warning("another service leads now")
            self.term = None
        if self.term is None:
            self.term = lease.acquire(self._store, NAME, self.holder, self._ttl)
        if self.term is not None:
            # counted from before the database was asked, so that it never lasts longer for us
            self._renewed = begun
        return self.term is not None

    def run(self, fn: Callable[[Connection], T]) -> T:
        """``Store.run`` that is refused, inside the transaction, unless the lease is ours.

        Raises:
            NotLeading: it is not; nothing was written.
            StoreError: the database did not answer.
        """
        term = self.term
        if term is None:
            raise NotLeading

        def guarded(conn: Connection) -> T:
            if not lease.holds(conn, NAME, self.holder, term):
                raise NotLeading
            return fn(conn)

        try:
            return self._store.run(guarded)
        except NotLeading:
            self.term = None
            raise

    def give_up(self) -> None:
        """Let another lead at once.

        Raises:
            StoreError: the database did not answer; the lease runs out by itself.
        """
        term, self.term = self.term, None
        if term is not None:
            lease.release(self._store, NAME, self.holder, term)
