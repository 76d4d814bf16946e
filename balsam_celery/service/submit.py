"""Allocations from rows to batch jobs: never the same one twice.

The row is committed as REQUESTED first; its id is part of the job's name, and the scheduler is
asked for that name before each submission, so that a job whose answer was lost is found again.
"""

from __future__ import annotations

import logging
import secrets
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import Connection

from balsam_celery.errors import SchedulerError, SchedulerUnavailable
from balsam_celery.packing import Request
from balsam_celery.schedulers.base import Job, JobRequest, JobState, Scheduler
from balsam_celery.service.alone import Turn, alone
from balsam_celery.site import Site
from balsam_celery.store import allocations
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationRow, AllocationState

#: Runs the pilot; on compute nodes the same path must lead to the same Python.
PYTHON = sys.executable
log = logging.getLogger(__name__)

#: Seconds between two tries when the scheduler does not answer: grows with the row's age.
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0


def job_name(site: Site, allocation: str) -> str:
    """Name of an allocation's batch job; no other allocation of any site bears it."""
    return f"balsam-{site.settings.site.id}-{allocation}"


def insert_requests(
    conn: Connection, site: Site, requests: Iterable[Request], *, now: float
) -> list[str]:
    """Insert a REQUESTED row for each of ``requests``; returns their ids."""
    ids = []
    for request in requests:
        allocation = secrets.token_hex(6)
        allocations.insert_allocation(
            conn,
            id=allocation,
            queue=request.queue,
            nodes=request.nodes,
            wall_time=request.wall_time,
            run_dir=str(site.run_dir / "allocations" / allocation),
            now=now,
        )
        ids.append(allocation)
    return ids


def submit(store: Store, scheduler: Scheduler, site: Site) -> list[str]:
    """Submit the allocations that are REQUESTED; returns the ids of those that the scheduler has.

    A scheduler that does not answer leaves them REQUESTED; they are tried again after a pause that
    grows. One that refuses makes them FAILED with its reason.

    Raises:
        StoreError: the database did not answer.
    """
    if not _due(store):
        return []
    # as long as two commands may take: a command outlives the process that started it
    command = 2.0 * site.settings.scheduler.command_timeout + 10
    with alone(store, "submit", command) as turn:
        if turn is None:
            return []
        due = _due(store)  # another may have done it between the look and the turn
        try:
            by_name = {job.name: job for job in scheduler.jobs().values()} if due else {}
        except SchedulerUnavailable as error:
            for row in due:
                _put_off(store, row, error)
            return []
        return _submit_rows(store, scheduler, site, due, by_name, turn, command)


def _submit_rows(
    store: Store,
    scheduler: Scheduler,
    site: Site,
    due: Iterable[AllocationRow],
    by_name: dict[str, Job],
    turn: Turn,
    command: float,
) -> list[str]:
    submitted = []
    for row in due:
        job = by_name.get(job_name(site, row.id))
        if job is not None:
            _taken(store, row, job.native_id)
            if job.state is not JobState.ENDED:
                submitted.append(row.id)
            continue
        if row.cancel_requested is not None:
            _over(store, row, AllocationState.ENDED, "not needed any more when it was to be sent")
            continue
        if not turn.keep(command):
            break
        try:
            native_id = scheduler.submit(_prepare(site, row))
        except (SchedulerUnavailable, OSError) as error:
            _put_off(store, row, error)
            break
        except SchedulerError as error:
            log.warning("allocation %s was refused: %s", row.id, error)
            _over(store, row, AllocationState.FAILED, str(error))
            continue
        _taken(store, row, native_id)
        submitted.append(row.id)
        log.info(
            "allocation %s: %d nodes for %d s in %s, job %s",
            row.id, row.nodes, row.wall_time, row.queue, native_id,
        )  # fmt: skip
    return submitted


def _due(store: Store) -> list[AllocationRow]:
    """REQUESTED rows that were never tried, or long enough ago."""
    now = store.clock()
    with store.read() as conn:
        rows = allocations.list_allocations(conn, (AllocationState.REQUESTED,))
    return [row for row in rows if row.submitted is None or now >= row.submitted + _pause(row)]


def _pause(row: AllocationRow) -> float:
    tried_for = (row.submitted or row.created) - row.created
    return min(LONGEST_PAUSE, max(FIRST_PAUSE, tried_for / 2))


def _prepare(site: Site, row: AllocationRow) -> JobRequest:
    """Make the allocation's directory and its script.

    Raises:
        OSError: the run directory cannot be written.
    """
    directory = Path(row.run_dir)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    script = directory / "job.sh"
    command = [PYTHON, "-m", "balsam_celery.pilot"]
    command += ["--site", str(site.directory), "--allocation", row.id]
    script.write_text(f"#!/bin/sh\nexec {shlex.join(command)}\n", encoding="utf-8")
    script.chmod(0o700)
    return JobRequest(
        job_name(site, row.id), row.queue, row.nodes, row.wall_time, script, directory
    )


def _taken(store: Store, row: AllocationRow, native_id: str) -> None:
    """The scheduler has the job; its state comes with the next poll."""
    store.run(
        lambda conn: allocations.update_allocation(
            conn,
            row.id,
            (AllocationState.REQUESTED,),
            state=AllocationState.QUEUED,
            native_id=native_id,
            submitted=store.clock(),
            reason="",
        )
    )


def _over(store: Store, row: AllocationRow, state: AllocationState, reason: str) -> None:
    store.run(
        lambda conn: allocations.update_allocation(
            conn,
            row.id,
            (AllocationState.REQUESTED,),
            state=state,
            ended=store.clock(),
            reason=reason,
        )
    )


def _put_off(store: Store, row: AllocationRow, error: Exception) -> None:
    log.warning("allocation %s is not submitted yet: %s", row.id, error)
    store.run(
        lambda conn: allocations.update_allocation(
            conn,
            row.id,
            (AllocationState.REQUESTED,),
            submitted=store.clock(),
            reason=f"not submitted yet: {error}",
        )
    )
