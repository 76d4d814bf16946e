"""Who may report what: a pilot speaks for itself, and of the attempts that it was given.

Whoever reaches Redis with the site's password could claim to be any pilot; this is no proof of who
somebody is. It keeps a message that went astray, was replayed, or was built by hand from ending
another pilot's attempt (R4).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Select, select

from balsam_celery.store import schema
from balsam_celery.store.sql import given, given_any
from balsam_celery.wire import (
    Ended,
    KillAsked,
    PilotEnded,
    Record,
    Registered,
    Report,
    Started,
    StepEnded,
    StepStarted,
    TransitionEnded,
    Wake,
    WorkerLost,
)

log = logging.getLogger(__name__)

_OF_ATTEMPTS = (Started, Ended)
_OF_STEPS = (StepStarted, StepEnded)
_OF_PILOTS = (Registered, PilotEnded, WorkerLost)
#: What the login node's processes report; what the scheduler says of a lost node is theirs too.
_OF_LOGIN_NODE = (StepStarted, StepEnded, TransitionEnded, KillAsked, Wake, WorkerLost)


@dataclass(frozen=True, slots=True)
class Told:
    """A record and the pilot that sent it; ``""``: a process of the login node."""

    pilot: str
    record: Record


def told(report: Report) -> list[Told]:
    """Those records of a report that its sender may send; of others the log tells."""
    kept = []
    for _, record in report.records:
        if _may_say(report.pilot, record):
            kept.append(Told(report.pilot, record))
        else:
            log.warning("refused from %.80r: not its to say: %.300r", report.pilot, record)
    return kept


def _may_say(pilot: str, record: Record) -> bool:
    if not pilot:
        return isinstance(record, _OF_LOGIN_NODE)
    if isinstance(record, _OF_PILOTS):
        return record.pilot == pilot
    return isinstance(record, (*_OF_ATTEMPTS, KillAsked))


def of_own_attempts(conn: Connection, several: Sequence[Told]) -> list[Record]:
    """The records, without those of attempts that SQL has not given to their sender.

    Attempts of steps are given to no pilot: the tasks worker tells of them.
    """
    ids = {one.record.id for one in several if isinstance(one.record, _OF_ATTEMPTS + _OF_STEPS)}
    holders = _holders(conn, ids) if ids else {}
    kept = []
    for one in several:
        record = one.record
        if isinstance(record, _OF_ATTEMPTS + _OF_STEPS):
            key = (record.id, record.attempt)
            if key not in holders:
                # pruned, or never there: there is nothing that it could change
                log.warning("refused from %.80r: no such attempt: %.300r", one.pilot, record)
                continue
            if (holders[key] or "") != one.pilot:
                log.warning(
                    "refused from %.80r: the attempt is %s's: %.300r",
                    one.pilot, holders[key], record,
                )  # fmt: skip
                continue
        kept.append(record)
    return kept


def _holders(conn: Connection, ids: set[str]) -> dict[tuple[str, int], str | None]:
    rows = conn.execute(_of_tasks(conn.dialect.name), given(conn, ids))
    return {(task, number): pilot for task, number, pilot in rows}


@functools.cache
def _of_tasks(dialect: str) -> Select[str, int, str | None]:
    attempt = schema.attempt.c
    query = select(attempt.task, attempt.number, attempt.pilot)
    return query.where(given_any(dialect, attempt.task))
