"""One at a time: work that two threads, processes or hosts must never do at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection

from balsam_celery.holders import new_holder
from balsam_celery.store import lease
from balsam_celery.store.engine import Store


@dataclass(frozen=True, slots=True)
class Turn:
    """The right to do a piece of work, for as long as it is kept up."""

    store: Store
    name: str
    holder: str
    term: int

    def keep(self, seconds: float) -> bool:
        """Prolong it by ``seconds`` from now; ``False`` once it is another's: stop at once.

        Raises:
            StoreError: the database did not answer.
        """
        return lease.renew(self.store, self.name, self.holder, self.term, seconds)

    def holds(self, conn: Connection) -> bool:
        """Tell, in the transaction that writes, whether nobody else has taken it."""
        return lease.holds(conn, self.name, self.holder, self.term)


@contextmanager
def alone(store: Store, name: str, seconds: float) -> Iterator[Turn | None]:
    """Hold the turn ``name``, or ``None`` while somebody else does.

    Args:
        store: the site's database.
        name: of the lease.
        seconds: until another machine's may go on should this process die; :meth:`Turn.keep`
            prolongs it.

    Raises:
        StoreError: the database did not answer.
    """
    holder = new_holder()
    term = lease.acquire(store, name, holder, seconds)
    if term is None:
        yield None
        return
    try:
        yield Turn(store, name, holder, term)
    finally:
        lease.release(store, name, holder, term)
