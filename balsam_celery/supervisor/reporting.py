"""``status``: what is up, what waits, what runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from balsam_celery.errors import BalsamError
from balsam_celery.site import Site, check_runs_here, connect_store
from balsam_celery.states import State
from balsam_celery.store.allocations import (
    LIVE_ALLOCATIONS,
    LIVE_PILOTS,
    SHOWN_FOR,
    came_to_nothing,
    list_allocations,
    list_pilots,
)
from balsam_celery.store.queries import TaskFilter, count_tasks
from balsam_celery.store.rows import AllocationRow, PilotRow
from balsam_celery.supervisor import records
from balsam_celery.supervisor.children import SUPERVISOR, names
from balsam_celery.supervisor.pressure import shortages
from balsam_celery.supervisor.probes import probe_redis


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One process of the site.

    Attributes:
        name: ``supervisor``, ``redis``, ``service``, ….
        up: it runs, and Redis answers.
        pid: its number, ``None`` when it does not run or is not ours.
        uptime: seconds since its start, 0 when it does not run.
        restarts: how often the supervisor started it again.
        note: what is worth knowing, ``""`` when nothing is.
    """

    name: str
    up: bool
    pid: int | None = None
    uptime: float = 0.0
    restarts: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class SiteStatus:
    """A site at one moment.

    Attributes:
        name, directory, host: which site, and the login node that runs it.
        up: every process that it needs runs.
        processes: all that it needs, the supervisor first.
        tasks: how many, by state; states without any are left out.
        allocations: those that have not ended, oldest first.
        failed: those that within the last hour failed or ended without a pilot, oldest first.
        pilots: those that have not ended, oldest first.
        note: why nothing is known of the last four, ``""`` when all is.
        shortages: a line for each thing that the site is short of.
    """

    name: str
    directory: Path
    host: str
    up: bool
    processes: tuple[ProcessStatus, ...]
    tasks: Mapping[State, int]
    allocations: tuple[AllocationRow, ...]
    failed: tuple[AllocationRow, ...]
    pilots: tuple[PilotRow, ...]
    note: str = ""
    shortages: tuple[str, ...] = ()


def status(site: Site) -> SiteStatus:
    """Look at the site.

    Raises:
        SiteError: it does not run on this host; names the one where it does.
    """
    check_runs_here(site)
    processes = tuple(_process(site, name) for name in (SUPERVISOR, *names(site)))
    if not site.has_own_redis:
        trouble = _trouble(site)
        redis = ProcessStatus("redis", not trouble, note=trouble or "not started by this site")
        processes = (processes[0], redis, *processes[1:])
    tasks: dict[State, int] = {}
    allocations: list[AllocationRow] = []
    failed: list[AllocationRow] = []
    pilots: list[PilotRow] = []
    note = ""
    try:
        store = connect_store(site)
        try:
            with store.read() as conn:
                tasks = count_tasks(conn, TaskFilter())
                allocations = list_allocations(conn, LIVE_ALLOCATIONS)
                failed = came_to_nothing(conn, store.clock() - SHOWN_FOR)
                pilots = list_pilots(conn, LIVE_PILOTS)
        finally:
            store.close()
    except BalsamError as error:
        # the processes are worth showing all the same
        note = str(error)
    return SiteStatus(
        name=site.settings.site.name,
        directory=site.directory,
        host=site.settings.site.host,
        up=all(process.up for process in processes),
        processes=processes,
        tasks=tasks,
        allocations=tuple(allocations),
        failed=tuple(failed),
        pilots=tuple(pilots),
        note=note,
        shortages=shortages(site),
    )


def _trouble(site: Site) -> str:
    """Why Redis does not answer, ``""`` when it does."""
    try:
        return probe_redis(site)
    except BalsamError as error:
        return str(error)


def _process(site: Site, name: str) -> ProcessStatus:
    record = records.read(site, name)
    if record is None:
        return ProcessStatus(name, False)
    if record.process is not None and record.is_alive:
        note = f"started again after {record.last_exit}" if record.last_exit else ""
        # one that hangs has a pid all the same
        trouble = _trouble(site) if name == "redis" else ""
        return ProcessStatus(
            name, not trouble, record.process.pid, time.time() - record.started, record.restarts,
            trouble or note,
        )  # fmt: skip
    note = f"ended: {record.last_exit}" if record.last_exit else "ended without a word"
    return ProcessStatus(name, False, restarts=record.restarts, note=note)
