"""Cancelling all of a site's allocations when it goes down, and waiting for their end."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import kombu.exceptions
import redis
from sqlalchemy import Connection

from balsam_celery.celeryapp import make_site_app
from balsam_celery.errors import BalsamError, SchedulerError, SchedulerUnavailable, SiteError
from balsam_celery.schedulers import make_scheduler
from balsam_celery.schedulers.base import Job, JobState, Scheduler
from balsam_celery.service.poll import MOST_SILENCES
from balsam_celery.service.submit import IN_DOUBT, end_unsent
from balsam_celery.site import Site, connect_store
from balsam_celery.store.allocations import LIVE_ALLOCATIONS, list_allocations, update_allocation
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationRow
from balsam_celery.supervisor import probes, records
from balsam_celery.supervisor.ending import wait_for

Progress = Callable[[str], None]
#: Why they end, for ``balsam allocations`` and the tasks that were cut short.
REASON = "cancelled by balsam down"
#: Seconds in which a cancelled allocation must have ended, on top of the site's kill grace. A batch
#: system has margins of its own, such as Slurm's KillWait, between TERM and KILL.
CANCEL_TIMEOUT = 120.0
#: Seconds in which the service records the end of those that have ended.
_RECORD_TIMEOUT = 10.0
#: Pause between looks, seconds: it grows up to ``[scheduler] poll_interval``.
_FIRST_PAUSE = 0.2


def cancel_allocations(site: Site, progress: Progress) -> BalsamError | None:
    """Cancel this site's allocations and wait for their end.

    While the service runs, it is also asked to record what they leave.

    Returns:
        What went wrong, for the rest of ``down`` goes on; ``None`` when all have ended.
    """
    settings = site.settings
    scheduler = make_scheduler(settings.scheduler.kind, settings=settings, local_dir=site.local_dir)
    with contextlib.ExitStack() as stack:
        try:
            store = stack.enter_context(_store(site))
        except BalsamError as error:
            store = None
            if not scheduler.capabilities.finds_by_name:
                return error  # without the ids in the database there is nothing to ask for
        try:
            if store is not None:
                _give_up(store)
            _end(site, scheduler, store, progress)
            if store is not None:
                _record(site, store, progress)
                if not scheduler.capabilities.finds_by_name:
                    return _unsure(store)
        except BalsamError as error:
            return error
    return None


@contextlib.contextmanager
def _store(site: Site) -> Iterator[Store | None]:
    """The database; ``None`` before the first ``up``."""
    if site.uses_sqlite and not site.database_path.exists():
        yield None
        return
    store = connect_store(site)
    try:
        yield store
    finally:
        store.close()


def _live(store: Store | None) -> list[AllocationRow]:
    if store is None:
        return []
    with store.read() as conn:
        return list_allocations(conn, LIVE_ALLOCATIONS)


def _give_up(store: Store) -> None:
    """Mark them all, so that nobody takes their end for a failure, and end what was never sent."""
    now = store.clock()

    def mark(conn: Connection) -> None:
        for row in list_allocations(conn, LIVE_ALLOCATIONS):
            if row.cancel_requested is None:
                update_allocation(
                    conn, row.id, LIVE_ALLOCATIONS, cancel_requested=now, reason=REASON
                )

    store.run(mark)
    end_unsent(store)


def _end(site: Site, scheduler: Scheduler, store: Store | None, progress: Progress) -> None:
    """Cancel until none is left.

    Raises:
        SiteError: some do not end.
        SchedulerError: it refuses to end those that are left, or does not tell.
    """
    asked = _Asked(scheduler, progress)
    deadline = time.monotonic() + CANCEL_TIMEOUT + site.settings.site.kill_grace
    pause = _FIRST_PAUSE
    while True:
        unknown: SchedulerUnavailable | None = None
        left: list[Job] = []
        try:
            left = _left(scheduler, store)
        except SchedulerUnavailable as error:
            unknown = error  # it may answer again
        unknown = asked.cancel(left) or unknown
        if left and all(job.native_id in asked.refused for job in left):
            raise SchedulerError(f"allocations could not be cancelled: {asked.described(left)}")
        if unknown is None and not left:
            if asked.done:
                progress("the cancelled allocations have ended")
            return
        if time.monotonic() > deadline:
            if unknown is not None:
                raise unknown
            raise SiteError(f"allocations do not end: {asked.described(left)}")
        time.sleep(pause)
        pause = min(pause * 1.5, max(_FIRST_PAUSE, site.settings.scheduler.poll_interval))


class _Asked:
    """What the scheduler was asked to cancel, and what it said.

    Attributes:
        done: ids that it takes care of.
        refused: ids that it refuses to cancel, and why.
    """

    def __init__(self, scheduler: Scheduler, progress: Progress) -> None:
        self.done: set[str] = set()
        self.refused: dict[str, SchedulerError] = {}
        self._scheduler = scheduler
        self._progress = progress
        self._silences: Counter[str] = Counter()

    def cancel(self, left: Sequence[Job]) -> SchedulerUnavailable | None:
        """Cancel those that are not settled yet; returns the last silence, to be tried again."""
        ids = [job.native_id for job in left if job.native_id not in {*self.done, *self.refused}]
        silences = 0
        unknown = None
        # sorted() keeps the order of those that fared alike: one that fails keeps none waiting
        for id in sorted(ids, key=self._silences.__getitem__):
            self._progress(f"cancelling allocation {id}")
            try:
                self._scheduler.cancel(id)
            except SchedulerUnavailable as error:
                unknown = error
                self._silences[id] += 1
                silences += 1
                if silences == MOST_SILENCES:
                    break  # each took as long as a command may
            except SchedulerError as error:
                self.refused[id] = error
            else:
                self.done.add(id)
        return unknown

    def described(self, left: Sequence[Job]) -> str:
        """Their ids, and why they are not cancelled."""
        ids = sorted(job.native_id for job in left)
        return ", ".join(f"{id} ({self.refused[id]})" if id in self.refused else id for id in ids)


def _left(scheduler: Scheduler, store: Store | None) -> list[Job]:
    """Jobs that have not ended: those that wait first, or they would start on others' nodes."""
    ids = [row.native_id for row in _live(store) if row.native_id]
    jobs = scheduler.jobs(ids).values()
    left = [job for job in jobs if job.state is not JobState.ENDED]
    return sorted(left, key=lambda job: job.state is not JobState.QUEUED)


def _record(site: Site, store: Store, progress: Progress) -> None:
    """Let the service, if it runs, note that the allocations have ended.

    Beat has ended before, so nobody else asks it to look.
    """
    deadline = time.monotonic() + _RECORD_TIMEOUT
    record = records.read(site, "service")
    while record is not None and record.is_alive and _unrecorded(store):
        trouble = probes.probe_redis(site)
        if trouble or time.monotonic() > deadline:
            progress(f"their end is recorded after the next up{trouble and f' ({trouble})'}")
            return
        try:
            with make_site_app(site) as app:
                app.send_task("balsam.poll", retry=False)
        except (kombu.exceptions.OperationalError, redis.exceptions.RedisError, OSError):
            continue  # the next look at Redis tells what it is
        wait_for(lambda: not _unrecorded(store), 1.0)


def _unrecorded(store: Store) -> bool:
    return any(row.native_id for row in _live(store))


def _unsure(store: Store) -> SiteError | None:
    """Of what may be in a scheduler that lists no jobs, only a person can know."""
    ids = ", ".join(row.id for row in _live(store) if row.native_id == IN_DOUBT)
    if not ids:
        return None
    return SiteError(
        f"it is not known whether the scheduler has jobs of {ids}: 'balsam allocations' tells more"
    )
