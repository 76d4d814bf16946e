"""Idle nodes on their way back to the scheduler, step by step as the pilot's row tells.

A node is marked, so that nothing is placed there again; its pilot is told to let go of it, and says
when nothing of it lives there; then the scheduler takes it. Each step is repeated until the next
one is written, and does no harm when it is done twice. Where the scheduler refuses, the node idles
on.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import redis
from sqlalchemy import Connection, select

from balsam_celery.errors import SchedulerError, SchedulerUnavailable
from balsam_celery.packing import Release
from balsam_celery.schedulers.base import Job, Scheduler
from balsam_celery.service.orders import give_beside
from balsam_celery.store import allocations, scans, schema
from balsam_celery.store.allocations import LIVE_PILOTS
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import GivingBack, PilotRow, PilotState
from balsam_celery.wire import PilotOrder

log = logging.getLogger(__name__)

#: Begins why nothing starts on such a node.
GIVEN_BACK = "given back to the scheduler"
#: And of one that the scheduler did not take.
_LET_GO = "its pilot let go of it so that it could be given back"
#: Seconds for which nodes are waited for that their pilot is to let go of, so that all go at once:
#: some schedulers let a job shrink now and then only.
TOGETHER = 30.0
#: Seconds until a scheduler that did not answer is asked again.
PAUSE = 60.0
#: Seconds after which a scheduler that refused a node is asked for another one.
ASK_AGAIN = 86_400.0


def begin(conn: Connection, releases: Iterable[Release], now: float) -> None:
    """Mark idle nodes of live pilots, whose rows the caller has locked (``idle.hold_pilots``).

    A node that was given something since it was looked at stays.
    """
    for release in releases:
        for pilot in allocations.list_pilots(conn, (PilotState.LIVE,), allocation=release.id):
            tasks = scans.on_pilots(conn, pilot.id)
            busy = {share["node"] for row in tasks for share in row.shares or ()}
            _mark(conn, pilot, [name for name in release.nodes if name not in busy], now)


def _mark(conn: Connection, pilot: PilotRow, names: Sequence[str], now: float) -> None:
    usable = {node["name"] for node in pilot.nodes[1:] if not node.get("lost")}
    chosen = [name for name in names if name in usable]
    if not chosen:
        return
    told = {"lost": True, "lost_reason": f"it is {GIVEN_BACK}, since nothing needs it"}
    nodes = [{**node, **told} if node["name"] in chosen else node for node in pilot.nodes]
    fresh = GivingBack(asked=now, left=None, back=None, refused="")
    giving_back = {**(pilot.giving_back or {}), **dict.fromkeys(chosen, fresh)}
    allocations.update_pilot(
        conn, pilot.id, (PilotState.LIVE,), nodes=nodes, giving_back=giving_back
    )
    log.info("pilot %s gives back %d nodes: %s", pilot.id, len(chosen), ", ".join(chosen))


def left(conn: Connection, pilot: str, node: str, now: float) -> None:
    """Note that nothing of the pilot lives on a node any more."""
    _note(conn, pilot, {node: {"left": now}})


def _note(conn: Connection, pilot: str, changes: Mapping[str, Mapping[str, object]]) -> None:
    """Change what is known of nodes that are being given back; others are passed over."""
    table = schema.pilot.c
    query = select(table.giving_back, table.nodes).where(table.id == pilot).with_for_update()
    row = conn.execute(query).one_or_none()
    found = (row and row.giving_back) or {}
    changed = {
        name: {**one, **changes[name]} if name in changes else one for name, one in found.items()
    }
    if row is None or changed == found:
        return
    refused = {name: one["refused"] for name, one in changed.items() if one["refused"]}
    nodes = [
        {**node, "lost_reason": f"{_LET_GO}, which the scheduler refused: {refused[node['name']]}"}
        if node["name"] in refused
        else node
        for node in row.nodes
    ]
    allocations.update_pilot(conn, pilot, LIVE_PILOTS, giving_back=changed, nodes=nodes)


def refuses(conn: Connection, now: float) -> bool:
    """The scheduler refused the last node that it was to take, not long ago."""
    table = schema.pilot.c
    query = (
        select(table.giving_back)
        .where(table.giving_back.is_not(None), table.registered > now - ASK_AGAIN)
        .order_by(table.registered.desc())
        .limit(1)
    )
    last = conn.scalar(query) or {}
    return any(one["refused"] for one in last.values())


def carry_on(
    store: Store,
    scheduler: Scheduler,
    client: redis.Redis,
    prefix: str,
    running: Mapping[str, Job],
    not_before: dict[str, float],
) -> None:
    """Tell pilots to let go of nodes, and let the scheduler take those of which they have.

    Args:
        store: the site's database.
        scheduler: told of nodes of which their pilot has let go.
        client, prefix: Redis, and what the site's keys begin with.
        running: jobs of RUNNING allocations, by allocation.
        not_before: when the scheduler may be asked next, by pilot; changed here.

    Raises:
        redis.RedisError: Redis did not answer; the next time does it.
        StoreError: the database did not answer.
    """
    with store.read() as conn:
        pilots = allocations.list_pilots(conn, LIVE_PILOTS)
    for pilot in pilots:
        job = running.get(pilot.allocation)
        pending = {
            name: one
            for name, one in (pilot.giving_back or {}).items()
            if one["back"] is None and not one["refused"]
        }
        if job is None or not pending:
            continue
        for name, one in pending.items():
            if one["left"] is None:
                order = PilotOrder("release", f"it is {GIVEN_BACK}", name)
                give_beside(client, prefix, pilot.id, order)
        names = [name for name, one in pending.items() if one["left"] is not None]
        waits = any(
            one["left"] is None and store.clock() < one["asked"] + TOGETHER
            for one in pending.values()
        )
        if not names or waits:
            continue
        now = store.clock()
        if now >= not_before.get(pilot.id, 0.0) and not _give(store, scheduler, pilot, job, names):
            not_before[pilot.id] = now + PAUSE


def _give(
    store: Store, scheduler: Scheduler, pilot: PilotRow, job: Job, names: Sequence[str]
) -> bool:
    """Ask the scheduler to take nodes; false if it did not answer."""
    # the scheduler may have short names where the pilot's are full
    told = {_short(name): name for name in job.nodes}
    # an earlier life may have given them, and not have written that down
    asked = {
        name: told.get(_short(name), name) for name in names if not told or _short(name) in told
    }
    changes: dict[str, dict[str, object]] = defaultdict(dict)
    if asked:
        try:
            given = list(asked.values())
            kept = [name for name in job.nodes if name not in given]
            scheduler.release(job.native_id, given, kept)
        except SchedulerUnavailable as error:
            log.warning("nodes of job %s were not given back yet: %s", job.native_id, error)
            return False
        except SchedulerError as error:
            log.warning("nodes of job %s cannot be given back: %s", job.native_id, error)
            changes.update({name: {"refused": str(error)} for name in asked})
    now = store.clock()
    back = [name for name in names if name not in changes]
    changes.update({name: {"back": now} for name in back})
    store.run(lambda conn: _write(conn, pilot, changes, len(back), now))
    if back:
        log.info("job %s has given back %s", job.native_id, ", ".join(back))
    return True


def _short(name: str) -> str:
    return name.partition(".")[0]


def _write(
    conn: Connection,
    pilot: PilotRow,
    changes: Mapping[str, Mapping[str, object]],
    back: int,
    now: float,
) -> None:
    _note(conn, pilot.id, changes)
    if back:
        allocations.give_back(conn, pilot.allocation, back, now)
