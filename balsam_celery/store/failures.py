"""Which errors of a database driver are its state of health, and not a bug of ours."""

from __future__ import annotations

from enum import Enum, auto

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError


class Failure(Enum):
    """Why a transaction did not go through."""

    #: It fell to another transaction and was rolled back; trying again helps.
    CONTENTION = auto()
    #: The database does not answer, or broke the connection.
    AWAY = auto()
    #: It answers and cannot: disk full, read-only, damaged.
    BROKEN = auto()


_SQLITE_CONTENTION = {5, 6}  # SQLITE_BUSY, SQLITE_LOCKED
_SQLITE_DAMAGED = {11, 26}  # SQLITE_CORRUPT, SQLITE_NOTADB
# serialization_failure, deadlock_detected, lock_not_available
_POSTGRES_CONTENTION = {"40001", "40P01", "55P03"}
# connection exceptions, admin shutdown and the like, too many connections
_POSTGRES_AWAY = ("08", "57P", "53300", "25P03")


def classify(error: DBAPIError) -> Failure | None:
    """What kind of failure ``error`` is; ``None`` for one that is a bug or a broken constraint."""
    if error.connection_invalidated:
        return Failure.AWAY
    # the driver's own words: sqlite3 from Python 3.11 on, and psycopg
    sqlite_code = getattr(error.orig, "sqlite_errorcode", None)
    if sqlite_code is not None:
        return _classify_sqlite(error, sqlite_code)
    state = getattr(error.orig, "sqlstate", None)
    if state in _POSTGRES_CONTENTION:
        return Failure.CONTENTION
    if state is not None and state.startswith(_POSTGRES_AWAY):
        return Failure.AWAY
    if state is not None and state.startswith(("53", "58")):
        return Failure.BROKEN
    # psycopg gives no state when it could not connect
    is_connection = isinstance(error, (OperationalError, InterfaceError)) and state is None
    return Failure.AWAY if is_connection else None


def _classify_sqlite(error: DBAPIError, code: int) -> Failure | None:
    if code & 0xFF in _SQLITE_CONTENTION:
        return Failure.CONTENTION
    if code & 0xFF in _SQLITE_DAMAGED:
        return Failure.BROKEN
    # SQLITE_ERROR (1) is bad SQL; every other operational error is about the file
    return Failure.BROKEN if isinstance(error, OperationalError) and code & 0xFF != 1 else None
