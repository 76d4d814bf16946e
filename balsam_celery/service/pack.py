"""The body of ``balsam.pack``: backlog and allocations from SQL → plan → rows → jobs."""

from __future__ import annotations

from balsam_celery.packing import Plan
from balsam_celery.schedulers.base import Scheduler
from balsam_celery.site import Site
from balsam_celery.store.engine import Store


def pack(store: Store, scheduler: Scheduler, site: Site) -> Plan:
    """Ask for the allocations that the backlog needs and cancel those it needs no more.

    Harmless when run twice, also at once: the plan is made and written in one transaction.
    """
    raise NotImplementedError
