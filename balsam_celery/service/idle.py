"""Pilots on which nothing runs: since when, and the mark of those that are to drain."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable

from sqlalchemy import Connection, select

from balsam_celery.packing import Note
from balsam_celery.store import allocations, scans, schema
from balsam_celery.store.rows import PilotState

log = logging.getLogger(__name__)


def hold_pilots(conn: Connection) -> None:
    """Let nothing be placed on a pilot before this transaction ends (SQLite has one writer)."""
    conn.execute(
        select(schema.pilot.c.id)
        .where(schema.pilot.c.state == PilotState.LIVE)
        .order_by(schema.pilot.c.id)
        .with_for_update()
    )


def note(conn: Connection, now: float) -> None:
    """Note of each live pilot, and of its nodes, since when nothing runs there."""
    live = (PilotState.LIVE,)
    held: dict[str, set[str]] = defaultdict(set)
    for row in scans.on_pilots(conn):
        held[row.pilot or ""] |= {share["node"] for share in row.shares or ()}
    busy = set(held)
    for pilot in allocations.list_pilots(conn, live):
        usable = [node["name"] for node in pilot.nodes if not node.get("lost")]
        known = pilot.idle_nodes or {}
        idle = {name: known.get(name, now) for name in usable if name not in held.get(pilot.id, ())}
        if idle != known:
            allocations.update_pilot(conn, pilot.id, live, idle_nodes=idle)
        if pilot.id in busy and pilot.idle_since is not None:
            allocations.update_pilot(conn, pilot.id, live, idle_since=None)
        elif pilot.id not in busy and pilot.idle_since is None:
            allocations.update_pilot(conn, pilot.id, live, idle_since=now)


def drain(conn: Connection, notes: Iterable[Note]) -> None:
    """Mark the pilots of those allocations DRAINING; what sends the order is ``housekeep``.

    One that was idle and is given something since stays.
    """
    live = (PilotState.LIVE,)
    busy = {row.pilot for row in scans.on_pilots(conn)}
    for told in notes:
        for pilot in allocations.list_pilots(conn, live, allocation=told.id):
            if told.code != "in-the-way" and pilot.id in busy:
                continue
            log.info("pilot %s drains: %s", pilot.id, told.reason)
            allocations.update_pilot(
                conn, pilot.id, live, state=PilotState.DRAINING, reason=told.reason
            )
