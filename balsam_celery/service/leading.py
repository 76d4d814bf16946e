"""Leadership of the service: a lease in SQL, renewed while it lasts (R1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection

from balsam_celery.store import lease
from balsam_celery.store.engine import Store

T = TypeVar("T")

NAME = "service"
#: Seconds after which a leader that fell silent is replaced; renewed at a third of it.
TIME_TO_LIVE = 6.0


class NotLeading(Exception):
    """The lease is another's: do nothing more in the leader's name."""


class Leadership(lease.Candidate):
    """The candidate of one service process."""

    def __init__(self, store: Store, ttl: float = TIME_TO_LIVE) -> None:
        super().__init__(store, NAME, ttl)

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
