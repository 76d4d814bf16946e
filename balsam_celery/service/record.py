"""Records of workers → guarded moves, attempt rows, release of dependents, effects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from balsam_celery.service import ended, lost, pilots, requests, steps, transitions
from balsam_celery.service.cases import Batch, Change
from balsam_celery.service.release import settle
from balsam_celery.settings import RetrySettings
from balsam_celery.states import ON_PILOT, State
from balsam_celery.store import runtimes
from balsam_celery.wire import (
    Ended,
    KillAsked,
    PilotEnded,
    Record,
    Registered,
    Started,
    StepEnded,
    StepStarted,
    TransitionEnded,
    WorkerLost,
)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a batch changed.

    Attributes:
        left: (pilot, task id, attempt) of those that hold no slots any more.
        changes: tasks that changed state, in order.
        foreign: revokes of ids that are no rows: ordinary Celery tasks, which the tasks worker
            must revoke.
        unwanted: (pilot, reason) of those that registered and were not taken.
        ends: of programs on one node, with their pilots, in order.
    """

    left: tuple[tuple[str, str, int], ...] = ()
    changes: tuple[Change, ...] = ()
    foreign: tuple[KillAsked, ...] = ()
    unwanted: tuple[tuple[str, str], ...] = ()
    ends: tuple[tuple[str, str, Ended], ...] = ()


def bare(record: Record, fault: str) -> Record | None:
    """What must be known of an end that cannot be written as it is; ``None``: of others nothing.

    What is over would else be taken for lost, and run again. A step's return value cannot be done
    without: it has failed.
    """
    if isinstance(record, Ended):
        kept = ("id", "attempt", "outcome", "reason", "ended", "started", "exit_code", "signal")
        return Ended(**{name: getattr(record, name) for name in kept})
    if isinstance(record, StepEnded):
        result = f"its end cannot be recorded: {fault}"
        return replace(record, state="FAILURE", result=result, traceback=None)
    return None


def record(
    conn: Connection,
    records: Sequence[Record],
    *,
    now: float,
    who: str = "service",
    retry: RetrySettings | None = None,
) -> Recorded:
    """Write what ``records`` tell, in their order; stale and repeated ones change nothing.

    Also for reaping: pass ``Ended(outcome="drained", …)`` values made up for attempts whose
    allocation has ended.

    Args:
        conn: from ``Store.run`` or ``Store.write``.
        records: of any kind; those that concern no row (``Wake``) are passed over.
        now: seconds since the epoch.
        who: for the events.
        retry: ``[retry]`` of the site; its defaults where not given.
    """
    batch = Batch(conn, now, who, retry=retry or RetrySettings())
    batch.load({one.id for one in records if isinstance(one, _OF_TASKS)})
    foreign: list[KillAsked] = []
    unwanted: list[tuple[str, str]] = []
    ends: list[tuple[str, str, Ended]] = []
    for one in records:
        if isinstance(one, (Started, StepStarted)):
            _started(batch, one)
        elif isinstance(one, Ended):
            holder = ended.program_ended(batch, one)
            shares = batch.cases[one.id].row.shares if holder is not None else None
            if holder is not None and one.outcome == "drained":
                pilots.stops(conn, holder, one.reason)
            elif holder is not None and shares is not None and len(shares) == 1:
                ends.append((holder, shares[0]["node"], one))
        elif isinstance(one, StepEnded):
            steps.ended(batch, one)
        elif isinstance(one, TransitionEnded):
            transitions.ended(batch, one)
        elif isinstance(one, Registered):
            if reason := pilots.registered(conn, one, now):
                unwanted.append((one.pilot, reason))
        elif isinstance(one, PilotEnded):
            pilots.ended(conn, one)
        elif isinstance(one, WorkerLost) and not one.restarted:
            settle(batch)
            lost.worker_lost(batch, one)
        elif isinstance(one, KillAsked):
            # its cases may be those of records before it: write these first
            settle(batch)
            requests.kill_batch(
                batch, one.ids, f"revoked by {one.who}", only_waiting=not one.terminate
            )
            unknown = tuple(id for id in one.ids if id not in batch.cases)
            if unknown:
                foreign.append(KillAsked(unknown, one.terminate, one.who))
    settle(batch)
    runtimes.add(conn, batch.runs)
    left = [
        (change.row.pilot, change.row.id, change.row.attempt)
        for change in batch.changes
        if change.row.pilot is not None and change.state not in ON_PILOT
    ]
    return Recorded(tuple(left), tuple(batch.changes), tuple(foreign), tuple(unwanted), tuple(ends))


_OF_TASKS = (Started, Ended, StepStarted, StepEnded, TransitionEnded)


def _started(batch: Batch, one: Started | StepStarted) -> None:
    case = batch.cases.get(one.id)
    if case is None or case.attempt != one.attempt or case.state is not State.DISPATCHED:
        return
    batch.go(case, State.RUNNING, time=one.time)
    batch.attempt_started(one.id, one.attempt, one.time)
