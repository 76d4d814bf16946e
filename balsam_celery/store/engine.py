"""Opening a site's database, and transactions on it."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import Connection, Engine, inspect, select, table, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from balsam_celery.errors import SchemaError, StoreError
from balsam_celery.store.connect import BUSY_TIMEOUT, database_file, make_engine, parse_url
from balsam_celery.store.failures import Failure, classify
from balsam_celery.store.revisions import check_revision

T = TypeVar("T")
log = logging.getLogger(__name__)

#: How often :meth:`Store.run` tries; each try waits up to the busy time-out by itself.
TRIES = 4


class Store:
    """A site's database.  Thread-safe; one per process.

    Attributes:
        engine: SQLAlchemy's engine.
        clock: seconds since the epoch; everything in ``store`` that needs the time and is not
            given it asks this.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self.engine = engine
        self.clock = clock
        self._writer = engine.execution_options(balsam_write=True)

    @classmethod
    def open(
        cls,
        url: str,
        *,
        check_schema: bool = True,
        clock: Callable[[], float] = time.time,
        busy_timeout: float = BUSY_TIMEOUT,
    ) -> Store:
        """Open the database at ``url``.

        Args:
            url: ``sqlite:////path`` or ``postgresql+psycopg://…``.
            check_schema: refuse a schema that is not this package's.
            clock: where the time comes from; tests give their own.
            busy_timeout: how long a statement waits for another transaction, seconds.

        Raises:
            SiteError: not such an address, or an SQLite file on a network file system.
            SchemaError: no schema, an older one or a newer one; says what mends it.
            StoreError: the database does not answer.
        """
        parsed = parse_url(url)
        path = database_file(parsed)
        if check_schema and path is not None and not path.is_file():
            raise SchemaError(f"there is no database at {path}: run 'balsam up'")
        store = cls(make_engine(parsed, busy_timeout=busy_timeout), clock)
        if check_schema:
            try:
                with store.read() as conn:
                    check_revision(read_revision(conn), str(parsed))
            except BaseException:
                store.close()
                raise
        return store

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction for writing; BEGIN IMMEDIATE on SQLite.  Commits at the end.

        Keep it short and open no other world (Redis, files, scheduler) inside it (R1).

        Raises:
            StoreError: the database is locked, away, or broke the transaction off.
        """
        with translated(self.engine.url), self._writer.begin() as conn:
            yield conn

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction for reading; whatever it wrote would be rolled back.

        Raises:
            StoreError: the database is away.
        """
        with translated(self.engine.url), self.engine.connect() as conn:
            yield conn

    def run(self, fn: Callable[[Connection], T], *, durable: bool = True) -> T:
        """Run ``fn`` in a transaction for writing, again when it fell to another one.

        ``fn`` may be called several times, so it must have no effect but on the connection.
        A connection lost in the very commit is not tried again, for nobody knows how it ended.

        Args:
            fn: what to do.
            durable: its commit is on the disk when this returns. Else SQLite, which keeps all
                others from writing meanwhile, does not wait for the disk: for what is done again
                when it is lost with the machine's power.

        Raises:
            StoreError: it did not go through in :data:`TRIES` tries.
        """
        writer = self._writer.execution_options(balsam_durable=durable)
        for left in reversed(range(TRIES)):
            ended = False
            try:
                with writer.begin() as conn:
                    result = fn(conn)
                    ended = True
                return result
            except DBAPIError as error:
                failure = classify(error)
                retry = failure is Failure.CONTENTION or (failure is Failure.AWAY and not ended)
                if failure is None:
                    raise
                if not (retry and left):
                    raise _store_error(error, self.engine.url) from error
                log.info("the database was busy or away, trying again: %s", error.orig)
            # random, so that those who met once do not meet again
            jitter = random.uniform(0.5, 1.5)  # noqa: S311 - no secret
            time.sleep(jitter * 0.05 * 4 ** (TRIES - 1 - left))
        raise AssertionError("unreachable: the last try returns or raises")

    def close(self) -> None:
        """Close every connection that is not in use."""
        self.engine.dispose()


def read_revision(conn: Connection) -> str | None:
    """The schema's revision that the database holds, ``None`` when it holds none."""
    version = table("alembic_version")
    if not inspect(conn).has_table(version.name):
        return None
    found: str | None = conn.scalar(select(text("version_num")).select_from(version))
    return found


@contextmanager
def translated(url: URL) -> Iterator[None]:
    """Raise a driver's failure as :class:`StoreError`; values that it refuses pass."""
    try:
        yield
    except DBAPIError as error:
        if classify(error) is None:
            raise
        raise _store_error(error, url) from error


def _store_error(error: DBAPIError, url: URL) -> StoreError:
    lines = str(error.orig).strip().splitlines() or [type(error.orig).__name__]
    return StoreError(f"the database {url} did not answer: {lines[0]}")
