"""The body of ``balsam.pack``: backlog and allocations from SQL → plan → rows → jobs."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

import redis
from sqlalchemy import ColumnElement, Connection, select, text

from balsam_celery.decisions import PackingDecision
from balsam_celery.packing import Plan, Window
from balsam_celery.schedulers.base import Scheduler
from balsam_celery.service import givingback, idle
from balsam_celery.service.alone import alone
from balsam_celery.service.backoff import Pause
from balsam_celery.service.cases import Batch, Change
from balsam_celery.service.decide import Decision, decide, idle_windows, wants_windows
from balsam_celery.service.release import fail, settle
from balsam_celery.service.submit import insert_requests, submit
from balsam_celery.service.window import SHAPE
from balsam_celery.site import Site
from balsam_celery.states import PLACEABLE
from balsam_celery.store import allocations, schema
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
        plan: what was asked for, given up and drained.
        submitted: ids of the allocations that the scheduler took.
        changes: tasks that failed because no allocation could ever hold them.
        paused: queues that were wanted and are asked for nothing now, by name.
        decision: the pass, to be written down; ``None``: there was nothing to decide.
    """

    plan: Plan = field(default_factory=Plan)
    submitted: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    paused: dict[str, Pause] = field(default_factory=dict)
    decision: PackingDecision | None = None


def pack(
    store: Store,
    scheduler: Scheduler,
    site: Site,
    client: redis.Redis,
    *,
    look_beside: bool = False,
) -> Packed:
    """Ask for the allocations that the backlog needs, give up or drain those that it does not.

    Harmless when run twice, also at once.

    Args:
        store, scheduler, site: the site's.
        client: as in :func:`.submit.submit`.
        look_beside: ask the scheduler for idle nodes also while tasks wait for queued allocations.

    Raises:
        StoreError: the database did not answer.
    """
    packed = _one_pass(store, scheduler, site, None, look_beside)
    if packed is None:
        # the scheduler is asked in no transaction, and only when that may lead to something
        packed = _one_pass(store, scheduler, site, idle_windows(scheduler), look_beside)
    done = packed or Packed()
    return replace(done, submitted=tuple(submit(store, scheduler, site, client)))


def _one_pass(
    store: Store,
    scheduler: Scheduler,
    site: Site,
    windows: tuple[Window, ...] | None,
    look_beside: bool,
) -> Packed | None:
    """Decide and write; ``None``: nothing was written, since idle nodes are to be known first."""
    with alone(store, "pack", _TURN) as turn:
        if turn is None:
            return Packed()
        # counting a backlog of a million takes seconds: nobody waits for that
        with store.read() as conn:
            releases = scheduler.capabilities.releases_nodes
            decision = decide(conn, site.settings, store.clock(), windows or (), releases=releases)
        if windows is None and wants_windows(decision, scheduler, queued=look_beside):
            return None
        return store.run(lambda conn: _write(conn, site, decision, store.clock()))


def _write(conn: Connection, site: Site, decision: Decision, now: float) -> Packed:
    """Carry out what was decided, unless the allocations have changed since."""
    idle.hold_pilots(conn)
    idle.note(conn, now)
    if tuple(allocations.list_allocations(conn, LIVE_ALLOCATIONS)) != decision.live:
        return Packed()
    changes = _fail_hopeless(conn, decision.hopeless, now) if decision.hopeless else ()
    plan = decision.plan
    notes = {note.id: note for note in plan.notes}
    for id in plan.cancel:
        log.info("allocation %s is given up: %s", id, notes[id].reason)
        states = (AllocationState.REQUESTED, AllocationState.QUEUED)
        reason = f"given up: {notes[id].reason}"
        allocations.update_allocation(conn, id, states, cancel_requested=now, reason=reason)
    idle.drain(conn, [notes[id] for id in plan.drain])
    givingback.begin(conn, plan.release, now)
    for request in plan.requests:
        log.info(
            "asking for %d nodes for %d s in %s: %s",
            request.nodes, request.wall_time, request.queue, request.reason,
        )  # fmt: skip
    insert_requests(conn, site, plan.requests, now=now)
    return Packed(plan, changes=changes, paused=decision.paused, decision=decision.told)


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
