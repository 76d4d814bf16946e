"""Which errors of a database driver are its state of health, and which a fault of the values.

Only the latter concern what was to be written: whoever drops it for anything else loses it.
"""

from __future__ import annotations

from enum import Enum, auto

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError


class Failure(Enum):
    """Why a transaction did not go through."""

    #: It fell to another transaction and was rolled back; trying again helps.
    CONTENTION = auto()
    #: The database does not answer, or broke the connection.
    AWAY = auto()
    #: It answers and cannot: disk full, read-only, damaged, no right, a schema that is not ours.
    BROKEN = auto()


_SQLITE_CONTENTION = {5, 6}  # SQLITE_BUSY, SQLITE_LOCKED
_SQLITE_VALUES = {18, 19, 20, 25}  # SQLITE_TOOBIG, SQLITE_CONSTRAINT, SQLITE_MISMATCH, …_RANGE
# serialization_failure, deadlock_detected, lock_not_available
_POSTGRES_CONTENTION = {"40001", "40P01", "55P03"}
# connection exceptions, admin shutdown and the like, too many connections
_POSTGRES_AWAY = ("08", "57P", "53300", "25P03")
# data exceptions, integrity constraints, more than the program can hold (a row of an index)
_POSTGRES_VALUES = ("22", "23", "54")


def classify(error: DBAPIError) -> Failure | None:
    """What kind of failure ``error`` is; ``None``: the values cannot be written, a constraint says
    so or the driver."""
    if error.connection_invalidated:
        return Failure.AWAY
    # the driver's own words: sqlite3 from Python 3.11 on, and psycopg
    sqlite_code = getattr(error.orig, "sqlite_errorcode", None)
    if sqlite_code is not None:
        return _classify_sqlite(sqlite_code)
    state = getattr(error.orig, "sqlstate", None)
    if state in _POSTGRES_CONTENTION:
        return Failure.CONTENTION
    if state is not None and state.startswith(_POSTGRES_AWAY):
        return Failure.AWAY
    if state is not None:
        return None if state.startswith(_POSTGRES_VALUES) else Failure.BROKEN
    # psycopg gives no state when it could not connect, nor when it refuses a value itself
    return Failure.AWAY if isinstance(error, (OperationalError, InterfaceError)) else None


def _classify_sqlite(code: int) -> Failure | None:
    if code & 0xFF in _SQLITE_CONTENTION:
        return Failure.CONTENTION
    return None if code & 0xFF in _SQLITE_VALUES else Failure.BROKEN
