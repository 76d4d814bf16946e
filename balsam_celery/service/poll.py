"""The body of ``balsam.poll``: what the scheduler says → allocation rows; what ended is reaped."""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select, text, union

from balsam_celery.errors import SchedulerError, SchedulerUnavailable
from balsam_celery.schedulers.base import Job, JobState, Scheduler
from balsam_celery.service.lingering import Lingering
from balsam_celery.service.patience import Hangs, Patient
from balsam_celery.service.submit import job_prefix
from balsam_celery.service.verdict import GONE_AFTER, OVERDUE_AFTER, Left, change, left_behind
from balsam_celery.site import Site
from balsam_celery.store import allocations, scans, schema
from balsam_celery.store.allocations import LIVE_PILOTS
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationRow, AllocationState

log = logging.getLogger(__name__)

_SUBMITTED = (AllocationState.QUEUED, AllocationState.RUNNING)
_OVER = (AllocationState.ENDED, AllocationState.FAILED)
#: Seconds after which a cancellation without effect is asked for again.
CANCEL_AGAIN = 10.0
#: So many cancellations of one poll may go unanswered before it leaves the rest to the next.
MOST_SILENCES = 2
#: Begins the reason of an allocation while the scheduler does not answer.
NOT_KNOWN = "its state is not known since "


class Poller:
    """Polls the scheduler; one for the life of a service process.

    It remembers since when jobs are missing or run and what it cancelled when; a new one starts
    afresh, which only delays. That a job runs too long is measured here too, since the scheduler,
    by whose clock its start is told, ends it anyway: clocks of two machines may be minutes apart.

    Args:
        store, scheduler, site: the site's.
        lingering: asks whether pilots live whose job is missing, or has ended by the word of a
            scheduler whose word is no proof; ``None``: nobody asks.
        patient: looks for what pilots left that did not start; ``None``: one of its own.
        timer: tells seconds that pass; other than the time of day it is never set.

    Attributes:
        running: the jobs of RUNNING allocations, by allocation, as the last :meth:`poll` was told;
            empty when the scheduler did not answer.
    """

    def __init__(
        self,
        store: Store,
        scheduler: Scheduler,
        site: Site,
        lingering: Lingering | None = None,
        patient: Patient | None = None,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self.running: dict[str, Job] = {}
        self._store = store
        self._scheduler = scheduler
        self._site = site
        self._lingering = lingering
        self._patient = patient if patient is not None else Patient()
        self._timer = timer
        self._missing: dict[str, float] = {}  # by allocation; since when, by the timer
        self._runs: dict[str, float] = {}  # by native id; since when jobs were seen to run
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
        self.running = {}
        if rows:
            try:
                jobs = self._scheduler.jobs([row.native_id for row in rows if row.native_id])
            except SchedulerUnavailable as error:
                self._not_known(rows, error)
            else:
                self._update(rows, jobs)
        with self._store.read() as conn:
            return to_reap(conn)

    def _not_known(self, rows: Sequence[AllocationRow], error: SchedulerUnavailable) -> None:
        log.warning("states of allocations are not known: %s", error)
        self._missing.clear()  # to be missing from answers, there must be answers
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self._store.clock()))
        changes = {
            row.id: {"reason": f"{NOT_KNOWN}{since}: {error}"}
            for row in rows
            if row.cancel_requested is None and not row.reason.startswith(NOT_KNOWN)
        }
        if changes:
            self._store.run(lambda conn: _write(conn, changes))

    def _update(self, rows: Sequence[AllocationRow], jobs: Mapping[str, Job]) -> None:
        now, passed = self._store.clock(), self._timer()
        namesakes = self._namesakes(jobs)
        told: dict[str, Job] = {}
        for row in rows:
            job = jobs.get(row.native_id or "")
            if job is None or job.state is not JobState.RUNNING:
                # submitted twice after all, and the other one is the one that serves
                others = (one for one in namesakes[row.id] if one.state is JobState.RUNNING)
                job = next(others, job)
            if job is not None:
                told[row.id] = job
        self._missing = {
            row.id: self._missing.get(row.id, passed) for row in rows if row.id not in told
        }
        runs = [one.native_id for one in told.values() if one.state is JobState.RUNNING]
        runs += [row.native_id or "" for row in rows if row.id in self._missing]
        self._runs = {id: self._runs.get(id, passed) for id in runs}
        with self._store.read() as conn:
            served = _served(conn, [row.id for row in rows])
        changes: dict[str, dict[str, Any]] = {}
        hanging: dict[str, str] = {}
        for row in rows:
            job = told.get(row.id)
            runs_since = self._runs.get(job.native_id, passed) if job is not None else passed
            try:
                changes[row.id] = change(
                    row,
                    job,
                    now=now,
                    gone=passed >= self._missing.get(row.id, passed) + GONE_AFTER,
                    overdue=passed > runs_since + row.wall_time + OVERDUE_AFTER,
                    served=row.id in served,
                    left=self._left,
                )
            except Hangs as error:
                hanging[row.id] = f"its job has ended, and its pilot never came: {error}"
        held = self._held(changes, missing=[row.id for row in rows if row.id not in told])
        held |= hanging
        for row in rows:
            if row.id in held:
                changes[row.id] = {"reason": held[row.id]} if held[row.id] != row.reason else {}
        if any(changes.values()):
            self._store.run(lambda conn: _write(conn, changes))
        doomed = []
        for row in rows:
            state = changes[row.id].get("state", row.state)
            job = told.get(row.id)
            if row.id in held:
                continue
            if state in _OVER:
                log.info("allocation %s has ended: %s", row.id, changes[row.id]["reason"])
            elif row.cancel_requested is not None or "cancel_requested" in changes[row.id]:
                doomed.append(job.native_id if job is not None else row.native_id or "")
            elif job is not None and job.impossible and job.state is JobState.QUEUED:
                doomed.append(job.native_id)
            elif job is not None and state is AllocationState.RUNNING:
                self.running[row.id] = job
        self._cancel([*doomed, *self._strays(rows, told, namesakes)])

    def _left(self, row: AllocationRow) -> Left:
        """What a pilot has left that did not start.

        Raises:
            Hangs: the file system does not answer yet.
        """
        directory = Path(row.run_dir)
        return self._patient.look(directory, "start-up", lambda: left_behind(row), Left())

    def _held(
        self, changes: Mapping[str, Mapping[str, Any]], missing: Collection[str]
    ) -> dict[str, str]:
        """Allocations that would be ENDED if their pilots had not to be waited for, and why."""
        if self._lingering is None:
            return {}
        ended = {id for id, one in changes.items() if one.get("state") is AllocationState.ENDED}
        if self._scheduler.capabilities.end_is_proof:
            # watched from the first answer that lacks them, so that a dead one is not waited for
            held = self._lingering.held((), missing=missing)
        else:
            held = self._lingering.held(ended)
        return {id: reason for id, reason in held.items() if id in ended}

    def _namesakes(self, jobs: Mapping[str, Job]) -> defaultdict[str, list[Job]]:
        """Jobs that have not ended, by the allocation that their name tells."""
        found: defaultdict[str, list[Job]] = defaultdict(list)
        prefix = job_prefix(self._site)
        for job in jobs.values():
            if job.name.startswith(prefix) and job.state is not JobState.ENDED:
                found[job.name.removeprefix(prefix)].append(job)
        return found

    def _strays(
        self,
        rows: Sequence[AllocationRow],
        told: Mapping[str, Job],
        namesakes: Mapping[str, Sequence[Job]],
    ) -> list[str]:
        """Jobs that are to serve nothing: of an allocation that is over, or that has another.

        A running one of those is left to its pilot, which finds the allocation claimed.
        """
        known = {row.id for row in rows}
        others = [id for id in namesakes if id not in known]
        with self._store.read() as conn:
            over = _in_states(conn, others, _OVER) if others else set()
        strays = [job.native_id for id in over for job in namesakes[id]]
        for id, job in told.items():
            strays += [
                one.native_id
                for one in namesakes.get(id, ())
                if one.native_id != job.native_id and one.state is JobState.QUEUED
            ]
        for native_id in strays:
            log.warning("job %s serves no allocation and is cancelled", native_id)
        return strays

    def _cancel(self, native_ids: Sequence[str]) -> None:
        now = self._timer()
        self._cancelled = {id: at for id, at in self._cancelled.items() if id in native_ids}
        silences = 0
        # those asked longest ago first, so that what fails keeps none behind it waiting for ever
        for native_id in sorted(native_ids, key=lambda id: self._cancelled.get(id, -math.inf)):
            if not native_id or now < self._cancelled.get(native_id, -math.inf) + CANCEL_AGAIN:
                continue
            self._cancelled[native_id] = now
            try:
                self._scheduler.cancel(native_id)
            except SchedulerUnavailable as error:
                log.warning("job %s could not be cancelled: %s", native_id, error)
                silences += 1
                if silences == MOST_SILENCES:
                    return  # each took as long as a command may; the next poll goes on
            except SchedulerError as error:
                log.warning("job %s could not be cancelled: %s", native_id, error)


def _write(conn: Connection, changes: Mapping[str, Mapping[str, Any]]) -> None:
    table = schema.allocation.c
    wanted = table.id.in_(list(changes)), table.cancel_requested.is_not(None)
    cancelled = set(conn.scalars(select(table.id).where(*wanted).with_for_update()))
    for id, values in changes.items():
        state = values.get("state")
        if id in cancelled and state not in _OVER:
            # perhaps while the scheduler was asked: who cancelled it is told until the end
            own = ("reason", "cancel_requested")
            values = {name: value for name, value in values.items() if name not in own}
        if values:
            sources = _SUBMITTED if state in (None, AllocationState.ENDED) else _SUBMITTED[:1]
            allocations.update_allocation(conn, id, sources, **values)


def _served(conn: Connection, ids: Sequence[str]) -> set[str]:
    """Those of the allocations in which a pilot has registered."""
    pilot = schema.pilot.c
    return set(conn.scalars(select(pilot.allocation).where(pilot.allocation.in_(ids))))


def _in_states(conn: Connection, ids: Sequence[str], states: Sequence[AllocationState]) -> set[str]:
    table = schema.allocation.c
    # not by their state: SQLite would read all that are in it
    found = conn.execute(select(table.id, table.state).where(table.id.in_(ids)))
    return {row.id for row in found if row.state in states}


def to_reap(conn: Connection) -> list[str]:
    """Allocations that have ended, whose pilots have not, or still hold tasks."""
    pilot, task = schema.pilot.c, schema.task
    # from what is live to the allocations, of which an old site has many more
    holding = scans.by_index(select(task.c.pilot), "ix_task_on_pilot")
    held = select(pilot.allocation).where(
        pilot.id.in_(holding.where(text(schema.ON_PILOT_SQL), task.c.pilot.is_not(None)))
    )
    live = select(pilot.allocation).where(pilot.state.in_(LIVE_PILOTS))
    ids = sorted(set(conn.scalars(union(live, held))))
    return sorted(_in_states(conn, ids, (AllocationState.ENDED,))) if ids else []
