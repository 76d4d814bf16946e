"""Allocations from rows to batch jobs: never the same one twice.

The row is committed as REQUESTED first; its id is part of the job's name, and the scheduler is
asked for that name before each submission, so that a job whose answer was lost is found again.
"""

from __future__ import annotations

from collections.abc import Sequence

from balsam_celery.packing import Request
from balsam_celery.schedulers.base import Scheduler
from balsam_celery.site import Site
from balsam_celery.store.engine import Store


def request(store: Store, site: Site, requests: Sequence[Request]) -> list[str]:
    """Insert a REQUESTED allocation row for each of ``requests`` and return their ids."""
    raise NotImplementedError


def submit(store: Store, scheduler: Scheduler, site: Site) -> list[str]:
    """Submit the allocations that are REQUESTED; returns the ids of those that the scheduler has.

    Raises:
        SchedulerUnavailable: it did not answer; the rows stay REQUESTED and are tried later.
    """
    raise NotImplementedError
