"""A Celery beat scheduler of which one at a time sends: it holds a lease in SQL."""

from __future__ import annotations

import logging
from typing import Any

from celery.beat import Scheduler

from balsam_celery.beat.schedule import schedule
from balsam_celery.celeryapp import current_site
from balsam_celery.errors import StoreError
from balsam_celery.site import Site, connect_store
from balsam_celery.store import lease
from balsam_celery.store.engine import Store

log = logging.getLogger(__name__)

NAME = "beat"
#: Seconds after which a beat that fell silent is replaced; renewed at a third of it.
TIME_TO_LIVE = 15.0


class LeasedScheduler(Scheduler):
    """Sends the site's schedule while it holds the lease ``beat``; else it waits and says so.

    The schedule is made from ``site.toml`` and kept in memory: what was due while no beat ran is
    sent once. ``site`` and ``store`` are for embedding; by default they are the application's.
    """

    def __init__(
        self,
        app: Any,
        *,
        site: Site | None = None,
        store: Store | None = None,
        time_to_live: float = TIME_TO_LIVE,
        lazy: bool = False,
        **kwargs: Any,
    ) -> None:
        self._site = site or current_site()
        self._own_store = store is None
        self._store = store
        self._ttl = time_to_live
        self._candidate: lease.Candidate | None = None
        self._said = ""
        super().__init__(app, lazy=lazy, **kwargs)

    @property
    def leads(self) -> bool:
        """It holds the lease, as far as it knows, and may send."""
        return self._candidate is not None and self._candidate.is_leader

    def setup_schedule(self) -> None:
        """The site's schedule and nothing else."""
        self.update_from_dict(schedule(self._site.settings))

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Send what is due if this beat leads; returns seconds until the next call."""
        step = self._ttl / 3
        if not self._keep_lease():
            return step
        return min(float(super().tick(*args, **kwargs)), step)

    def close(self) -> None:
        """Give the lease up, so that another beat goes on at once."""
        try:
            self._give_up()
        finally:
            super().close()

    def _keep_lease(self) -> bool:
        try:
            if self._store is None:
                self._store = connect_store(self._site)
            if self._candidate is None:
                self._candidate = lease.Candidate(self._store, NAME, self._ttl)
            if not self._candidate.keep():
                other = lease.holder(self._store, NAME)
                self._say(f"another beat leads ({other[0] if other else '?'}): this one waits")
                return False
        except StoreError as error:
            # the lease is ours until it runs out; whoever takes it then, the bodies of what is
            # sent are harmless when run twice
            self._say(f"cannot renew the lease: {error}")
            return self.leads
        self._say("this beat leads")
        return True

    def _give_up(self) -> None:
        store, self._store = self._store, None
        candidate, self._candidate = self._candidate, None
        if store is None:
            return
        try:
            if candidate is not None:
                candidate.give_up()
        except StoreError as error:
            log.warning("the lease runs out by itself: %s", error)
        finally:
            if self._own_store:
                store.close()

    def _say(self, text: str) -> None:
        """Log ``text`` once, until something else is to be said."""
        if text != self._said:
            self._said = text
            log.warning("%s", text)
