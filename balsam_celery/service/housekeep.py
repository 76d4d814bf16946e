"""The body of ``balsam.housekeep``: heartbeats are noted, pilots told to end, Redis is swept."""

from __future__ import annotations

import logging

import redis
from sqlalchemy import Connection

from balsam_celery.durations import format_duration
from balsam_celery.service.lingering import tell_strays
from balsam_celery.service.orders import give
from balsam_celery.service.reap import delete_keys
from balsam_celery.service.reconcile import heartbeats
from balsam_celery.site import Site
from balsam_celery.store import allocations, scans
from balsam_celery.store.allocations import LIVE_PILOTS
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import PilotRow, PilotState
from balsam_celery.wire import PilotOrder

log = logging.getLogger(__name__)

#: Seconds without a heartbeat after which a pilot is called silent.
SILENT_AFTER = 60.0


def note_heartbeats(store: Store, client: redis.Redis, site: Site) -> dict[str, float]:
    """Copy the pilots' last heartbeats from Redis to SQL.

    A silent pilot is not a dead pilot (R4): it is only noted.

    Returns:
        Seconds since the last heartbeat, by id of the pilot.

    Raises:
        redis.RedisError: Redis did not answer.
        StoreError: the database did not answer.
    """
    with store.read() as conn:
        pilots = allocations.list_pilots(conn, LIVE_PILOTS)
    now = store.clock()
    last = {}
    for pilot in pilots:
        beats = heartbeats(client, site.settings.key_prefix, pilot.id)
        last[pilot.id] = max([pilot.heartbeat, *(beat.time for beat in beats.values())])
    newer = [pilot for pilot in pilots if last[pilot.id] > pilot.heartbeat]
    if newer:
        store.run(lambda conn: _note(conn, newer, last), durable=False)
    for pilot in pilots:
        if now > last[pilot.id] + SILENT_AFTER:
            log.warning(
                "pilot %s is silent for %s", pilot.id, format_duration(now - last[pilot.id])
            )
    return {pilot: now - time for pilot, time in last.items()}


def _note(conn: Connection, pilots: list[PilotRow], last: dict[str, float]) -> None:
    for pilot in pilots:
        allocations.update_pilot(conn, pilot.id, LIVE_PILOTS, heartbeat=last[pilot.id])


def send_drains(store: Store, client: redis.Redis, site: Site) -> list[str]:
    """Tell pilots that are DRAINING with nothing left to do, or whose time is over, to end.

    Again until each has taken it.

    Returns:
        Their ids.

    Raises:
        redis.RedisError: Redis did not answer; the order goes out next time.
        StoreError: the database did not answer.
    """
    with store.read() as conn:
        busy = {row.pilot for row in scans.on_pilots(conn)}
        draining = allocations.list_pilots(conn, (PilotState.DRAINING,))
    # one that is told to drain while busy lets what runs there end first, but not for ever
    now = store.clock()
    due = {pilot.id for pilot in draining if pilot.stop_at is not None and pilot.stop_at <= now}
    done = [pilot for pilot in draining if pilot.id not in busy or pilot.id in due]
    for pilot in done:
        give(client, site.settings.key_prefix, pilot.id, PilotOrder("drain", pilot.reason))
    return [pilot.id for pilot in done]


def sweep(store: Store, client: redis.Redis, site: Site) -> None:
    """Delete again what pilots that ended of late have in Redis: it was away, or all came late.

    One that lives all the same is told to end, as long as it may: until its own end time.

    Raises:
        redis.RedisError: Redis did not answer.
        StoreError: the database did not answer.
    """
    since = store.clock() - allocations.SWEPT_FOR
    prefix = site.settings.key_prefix
    with store.read() as conn:
        late = allocations.ended_since(conn, since)
    strays = tell_strays(client, prefix, late)
    for pilot in late:
        if pilot.id in strays or (pilot.ended is not None and pilot.ended >= since):
            delete_keys(client, prefix, pilot, orders=False)
