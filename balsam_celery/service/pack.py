"""The body of ``balsam.pack``: backlog and allocations from SQL → plan → rows → jobs."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

import redis
from sqlalchemy import ColumnElement, Connection, select, text

from balsam_celery.limits import fits_some_queue, policy_of, queues_of
from balsam_celery.packing import Demand, Plan
from balsam_celery.packing import pack as plan_allocations
from balsam_celery.schedulers.base import Scheduler
from balsam_celery.service.alone import alone
from balsam_celery.service.backoff import Pause, pauses
from balsam_celery.service.cases import Batch, Change
from balsam_celery.service.existing import existing
from balsam_celery.service.release import fail, settle
from balsam_celery.service.submit import insert_requests, submit
from balsam_celery.service.window import SHAPE
from balsam_celery.site import Site
from balsam_celery.states import PLACEABLE
from balsam_celery.store import allocations, scans, schema
from balsam_celery.store.allocations import LIVE_ALLOCATIONS
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationState
from balsam_celery.store.scans import BacklogShape

log = logging.getLogger(__name__)

#: Seconds until another may plan, should the process die in the middle of it.
_TURN = 15.0


@dataclass(frozen=True, slots=True)
class Packed:
    """What a run did.

    Attributes:
        plan: what was asked for and given up.
        submitted: ids of the allocations that the scheduler took.
        changes: tasks that failed because no allocation could ever hold them.
        paused: queues that were wanted and are asked for nothing now, by name.
    """

    plan: Plan = field(default_factory=Plan)
    submitted: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    paused: dict[str, Pause] = field(default_factory=dict)


def pack(store: Store, scheduler: Scheduler, site: Site, client: redis.Redis) -> Packed:
    """Ask for the allocations that the backlog needs and give up those that it needs no more.

    Harmless when run twice, also at once. ``client``: as in :func:`.submit.submit`.

    Raises:
        StoreError: the database did not answer.
    """
    packed = Packed()
    with alone(store, "pack", _TURN) as turn:
        if turn is not None:
            packed = store.run(lambda conn: _write_plan(conn, site, store.clock()))
    return replace(packed, submitted=tuple(submit(store, scheduler, site, client)))


def _write_plan(conn: Connection, site: Site, now: float) -> Packed:
    settings = site.settings
    shapes = scans.backlog(conn, now=now)
    hopeless = {
        shape: reason
        for shape in shapes
        if (reason := fits_some_queue(shape.resources, shape.wall_time, settings)) is not None
    }
    changes = _fail_hopeless(conn, hopeless, now) if hopeless else ()
    backlog = [
        Demand(shape.resources, shape.wall_time, shape.count)
        for shape in shapes
        if shape not in hopeless
    ]
    live = allocations.list_allocations(conn, LIVE_ALLOCATIONS)
    if not backlog and not live:
        return Packed(changes=changes)
    queues, policy = queues_of(settings), policy_of(settings)
    there = existing(conn, settings, live, now)
    paused: dict[str, Pause] = {}
    while True:
        plan = plan_allocations(backlog, queues, there, policy)
        asked = {request.queue for request in plan.requests}
        later = {queue: pause for queue in asked if (pause := pauses(conn, queue, now))}
        if not later:
            break
        paused |= later
        # what a queue that pauses was to serve, another one may
        queues = tuple(queue for queue in queues if queue.name not in later)
    wanted = {row.id: row for row in live if row.cancel_requested is None}
    cancel = tuple(id for id in plan.cancel if id in wanted)
    for id in cancel:
        log.info("allocation %s is not needed any more", id)
        reason = "not needed any more"
        states = (AllocationState.REQUESTED, AllocationState.QUEUED)
        allocations.update_allocation(conn, id, states, cancel_requested=now, reason=reason)
    for request in plan.requests:
        log.info(
            "asking for %d nodes for %d s in %s: %s",
            request.nodes, request.wall_time, request.queue, request.reason,
        )  # fmt: skip
    insert_requests(conn, site, plan.requests, now=now)
    return Packed(replace(plan, cancel=cancel), changes=changes, paused=paused)


def _fail_hopeless(
    conn: Connection, hopeless: dict[BacklogShape, str], now: float
) -> tuple[Change, ...]:
    """End tasks FAILED that no allocation could ever hold, such as after a change of settings."""
    batch = Batch(conn, now, "pack")
    for shape, reason in hopeless.items():
        ids = list(conn.scalars(select(schema.task.c.id).where(*_is_of(shape))))
        batch.load(ids)
        for id in ids:
            case = batch.cases[id]
            if case.state in PLACEABLE:
                fail(batch, case, f"no allocation can hold it: {reason}")
    settle(batch)
    return tuple(batch.changes)


def _is_of(shape: BacklogShape) -> list[ColumnElement[bool]]:
    column = schema.task.c
    return [
        text(schema.PLACEABLE_SQL),  # type: ignore[list-item]
        *(column[name].is_not_distinct_from(getattr(shape, name)) for name in SHAPE),
    ]
