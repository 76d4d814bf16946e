"""Pilots that register and end: rows of ``schema.pilot``."""

from __future__ import annotations

import logging

from sqlalchemy import Connection, select

from balsam_celery.errors import InvalidInput
from balsam_celery.store import allocations, schema
from balsam_celery.store.allocations import LIVE_ALLOCATIONS, LIVE_PILOTS, NO_NODE
from balsam_celery.store.rows import AllocationState, PilotState
from balsam_celery.wire import PilotEnded, Registered, to_plain

log = logging.getLogger(__name__)

#: Begins why a node that was put aside is lost.
ASIDE = "put aside: "


def registered(conn: Connection, one: Registered, now: float) -> str:
    """Insert a pilot's row; it fences older incarnations in the same allocation (R4).

    An allocation whose submission was in doubt is RUNNING then: its job has called.

    Returns:
        Why the pilot is not taken and should end; "" when it is.
    """
    try:
        allocation = allocations.get_allocation(conn, one.allocation)
    except InvalidInput:
        allocation = None
    if allocation is None or allocation.id != one.allocation:
        log.warning("pilot %s names no allocation of ours: %s", one.pilot, one.allocation)
        return f"the site has no allocation {one.allocation}"
    if allocation.state not in LIVE_ALLOCATIONS:
        log.warning("pilot %s: its allocation %s is over", one.pilot, one.allocation)
        reason = f"its allocation is over: {allocation.reason}"
        if _insert(conn, one):
            # known from now on, so that what it has left in Redis is deleted (housekeep.sweep)
            allocations.update_pilot(
                conn,
                one.pilot,
                (PilotState.LIVE,),
                state=PilotState.ENDED,
                ended=now,
                reason=reason,
            )
        return reason
    if allocation.state is AllocationState.REQUESTED and one.native_id:
        allocations.update_allocation(
            conn,
            allocation.id,
            (AllocationState.REQUESTED,),
            state=AllocationState.RUNNING,
            native_id=one.native_id,
            started=one.time,
            reason=allocation.reason if allocation.cancel_requested is not None else "",
        )
    if not _insert(conn, one):
        return ""
    log.info("pilot %s on %s: %d nodes", one.pilot, one.host, len(one.nodes))
    for older in allocations.list_pilots(conn, LIVE_PILOTS, allocation=one.allocation):
        if older.id != one.pilot:
            log.warning("pilot %s takes over from %s", one.pilot, older.id)
            reason = f"pilot {one.pilot} started in its allocation"
            allocations.update_pilot(
                conn, older.id, (PilotState.LIVE,), state=PilotState.DRAINING, reason=reason
            )
    return ""


def _insert(conn: Connection, one: Registered) -> bool:
    return allocations.insert_pilot(
        conn,
        id=one.pilot,
        allocation=one.allocation,
        host=one.host,
        pid=one.pid,
        nodes=[to_plain(node) for node in one.nodes],
        end_time=one.end_time,
        now=one.time,
    )


def stops(conn: Connection, pilot: str, reason: str) -> None:
    """Place nothing more on a pilot whose worker gave an attempt back because it stops.

    Its main process may have died without farewell: its workers would give back all they get.
    """
    if allocations.update_pilot(
        conn, pilot, (PilotState.LIVE,), state=PilotState.DRAINING, reason=reason
    ):
        log.info("pilot %s stops: %s", pilot, reason)


def loses_node(conn: Connection, pilot: str, node: str, reason: str) -> None:
    """Mark a node on which nothing may start any more."""
    table = schema.pilot.c
    found = conn.scalar(select(table.nodes).where(table.id == pilot).with_for_update())
    if any(one["name"] == node and one.get("lost") for one in found or ()):
        return
    told = {"lost": True, "lost_reason": reason}
    nodes = [{**one, **told} if one["name"] == node else one for one in found or ()]
    if found is not None and nodes != found:
        allocations.update_pilot(conn, pilot, LIVE_PILOTS, nodes=nodes)
        log.warning("pilot %s lost its node %s: %s", pilot, node, reason)


def puts_aside(conn: Connection, pilot: str, node: str, reason: str) -> None:
    """Start nothing more on a node that fails what it is given; on the last one, end the pilot."""
    loses_node(conn, pilot, node, f"{ASIDE}{reason}")
    nodes = conn.scalar(select(schema.pilot.c.nodes).where(schema.pilot.c.id == pilot))
    if all(one.get("lost") for one in nodes or ()):
        stops(conn, pilot, f"{NO_NODE}: {reason}")


def ended(conn: Connection, one: PilotEnded) -> None:
    """Place nothing more on a pilot that says farewell, and note when it did.

    It is marked ENDED, and what it may still hold taken back, when its allocation is reaped on
    the scheduler's word (R4).
    """
    allocations.update_pilot(
        conn, one.pilot, (PilotState.LIVE,), state=PilotState.DRAINING, reason=one.reason
    )
    allocations.update_pilot(conn, one.pilot, LIVE_PILOTS, ended=one.time)
    log.info("pilot %s ends: %s", one.pilot, one.reason)
