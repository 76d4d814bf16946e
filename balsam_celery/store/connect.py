"""Connections: addresses, SQLite's pragmas, PostgreSQL's time-outs."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, FromClause, create_engine, event
from sqlalchemy.dialects.sqlite.base import SQLiteCompiler
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from balsam_celery.errors import SiteError
from balsam_celery.store.filesystems import network_file_system
from balsam_celery.store.plaintext import to_json

#: How long a statement waits for another transaction, seconds.
BUSY_TIMEOUT = 10.0
#: libpq's settings, unless the address has its own: seconds, ``tcp_user_timeout`` milliseconds. A
#: host that is gone without a word is noticed within half a minute; TCP alone takes hours while an
#: answer is awaited. Where there is no TCP (a Unix socket) they are ignored.
_POSTGRES_SETTINGS = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


def parse_url(url: str) -> URL:
    """Check a database's address.

    Raises:
        SiteError: it is neither ``sqlite:///PATH`` nor ``postgresql+psycopg://…``.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # the text is not shown: it may hold a password
        raise SiteError(_MEND.format("the database's address cannot be read")) from None
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername == "postgresql+psycopg":
        if secret := parsed.query.get("password"):
            # where it is hidden when the address is shown
            parsed = parsed.difference_update_query(["password"]).set(password=str(secret))
        return parsed
    if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return parsed
    raise SiteError(_MEND.format(f"the database {parsed} cannot be used"))


_MEND = "{}: give sqlite:////PATH or postgresql+psycopg://USER@HOST/NAME"


def database_file(url: URL) -> Path | None:
    """The SQLite file of ``url``, ``None`` for PostgreSQL."""
    if url.get_backend_name() != "sqlite" or url.database is None:
        return None
    return Path(url.database)


def make_engine(
    url: URL, *, foreign_keys: bool = True, busy_timeout: float = BUSY_TIMEOUT
) -> Engine:
    """An engine for ``url``; connects at first use.

    Its errors do not show the values of a statement, among which are users' secrets (R11).

    Args:
        url: from :func:`parse_url`.
        foreign_keys: enforced on SQLite; migrations that rebuild a table must turn it off.
        busy_timeout: how long a statement waits for another transaction, seconds.

    Raises:
        SiteError: an SQLite file on a network file system, or no driver for PostgreSQL.
    """
    path = database_file(url)
    if path is None:
        return _postgres_engine(url, busy_timeout)
    if kind := network_file_system(path):
        raise SiteError(
            f"the database {path} lies on a network file system ({kind}), where SQLite loses data:"
            " set another path for it in site.toml, local to this machine, or use PostgreSQL"
        )
    engine = create_engine(
        url,
        json_serializer=to_json,
        hide_parameters=True,
        connect_args={"timeout": busy_timeout},
        pool_size=5,
        max_overflow=20,
    )

    engine.dialect.statement_compiler = _HintingCompiler

    def configure(connection: sqlite3.Connection, _record: object) -> None:
        # we say BEGIN ourselves, below: the driver's own would be deferred
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")

    def begin(conn: Connection) -> None:
        options = conn.get_execution_options()
        # a commit is on the disk before its effects (R7): NORMAL would lose the last ones with the
        # machine's power, and with them that a job was submitted or an outcome acknowledged
        synchronous = "FULL" if options.get("balsam_durable", True) else "NORMAL"
        conn.exec_driver_sql(f"PRAGMA synchronous = {synchronous}")
        conn.exec_driver_sql("BEGIN IMMEDIATE" if options.get("balsam_write", False) else "BEGIN")

    event.listen(engine, "connect", configure)
    event.listen(engine, "begin", begin)
    return engine


class _HintingCompiler(SQLiteCompiler):
    """Lets ``Select.with_hint`` say INDEXED BY, which SQLAlchemy leaves out for SQLite."""

    def get_from_hint_text(self, table: FromClause, text: str | None) -> str | None:
        """The hint as it stands."""
        return text


def _postgres_engine(url: URL, busy_timeout: float) -> Engine:
    try:
        engine = create_engine(
            url,
            json_serializer=to_json,
            hide_parameters=True,
            pool_pre_ping=True,
            pool_size=5,
            max_overflow=20,
            connect_args={
                name: value for name, value in _POSTGRES_SETTINGS.items() if name not in url.query
            },
        )
    except ModuleNotFoundError:
        raise SiteError(
            "PostgreSQL needs a driver: install it with pip install 'balsam_celery[postgres]'"
        ) from None

    def configure(connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = {round(busy_timeout * 1000)}")
            # a client that stands still inside a transaction must not hold its locks for ever
            cursor.execute("SET idle_in_transaction_session_timeout = '60s'")
        connection.commit()

    event.listen(engine, "connect", configure)
    return engine
