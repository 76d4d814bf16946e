"""The body of ``balsam.poll``: what the scheduler says → allocation rows; ended ones are reaped."""

from __future__ import annotations

from balsam_celery.schedulers.base import Scheduler
from balsam_celery.site import Site
from balsam_celery.store.engine import Store


class Poller:
    """Polls the scheduler; one for the life of a service process."""

    def __init__(self, store: Store, scheduler: Scheduler, site: Site) -> None: ...

    def poll(self) -> list[str]:
        """Bring the allocation rows up to date; returns the ids of allocations to be reaped.

        An allocation is returned at every poll until :func:`service.reap.reap` has marked its
        pilots ENDED. Raises nothing when the scheduler does not answer: nothing is known then.
        """
        raise NotImplementedError
