"""The body of ``balsam.housekeep``: idle pilots drain, heartbeats are noted, Redis is swept."""

from __future__ import annotations

import logging

import redis
from sqlalchemy import Connection, select

from balsam_celery import keys
from balsam_celery.durations import format_duration
from balsam_celery.pilotfree import PilotFree
from balsam_celery.placement import Candidate, fits_ever
from balsam_celery.resources import NodeCapacity
from balsam_celery.service.reap import delete_keys
from balsam_celery.service.reconcile import heartbeats
from balsam_celery.settings import Settings
from balsam_celery.site import Site
from balsam_celery.store import allocations, scans, schema
from balsam_celery.store.allocations import LIVE_PILOTS
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import PilotRow, PilotState
from balsam_celery.wire import PilotOrder, encode, from_plain

log = logging.getLogger(__name__)

#: Seconds without a heartbeat after which a pilot is called silent.
SILENT_AFTER = 60.0
#: Seconds after a pilot's end for which its keys are looked for again.
_SWEEP_FOR = 3600.0


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
        store.run(lambda conn: _note(conn, newer, last))
    for pilot in pilots:
        if now > last[pilot.id] + SILENT_AFTER:
            log.warning(
                "pilot %s is silent for %s", pilot.id, format_duration(now - last[pilot.id])
            )
    return {pilot: now - time for pilot, time in last.items()}


def _note(conn: Connection, pilots: list[PilotRow], last: dict[str, float]) -> None:
    for pilot in pilots:
        allocations.update_pilot(conn, pilot.id, LIVE_PILOTS, heartbeat=last[pilot.id])


def drain_idle(store: Store, client: redis.Redis | None, site: Site) -> list[str]:
    """Drain pilots that were idle for ``idle_timeout`` with nothing placeable for them.

    Marks them DRAINING in SQL (guarded: only when LIVE and no task is DISPATCHED or RUNNING
    there), then sends the order; it is sent again until the pilot has taken it.

    Args:
        store: the site's database.
        client: Redis; ``None`` when it is away: the order goes out next time.
        site: the site.

    Returns:
        Ids of the pilots that are DRAINING with nothing left to do.

    Raises:
        redis.RedisError: Redis did not answer; the order goes out next time.
        StoreError: the database did not answer.
    """
    draining = store.run(lambda conn: _mark_idle(conn, site.settings, store.clock()))
    if client is not None:
        for pilot in draining:
            key = keys.control(site.settings.key_prefix, pilot.id)
            if not client.llen(key):
                client.rpush(key, encode(PilotOrder("drain", pilot.reason)))
    return [pilot.id for pilot in draining]


def _mark_idle(conn: Connection, settings: Settings, now: float) -> list[PilotRow]:
    # locked first, so that nothing is placed on a pilot between the look and the mark
    conn.execute(
        select(schema.pilot.c.id)
        .where(schema.pilot.c.state == PilotState.LIVE)
        .order_by(schema.pilot.c.id)
        .with_for_update()
    )
    busy = {row.pilot for row in scans.on_pilots(conn)}
    waiting = [
        Candidate("", 0, shape.resources, shape.wall_time, settings.site.kill_grace)
        for shape in scans.backlog(conn, now=now)
    ]
    for pilot in allocations.list_pilots(conn, (PilotState.LIVE,)):
        live = (PilotState.LIVE,)
        if pilot.id in busy:
            if pilot.idle_since is not None:
                allocations.update_pilot(conn, pilot.id, live, idle_since=None)
        elif pilot.idle_since is None:
            allocations.update_pilot(conn, pilot.id, live, idle_since=now)
        elif now >= pilot.idle_since + settings.pilot.idle_timeout:
            nodes = [from_plain(NodeCapacity, plain) for plain in pilot.nodes]
            free = PilotFree(pilot.id, nodes, pilot.end_time - settings.pilot.drain_margin)
            if not any(fits_ever(free, candidate, now) for candidate in waiting):
                reason = f"idle for {format_duration(now - pilot.idle_since)}"
                log.info("pilot %s drains: %s", pilot.id, reason)
                allocations.update_pilot(
                    conn, pilot.id, live, state=PilotState.DRAINING, reason=reason
                )
    # one that is told to drain while busy lets what runs there end first
    draining = allocations.list_pilots(conn, (PilotState.DRAINING,))
    return [pilot for pilot in draining if pilot.id not in busy]


def sweep(store: Store, client: redis.Redis, site: Site) -> None:
    """Delete again what pilots that ended of late have in Redis: it was away, or all came late.

    Raises:
        StoreError: the database did not answer.
    """
    since = store.clock() - _SWEEP_FOR
    with store.read() as conn:
        ended = allocations.list_pilots(conn, (PilotState.ENDED,))
    for pilot in ended:
        if pilot.ended is not None and pilot.ended >= since:
            delete_keys(client, site.settings.key_prefix, pilot)
