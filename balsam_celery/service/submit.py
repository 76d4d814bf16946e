"""Allocations from rows to batch jobs: never the same one twice.

The row is committed as REQUESTED first; its id is part of the job's name. Before the scheduler is
told, the row is marked (``native_id`` is ""), so that whatever becomes of the answer, and of this
process, it is known that the job may exist. Such a row is submitted again only by a scheduler that
lists jobs by name, once neither that list nor the claim that a pilot makes in Redis knows the job,
and not while the command that submitted it may still live: it outlives the process that started it.
Where jobs have no names to be found by, it is held until its pilot calls or the user gives it up.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import redis
from sqlalchemy import Connection, case, select, update

from balsam_celery import jobscript, keys
from balsam_celery.errors import SchedulerError, SchedulerUnavailable, SettingsError
from balsam_celery.packing import Request
from balsam_celery.schedulers import base
from balsam_celery.schedulers.base import Job, JobRequest, JobState, Scheduler
from balsam_celery.schedulers.commands import LIVES_ON
from balsam_celery.service.alone import Turn, alone
from balsam_celery.service.verdict import GONE_AFTER
from balsam_celery.site import Site
from balsam_celery.store import allocations, schema
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationRow, AllocationState

log = logging.getLogger(__name__)

#: Seconds between two tries when the scheduler does not answer: grows with the row's age.
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
#: Seconds in which a scheduler may still be taking in a job whose answer was lost.
IN_DOUBT_PAUSE = 10.0
#: ``native_id`` of a row whose job may exist.
IN_DOUBT = ""
_UNSENT = "not needed any more when it was to be sent"

_ALIVE = (JobState.ENDED, JobState.QUEUED, JobState.RUNNING)


def job_prefix(site: Site) -> str:
    """What the names of a site's batch jobs begin with, and those of no other site's."""
    return base.job_prefix(site.settings.site.id)


def job_name(site: Site, allocation: str) -> str:
    """Name of an allocation's batch job; no other allocation of any site bears it."""
    return job_prefix(site) + allocation


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
            asked_for=request.reason,
        )
        ids.append(allocation)
    return ids


def submit(store: Store, scheduler: Scheduler, site: Site, client: redis.Redis) -> list[str]:
    """Submit the allocations that are REQUESTED; returns the ids of those that the scheduler has.

    A scheduler that does not answer leaves them REQUESTED, with the reason; they are tried again
    after a pause that grows. One that refuses makes them FAILED with its reason.

    Args:
        store: the site's database.
        scheduler: its batch scheduler.
        site: the site.
        client: Redis, asked for claims of rows whose job may exist.

    Raises:
        StoreError: the database did not answer.
    """
    end_unsent(store)
    if not _due(store):
        return []
    # as long as two commands may take: a command outlives the process that started it
    seconds = 2.0 * site.settings.scheduler.command_timeout + 10
    with alone(store, "submit", seconds) as turn:
        if turn is None:
            return []
        # another may have done it between the look and the turn
        return _Pass(store, scheduler, site, client, turn, seconds).run(_due(store))


@dataclass(frozen=True, slots=True)
class _Pass:
    """One pass over the rows that are due, by the only one who may submit now."""

    store: Store
    scheduler: Scheduler
    site: Site
    client: redis.Redis
    turn: Turn
    seconds: float

    def run(self, due: list[AllocationRow]) -> list[str]:
        known: dict[str, Job] = {}
        asked = self.store.clock()
        if due and self.scheduler.capabilities.finds_by_name:
            try:
                # of several of one name the one that lives
                jobs = sorted(self.scheduler.jobs().values(), key=lambda j: _ALIVE.index(j.state))
            except SchedulerUnavailable as error:
                for row in due:
                    _put_off(self.store, row, error)
                return []
            known = {job.name: job for job in jobs}
        submitted = []
        for row in due:
            job = known.get(job_name(self.site, row.id))
            if job is not None:
                _taken(self.store, row, job.native_id)
                if job.state is not JobState.ENDED:
                    submitted.append(row.id)
                continue
            try:
                if self._one(row, asked):
                    submitted.append(row.id)
            except _Stop:
                break
        return submitted

    def _one(self, row: AllocationRow, asked: float) -> bool:
        """Do what can be done for a row of which the scheduler, ``asked`` then, told no name."""
        if row.native_id is not None:
            try:
                claim = self.client.get(keys.claim(self.site.settings.key_prefix, row.id))
            except redis.RedisError as error:
                log.warning("allocation %s waits: its claim is not known: %s", row.id, error)
                return False
            if claim:
                _taken(self.store, row, claim.decode() if isinstance(claim, bytes) else str(claim))
                return True
        by_name = self.scheduler.capabilities.finds_by_name
        silent = asked - (row.submitted if row.submitted is not None else row.created)
        in_doubt = in_doubt_for(self.site)
        if row.cancel_requested is not None:
            if not by_name or silent >= max(GONE_AFTER, in_doubt):
                # while its job may still turn up, it can be cancelled by its name
                _over(self.store, row, AllocationState.ENDED, row.reason or _UNSENT)
            return False
        if row.native_id is not None and not by_name:
            _hold(self.store, self.site, row, "the service was interrupted")
            return False
        if row.native_id is not None and silent < in_doubt:
            return False
        if not self.turn.keep(self.seconds):
            raise _Stop
        return self._send(row)

    def _send(self, row: AllocationRow) -> bool:
        try:
            request = _prepare(self.site, self.scheduler, row)
        except SettingsError as error:
            if row.queue not in self.site.settings.queues:
                _over(self.store, row, AllocationState.FAILED, str(error))
            else:
                _put_off(self.store, row, error)
            return False
        except OSError as error:
            _put_off(self.store, row, error)
            return False
        if not _mark(self.turn, row):
            return False
        try:
            native_id = self.scheduler.submit(request)
        except SchedulerUnavailable as error:
            if self.scheduler.capabilities.finds_by_name:
                _doubt(self.store, row, f"the scheduler did not say whether it took it: {error}")
            else:
                _hold(self.store, self.site, row, str(error))
            raise _Stop from None
        except SchedulerError as error:
            log.warning("allocation %s was refused: %s", row.id, error)
            _over(self.store, row, AllocationState.FAILED, str(error))
            return False
        _taken(self.store, row, native_id)
        log.info(
            "allocation %s: %d nodes for %d s in %s, job %s",
            row.id, row.nodes, row.wall_time, row.queue, native_id,
        )  # fmt: skip
        return True


class _Stop(Exception):
    """Nothing more can be submitted in this pass."""


def in_doubt_for(site: Site) -> float:
    """Seconds after which a job whose submission was not answered would be in the scheduler.

    As long as its command may live, whatever became of the process that started it, and as the
    scheduler may take from then.
    """
    return site.settings.scheduler.command_timeout + LIVES_ON + IN_DOUBT_PAUSE


def _due(store: Store) -> list[AllocationRow]:
    """REQUESTED rows that were never tried, or long enough ago."""
    now = store.clock()
    with store.read() as conn:
        rows = allocations.list_allocations(conn, (AllocationState.REQUESTED,))
    return [row for row in rows if row.submitted is None or now >= row.submitted + _pause(row)]


def _pause(row: AllocationRow) -> float:
    tried_for = (row.submitted or row.created) - row.created
    first = FIRST_PAUSE if row.native_id is None else IN_DOUBT_PAUSE
    return min(LONGEST_PAUSE, max(first, tried_for / 2))


def _prepare(site: Site, scheduler: Scheduler, row: AllocationRow) -> JobRequest:
    """Make the allocation's directory and its script.

    Raises:
        OSError: the run directory cannot be written.
        SettingsError: the template of the script cannot be used.
    """
    directory = Path(row.run_dir)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    script = directory / "job.sh"
    request = JobRequest(
        job_name(site, row.id), row.queue, row.nodes, row.wall_time, script, directory
    )
    script.write_text(jobscript.render(site, scheduler, request, row.id), encoding="utf-8")
    script.chmod(0o700)
    return request


def end_unsent(store: Store) -> None:
    """End what was cancelled before it was sent; that needs no scheduler.

    Raises:
        StoreError: the database did not answer.
    """
    table = schema.allocation.c
    unsent = (
        table.state == AllocationState.REQUESTED,
        table.native_id.is_(None),
        table.cancel_requested.is_not(None),
    )
    with store.read() as conn:
        if conn.scalar(select(table.id).where(*unsent).limit(1)) is None:
            return
    values = {
        "state": AllocationState.ENDED.value,
        "ended": store.clock(),
        "reason": case((table.reason == "", _UNSENT), else_=table.reason),
    }
    store.run(lambda conn: conn.execute(update(schema.allocation).where(*unsent).values(values)))


def _mark(turn: Turn, row: AllocationRow) -> bool:
    """From now on its job may exist.

    ``False`` when that is not ours to say: another has the turn, the pilot called, or somebody
    cancelled it.
    """
    store = turn.store

    def mark(conn: Connection) -> bool:
        if not turn.holds(conn):
            return False
        now = allocations.get_allocation(conn, row.id)
        if (now.native_id, now.submitted, now.cancel_requested) != (
            row.native_id, row.submitted, None,
        ):  # fmt: skip
            return False
        return allocations.update_allocation(
            conn,
            row.id,
            (AllocationState.REQUESTED,),
            native_id=IN_DOUBT,
            submitted=store.clock(),
        )

    return store.run(mark)


def _taken(store: Store, row: AllocationRow, native_id: str) -> None:
    """The scheduler has the job; its state comes with the next poll."""
    _update(
        store,
        row,
        state=AllocationState.QUEUED,
        native_id=native_id,
        submitted=store.clock(),
        # who cancelled it is told until the end
        reason=row.reason if row.cancel_requested is not None else "",
    )


def _over(store: Store, row: AllocationRow, state: AllocationState, reason: str) -> None:
    _update(store, row, state=state, native_id=None, ended=store.clock(), reason=reason)


def _put_off(store: Store, row: AllocationRow, error: Exception) -> None:
    """Try again later; nothing was sent now."""
    if row.native_id is None:
        _doubt(store, row, f"not submitted yet: {error}")
    else:
        _doubt(store, row, f"not known whether the scheduler took it: {error}")


def _doubt(store: Store, row: AllocationRow, reason: str) -> None:
    log.warning("allocation %s waits: %s", row.id, reason)
    kept = {} if row.cancel_requested is not None else {"reason": reason}
    _update(store, row, submitted=store.clock(), **kept)


def _hold(store: Store, site: Site, row: AllocationRow, error: str) -> None:
    """Wait for the pilot's call, or for the user: it is never submitted again by itself."""
    reason = row.reason or (
        f"held: it is not known whether the scheduler took job {job_name(site, row.id)} ({error});"
        f" if it did not, 'balsam allocations cancel {row.id}'"
    )
    if not row.reason:
        log.warning("allocation %s is %s", row.id, reason)
    _update(store, row, submitted=store.clock(), reason=reason)


def _update(store: Store, row: AllocationRow, **values: object) -> bool:
    return store.run(
        lambda conn: allocations.update_allocation(
            conn, row.id, (AllocationState.REQUESTED,), **values
        )
    )
