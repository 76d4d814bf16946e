"""``down``: stop everything and leave nothing running."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from balsam_celery import procs
from balsam_celery.errors import SchedulerUnavailable, SiteError
from balsam_celery.schedulers import make_scheduler
from balsam_celery.schedulers.base import JobState
from balsam_celery.site import Site, check_host
from balsam_celery.supervisor import records
from balsam_celery.supervisor.children import NAMES, SUPERVISOR
from balsam_celery.supervisor.ending import end, sweep, wait_for
from balsam_celery.supervisor.locks import control_lock

Progress = Callable[[str], None]
#: Seconds in which a cancelled allocation must have ended, on top of the site's margins.
CANCEL_TIMEOUT = 60.0
_POLL = 0.2


def _silent(_message: str) -> None:
    """No progress is shown."""


def down(site: Site, progress: Progress = _silent, *, cancel: bool | None = None) -> None:
    """Stop the site; harmless when it does not run.

    The order keeps what running programs have to say: first beat, so that nothing new is packed;
    then the allocations, while the service still records their outcomes; then the service and
    the other workers; Redis last.

    Args:
        site: the site.
        progress: called with one line for each step.
        cancel: cancel this site's allocations and wait for their end; ``None``: those of the
            local scheduler only, since jobs of a real one can wait for the next ``up``.

    Raises:
        SiteError: the site does not run here, or something does not end.
        SchedulerUnavailable: the scheduler does not tell whether the allocations have ended.
    """
    check_host(site)
    if cancel is None:
        cancel = site.settings.scheduler.kind == "local"
    if not site.local_dir.is_dir():
        return
    with control_lock(site, progress):
        end_daemon(site)
        _end(site, progress, "flower", "beat")
        trouble = _cancelled(site, progress) if cancel else None
        _end(site, progress, "service", "transitions", "tasks")
        if cancel:
            # the service may have submitted one more while it was on its way out
            trouble = _cancelled(site, progress)
        _end(site, progress, "redis")
        sweep(site, (*NAMES, SUPERVISOR))
        if trouble is not None:
            raise trouble


def end_daemon(site: Site) -> None:
    """End the daemon alone; its processes are then ours to end."""
    record = records.read(site, SUPERVISOR)
    if record is not None and record.process is not None and record.is_alive:
        process = record.process
        procs.send(process, signal.SIGUSR1)
        if not wait_for(lambda: not procs.alive(process), 10.0):
            procs.send(process, signal.SIGKILL)
    sweep(site, (SUPERVISOR,))
    records.remove(site, SUPERVISOR)


def _end(site: Site, progress: Progress, *names: str) -> None:
    for name in end(site, *names):
        progress(f"{name} has ended")


def _cancelled(site: Site, progress: Progress) -> SiteError | SchedulerUnavailable | None:
    """Cancel all allocations and wait; what went wrong is returned, for the rest must stop too."""
    try:
        return _cancel_allocations(site, progress)
    except (SiteError, SchedulerUnavailable) as error:
        return error


def _cancel_allocations(site: Site, progress: Progress) -> SiteError | None:
    settings = site.settings
    scheduler = make_scheduler(settings.scheduler.kind, settings=settings, local_dir=site.local_dir)
    asked: set[str] = set()
    deadline = time.monotonic() + CANCEL_TIMEOUT + settings.site.kill_grace
    while True:
        left = [job for job in scheduler.jobs().values() if job.state is not JobState.ENDED]
        if not left:
            if asked:
                progress("the cancelled allocations have ended")
            return None
        # those that wait first, or they would start on the nodes of the others
        for job in sorted(left, key=lambda job: job.state is not JobState.QUEUED):
            if job.native_id not in asked:
                progress(f"cancelling allocation {job.native_id}")
                scheduler.cancel(job.native_id)
                asked.add(job.native_id)
        if time.monotonic() > deadline:
            ids = ", ".join(sorted(job.native_id for job in left))
            return SiteError(f"allocations do not end: {ids}")
        time.sleep(_POLL)
