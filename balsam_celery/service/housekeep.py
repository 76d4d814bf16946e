"""The body of ``balsam.housekeep``: idle pilots drain, heartbeats are noted in SQL."""

from __future__ import annotations

import redis

from balsam_celery.site import Site
from balsam_celery.store.engine import Store


def note_heartbeats(store: Store, client: redis.Redis, site: Site) -> dict[str, float]:
    """Copy the pilots' last heartbeats from Redis to SQL; returns seconds since, by pilot id."""
    raise NotImplementedError


def drain_idle(store: Store, client: redis.Redis | None, site: Site) -> list[str]:
    """Drain pilots that were idle for ``idle_timeout`` with nothing placeable for them.

    Marks them DRAINING in SQL (guarded: only when LIVE and no task is DISPATCHED or RUNNING
    there), then sends the order; the order is sent again at every call until the pilot has ended.

    Returns:
        Ids of the pilots that are DRAINING, for the ledger.
    """
    raise NotImplementedError
