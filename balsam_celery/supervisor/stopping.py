"""``down``: stop all that ``up`` started, and the batch jobs too where that is asked for."""

from __future__ import annotations

import signal
from collections.abc import Callable

from balsam_celery import procs
from balsam_celery.site import Site, check_runs_here
from balsam_celery.supervisor import records
from balsam_celery.supervisor.cancelling import cancel_allocations
from balsam_celery.supervisor.children import NAMES, SUPERVISOR
from balsam_celery.supervisor.ending import end, sweep, wait_for
from balsam_celery.supervisor.locks import control_lock

Progress = Callable[[str], None]


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
            local scheduler only. Jobs of a real one can wait for the next ``up``, and what runs
            in them goes on without Redis for as long as that takes.

    Raises:
        SiteError: the site does not run here, or something does not end.
        StoreError: the database does not tell which allocations there are.
        SchedulerUnavailable: the scheduler does not tell whether the allocations have ended.
    """
    check_runs_here(site)
    if cancel is None:
        cancel = site.settings.scheduler.kind == "local"
    if not site.local_dir.is_dir():
        return
    with control_lock(site, progress):
        end_daemon(site)
        _end(site, progress, "flower", "beat")
        trouble = cancel_allocations(site, progress) if cancel else None
        _end(site, progress, "service", "transitions", "tasks")
        if cancel:
            # the service may have submitted one more while it was on its way out
            trouble = cancel_allocations(site, progress)
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
