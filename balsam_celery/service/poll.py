"""The body of ``balsam.poll``: what the scheduler says → allocation rows; what ended is reaped."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select, text

from balsam_celery.errors import SchedulerError, SchedulerUnavailable
from balsam_celery.schedulers.base import Job, JobState, Scheduler
from balsam_celery.site import Site
from balsam_celery.store import allocations, schema
from balsam_celery.store.allocations import LIVE_PILOTS
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationRow, AllocationState

log = logging.getLogger(__name__)

_SUBMITTED = (AllocationState.QUEUED, AllocationState.RUNNING)
#: Seconds for which a job must be missing from the scheduler's answers to count as gone.
GONE_AFTER = 30.0
#: Seconds past its wall time after which the service itself cancels an allocation.
OVERDUE_AFTER = 60.0
#: Seconds after which a cancellation without effect is asked for again.
CANCEL_AGAIN = 10.0


class Poller:
    """Polls the scheduler; one for the life of a service process.

    It remembers since when jobs are missing and what it cancelled when; a new one starts afresh,
    which only delays.
    """

    def __init__(self, store: Store, scheduler: Scheduler, site: Site) -> None:
        self._store = store
        self._scheduler = scheduler
        self._site = site
        self._missing: dict[str, float] = {}
        self._cancelled: dict[str, float] = {}

    def poll(self) -> list[str]:
        """Bring the allocation rows up to date.

        Returns:
            Ids of allocations that have ended and are to be reaped: again at every poll until
            :func:`balsam_celery.service.reap.reap` has marked their pilots ENDED.

        Raises:
            StoreError: the database did not answer.
        """
        # read before the scheduler is asked: each job in it was submitted before the answer
        with self._store.read() as conn:
            rows = allocations.list_allocations(conn, _SUBMITTED)
        if rows:
            try:
                jobs = self._scheduler.jobs()
            except SchedulerUnavailable as error:
                log.warning("states of allocations are not known: %s", error)
            else:
                self._update(rows, jobs)
        with self._store.read() as conn:
            return to_reap(conn)

    def _update(self, rows: Sequence[AllocationRow], jobs: Mapping[str, Job]) -> None:
        now = self._store.clock()
        told = {row.id: job for row in rows if (job := jobs.get(row.native_id or "")) is not None}
        self._missing = {
            row.id: self._missing.get(row.id, now) for row in rows if row.id not in told
        }
        changes = {row.id: self._change(row, told.get(row.id), now) for row in rows}
        if any(changes.values()):
            self._store.run(lambda conn: _write(conn, changes))
        for row in rows:
            state = changes[row.id].get("state", row.state)
            if state is AllocationState.ENDED:
                self._cancelled.pop(row.id, None)
                log.info("allocation %s has ended: %s", row.id, changes[row.id]["reason"])
            elif row.cancel_requested is not None or "cancel_requested" in changes[row.id]:
                self._cancel(row, now)

    def _change(self, row: AllocationRow, job: Job | None, now: float) -> dict[str, Any]:
        """Columns to set, by what the scheduler tells of the job."""
        if job is None:
            if now < self._missing[row.id] + GONE_AFTER:
                return {}
            reason = row.reason or "the scheduler does not know the job any more"
            return {"state": AllocationState.ENDED, "ended": now, "reason": reason}
        if job.state is JobState.ENDED:
            return {
                "state": AllocationState.ENDED,
                "started": row.started if row.started is not None else job.started,
                "ended": job.ended if job.ended is not None else now,
                "reason": row.reason or job.reason or "its job has ended",
            }
        values: dict[str, Any] = {}
        started = row.started
        if job.state is JobState.RUNNING and row.state is AllocationState.QUEUED:
            started = job.started if job.started is not None else now
            values = {"state": AllocationState.RUNNING, "started": started}
        overdue = started is not None and now > started + row.wall_time + OVERDUE_AFTER
        if overdue and row.cancel_requested is None:
            values |= {"cancel_requested": now, "reason": "its wall time is over"}
        return values

    def _cancel(self, row: AllocationRow, now: float) -> None:
        if row.native_id is None or now < self._cancelled.get(row.id, 0.0) + CANCEL_AGAIN:
            return
        self._cancelled[row.id] = now
        try:
            self._scheduler.cancel(row.native_id)
        except SchedulerError as error:
            log.warning("allocation %s could not be cancelled: %s", row.id, error)


def _write(conn: Connection, changes: Mapping[str, Mapping[str, Any]]) -> None:
    for id, values in changes.items():
        if values:
            state = values.get("state")
            sources = (AllocationState.QUEUED,) if state is AllocationState.RUNNING else _SUBMITTED
            allocations.update_allocation(conn, id, sources, **values)


def to_reap(conn: Connection) -> list[str]:
    """Allocations that have ended, whose pilots have not, or still hold tasks."""
    pilot, task, table = schema.pilot, schema.task, schema.allocation
    holding = select(task.c.pilot).where(text(schema.ON_PILOT_SQL))
    query = (
        select(table.c.id)
        .distinct()
        .join(pilot, pilot.c.allocation == table.c.id)
        .where(table.c.state == AllocationState.ENDED)
        .where(pilot.c.state.in_(LIVE_PILOTS) | pilot.c.id.in_(holding))
        .order_by(table.c.id)
    )
    return list(conn.scalars(query))
