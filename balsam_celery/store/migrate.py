"""Upgrading a database to this package's schema, after a backup."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from contextlib import closing
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.engine import URL

from balsam_celery.errors import SchemaError, StoreError
from balsam_celery.store import schema
from balsam_celery.store.connect import database_file, make_engine, parse_url
from balsam_celery.store.engine import Store, read_revision, translated
from balsam_celery.store.revisions import HEAD, REVISIONS, newer

__all__ = ["HEAD", "REVISIONS", "current", "upgrade"]

log = logging.getLogger(__name__)
_SCRIPTS = Path(__file__).parent / "migrations"
#: Key of PostgreSQL's advisory lock that keeps two upgrades apart: "balsam" in ASCII.
_LOCK = 0x62616C73616D
_DUMP_TIMEOUT = 3600
#: Options of an address by which client and server know each other; the program of the copy has
#: them in variables of the same name.
_CHECKS = ("sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl")


def upgrade(url: str, backup_dir: Path | None) -> str | None:
    """Bring the database at ``url`` to :data:`HEAD`, making it when there is none.

    The change is one transaction: it happens whole or not at all.

    Args:
        url: as for ``Store.open``.
        backup_dir: where a copy goes before an existing schema is changed; made when missing;
            ``None``: no copy.

    Returns:
        Path of the copy; ``None`` when none was needed or could be made.

    Raises:
        SchemaError: the schema is newer than this package, or the tables are not ours.
        StoreError: the copy failed (nothing was changed), or the database does not answer.
    """
    parsed = parse_url(url)
    _make_file(parsed)
    # a migration may make a table anew, and dropping the old one must not delete what hangs on it
    engine = make_engine(parsed, foreign_keys=False)
    try:
        with translated(parsed):
            return _upgrade(engine, parsed, backup_dir)
    finally:
        engine.dispose()


def current(url: str) -> str | None:
    """The revision that the database at ``url`` holds; ``None`` when it holds no schema."""
    path = database_file(parse_url(url))
    if path is not None and not path.is_file():
        return None
    with closing(Store.open(url, check_schema=False)) as store, store.read() as conn:
        return read_revision(conn)


def _upgrade(engine: Engine, url: URL, backup_dir: Path | None) -> str | None:
    with engine.connect() as conn:
        before = _check(conn, url)
    if before == HEAD:
        return None
    backup = None
    if before is not None and backup_dir is not None:
        backup = _back_up(url, before, backup_dir)
    with engine.execution_options(balsam_write=True).begin() as conn:
        if conn.dialect.name == "postgresql":
            conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        # another upgrade may have come first
        if _check(conn, url) != HEAD:
            command.upgrade(_config(conn), "head")
            _check_foreign_keys(conn, url)
    log.info("the schema of the database %s is now %s", url, HEAD)
    return backup


def _check(conn: Connection, url: URL) -> str | None:
    found = read_revision(conn)
    if found is None:
        ours = set(schema.metadata.tables) & set(inspect(conn).get_table_names())
        if ours:
            raise SchemaError(
                f"the database {url} holds tables of someone else ({', '.join(sorted(ours))}):"
                " give the site a database of its own"
            )
    elif found not in REVISIONS:
        raise SchemaError(newer(found, str(url)))
    return found


def _config(conn: Connection) -> Config:
    config = Config()
    # "%" would be taken for an interpolation
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = conn
    return config


def _check_foreign_keys(conn: Connection, url: URL) -> None:
    if conn.dialect.name != "sqlite":
        return
    broken = conn.execute(text("PRAGMA foreign_key_check")).first()
    if broken is not None:
        raise SchemaError(f"upgrading the database {url} would lose rows of {broken[0]}: undone")


def _make_file(url: URL) -> None:
    """An SQLite file that nobody but the owner reads (R11), in the mode of a write-ahead log.

    It appears in one piece: two processes that turned the mode on at once would meet in a lock
    that SQLite does not wait for.
    """
    path = database_file(url)
    if path is None or path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    with closing(sqlite3.connect(name)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    try:
        os.link(name, path)
    except FileExistsError:
        log.debug("another process made %s first", path)
    finally:
        Path(name).unlink()


def _back_up(url: URL, revision: str, directory: Path) -> str | None:
    path = database_file(url)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = path.stem if path is not None else url.database
    target = directory / f"{name}-{revision}-{stamp}{'.sqlite' if path is not None else '.dump'}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.touch(mode=0o600)
        if path is not None:
            _copy_sqlite(path, target)
        elif not _dump_postgres(url, target):
            target.unlink()
            return None
    except (OSError, sqlite3.Error, subprocess.SubprocessError) as error:
        raise StoreError(
            f"the database {url} could not be copied to {target}: {_first_line(error)};"
            " nothing was changed"
        ) from error
    log.info("the database %s was copied to %s", url, target)
    return str(target)


def _first_line(error: Exception) -> str:
    """What went wrong; of a program that failed, what it said."""
    said = getattr(error, "stderr", None)
    lines = str(said or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _copy_sqlite(path: Path, target: Path) -> None:
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(target)) as copy:
        source.backup(copy)


def _dump_postgres(url: URL, target: Path) -> bool:
    program = shutil.which("pg_dump")
    if program is None:
        log.warning("no copy of the database %s is made before its upgrade: no pg_dump here", url)
        return False
    connection = {
        "PGHOST": url.query.get("host", url.host),
        "PGPORT": url.query.get("port", url.port),
        "PGUSER": url.username,
        "PGPASSWORD": url.password,
        "PGDATABASE": url.database,
        **{f"PG{name.upper()}": url.query.get(name) for name in _CHECKS},
    }
    # in the environment of this one child, for a command line is seen by everyone (R11)
    environment = os.environ | {k: str(v) for k, v in connection.items() if v is not None}
    argv = [program, "--format=custom", "--no-password", f"--file={target}"]
    subprocess.run(
        argv,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        timeout=_DUMP_TIMEOUT,
    )
    return True
