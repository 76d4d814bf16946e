"""Leases: one leader of each kind at a time, by a row that expires.

The time is ``store.clock``: with several hosts on one PostgreSQL their clocks must agree to well
under the time to live.
"""

from __future__ import annotations

import functools
import logging
import time

from sqlalchemy import ColumnElement, Connection, Select, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from balsam_celery.holders import is_dead, new_holder
from balsam_celery.store import schema
from balsam_celery.store.engine import Store

log = logging.getLogger(__name__)


class Candidate:
    """One that wants to lead: takes a lease, and renews it at a third of its time to live.

    Args:
        store: the site's database.
        name: what is led: ``"service"``, ``"beat"``.
        ttl: seconds after which a leader that fell silent is replaced.

    Attributes:
        holder: unique in the world and time.
        term: of the lease while it is ours, else ``None``.
    """

    def __init__(self, store: Store, name: str, ttl: float) -> None:
        self._store = store
        self._name = name
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
            StoreError: the database did not answer; what is ours is so until it runs out.
        """
        begun = time.monotonic()
        if self.is_leader and begun < self._renewed + self._ttl / 3:
            return True
        if self.term is not None and not renew(
            self._store, self._name, self.holder, self.term, self._ttl
        ):
            log.warning("another %s leads now", self._name)
            self.term = None
        if self.term is None:
            self.term = acquire(self._store, self._name, self.holder, self._ttl)
        if self.term is not None:
            # counted from before the database was asked, so that it never lasts longer for us
            self._renewed = begun
        return self.term is not None

    def give_up(self) -> None:
        """Let another lead at once.

        Raises:
            StoreError: the database did not answer; the lease runs out by itself.
        """
        term, self.term = self.term, None
        if term is not None:
            release(self._store, self._name, self.holder, term)


def acquire(store: Store, name: str, holder: str, ttl: float) -> int | None:
    """Take the lease if it is free, expired, ``holder``'s already, or of a dead process of ours.

    Args:
        store: the site's database.
        name: what is led: ``"service"``, ``"beat"``.
        holder: unique in the world and time: :func:`balsam_celery.holders.new_holder`.
        ttl: seconds until it expires.

    Returns:
        The term, which grows with each change of holder; ``None`` while another holds it.
    """
    lease = schema.lease
    # looked at before the transaction, which is to be short; it checks that nobody else came
    with store.read() as conn:
        before = conn.scalar(select(lease.c.holder).where(lease.c.name == name))
    dead = before if before and before != holder and is_dead(before) else None

    def take(conn: Connection) -> int | None:
        now = store.clock()
        _make_row(conn, name)
        query = select(lease).where(lease.c.name == name).with_for_update()
        row = conn.execute(query).mappings().one()
        is_own = row["holder"] == holder
        if not is_own and row["expires"] > now and row["holder"] != dead:
            return None
        term: int = row["term"] if is_own else row["term"] + 1
        conn.execute(
            update(lease)
            .where(lease.c.name == name)
            .values(holder=holder, expires=now + ttl, term=term)
        )
        return term

    return store.run(take)


def renew(store: Store, name: str, holder: str, term: int, ttl: float) -> bool:
    """Prolong a lease; ``False`` once another has taken it: stop leading at once.

    A lease that expired and that nobody took is prolonged too.
    """
    lease = schema.lease

    def prolong(conn: Connection) -> bool:
        statement = update(lease).where(*_is(name, holder, term))
        return conn.execute(statement.values(expires=store.clock() + ttl)).rowcount == 1

    return store.run(prolong, durable=False)


def release(store: Store, name: str, holder: str, term: int) -> None:
    """Give a lease up, so that another need not wait for its end; harmless when it is lost."""
    lease = schema.lease

    def give_up(conn: Connection) -> None:
        # the row stays, so that the term goes on growing
        conn.execute(update(lease).where(*_is(name, holder, term)).values(holder="", expires=0.0))

    store.run(give_up)


def holds(conn: Connection, name: str, holder: str, term: int) -> bool:
    """Tell, inside a transaction, whether the lease is still the holder's.

    A leader that asks this first in each transaction that it writes never writes after another
    took over: on PostgreSQL the takeover waits for that transaction's end, on SQLite there is
    one writer.
    """
    is_this = {"lease_name": name, "lease_holder": holder, "lease_term": term}
    return conn.scalar(_held(), is_this) is not None


@functools.cache
def _held() -> Select[int]:
    lease = schema.lease
    query = select(lease.c.term).where(
        lease.c.name == bindparam("lease_name"),
        lease.c.holder == bindparam("lease_holder"),
        lease.c.term == bindparam("lease_term"),
    )
    return query.with_for_update(read=True)


def holder(store: Store, name: str) -> tuple[str, float] | None:
    """Who holds a lease and when it expires, ``None`` when nobody does."""
    lease = schema.lease
    with store.read() as conn:
        row = conn.execute(select(lease).where(lease.c.name == name)).mappings().first()
    if row is None or row["expires"] <= store.clock():
        return None
    return row["holder"], row["expires"]


def _is(name: str, holder: str, term: int) -> tuple[ColumnElement[bool], ...]:
    lease = schema.lease
    return (lease.c.name == name, lease.c.holder == holder, lease.c.term == term)


def _make_row(conn: Connection, name: str) -> None:
    """A row that nobody holds, unless there is one; of two that make it at once, one does."""
    dialect = sqlite if conn.dialect.name == "sqlite" else postgresql
    row = {"name": name, "holder": "", "expires": 0.0, "term": 0}
    conn.execute(dialect.insert(schema.lease).values(row).on_conflict_do_nothing())
