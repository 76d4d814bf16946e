"""Deleting what is over: tasks with everything that hangs on them, allocations and pilots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    delete,
    func,
    or_,
    select,
    union,
)

from balsam_celery.errors import InvalidInput, NotFound
from balsam_celery.states import FINAL
from balsam_celery.store import facts, schema
from balsam_celery.store.allocations import CHARGED, SHOWN_FOR, SWEPT_FOR, charge
from balsam_celery.store.queries import find_tasks
from balsam_celery.store.rows import AllocationState, EffectKind, PilotState
from balsam_celery.store.sql import any_of

_FINAL = sorted(state.value for state in FINAL)


class Removed(NamedTuple):
    """A task that was deleted, and the directory of its last attempt."""

    id: str
    work_dir: str | None


def prune(conn: Connection, older_than: float, *, limit: int = 5000) -> list[Removed]:
    """Delete final tasks that finished before ``older_than`` (seconds since the epoch).

    A task stays while any task that is connected with it by edges, directly or not, is not final,
    is younger, or has effects to be performed; a common workflow's name connects nothing. Call
    again until it returns fewer than ``limit``, each time in a transaction of its own.
    """
    is_over = _is_over(older_than)
    keep = _kept(conn, older_than)
    task = schema.task
    query = select(task.c.id).where(is_over).order_by(task.c.finished, task.c.id)
    ids: list[str] = []
    with conn.execute(query.execution_options(yield_per=1000)) as result:
        for id in result.scalars():
            if id not in keep:
                ids.append(id)
            if len(ids) == limit:
                break
    return _delete(conn, ids)


def prune_allocations(conn: Connection, older_than: float, *, now: float, limit: int = 5000) -> int:
    """Delete allocations that ended before ``older_than``, with their pilots; returns how many.

    One stays while an attempt names one of its pilots, and while anything of it is shown or may
    have to be told to end. What they were charged stays counted. Call again until it returns 0,
    each time in a transaction of its own.

    Args:
        conn: in a transaction.
        older_than, now: seconds since the epoch.
        limit: so many at most.
    """
    table, pilot, attempt = schema.allocation, schema.pilot, schema.attempt
    before = min(older_than, now - max(SHOWN_FOR, SWEPT_FOR))
    # a pilot that is heard after its end is told so until its own end time (``housekeep.sweep``)
    needed = or_(
        pilot.c.state != PilotState.ENDED,
        pilot.c.ended >= before,
        pilot.c.end_time >= before,
        select(attempt.c.task).where(attempt.c.pilot == pilot.c.id).exists(),
    )
    query = select(table.c.id).where(
        table.c.state.in_([AllocationState.ENDED, AllocationState.FAILED]),
        table.c.ended < before,
        ~select(pilot.c.id).where(pilot.c.allocation == table.c.id, needed).exists(),
    )
    oldest = query.order_by(table.c.ended, table.c.id).limit(limit)
    locked = conn.scalars(oldest.with_for_update(of=table)).all()
    # on PostgreSQL a pilot may have come while they were not locked yet
    ids = conn.scalars(query.where(any_of(conn, table.c.id, locked))).all()
    if not ids:
        return 0
    these = any_of(conn, table.c.id, ids)
    facts.add(conn, CHARGED, float(conn.scalar(select(func.sum(charge())).where(these)) or 0.0))
    conn.execute(delete(pilot).where(any_of(conn, pilot.c.allocation, ids)))
    conn.execute(delete(table).where(these))
    return len(ids)


def remove(conn: Connection, ids: Sequence[str]) -> list[Removed]:
    """Delete final tasks by whole id, all or none.

    Raises:
        NotFound: an id does not exist.
        InvalidInput: a task, or a task that waits for it, is not final, or an error callback of
            it is still to be called.
    """
    found = find_tasks(conn, ids)
    for id in ids:
        if id not in found:
            raise NotFound(f"there is no task {id!r}: 'balsam ls' lists the tasks")
        if found[id].state not in FINAL:
            raise InvalidInput(f"task {id} is {found[id].state}: kill it first, or let it end")
    task, edge = schema.task, schema.dependency
    waiting = (
        select(edge.c.parent, edge.c.child)
        .join(task, task.c.id == edge.c.child)
        .where(any_of(conn, edge.c.parent, ids), task.c.state.not_in(_FINAL))
        .limit(1)
    )
    for parent, child in conn.execute(waiting):
        raise InvalidInput(f"task {parent} is still needed by {child}: kill that first")
    calls = _to_call().where(any_of(conn, schema.effect.c.task, ids)).limit(1)
    for id in conn.scalars(calls):
        raise InvalidInput(
            f"task {id} has an error callback that is not called yet: the service does that as"
            " soon as it is up; then remove it"
        )
    return _delete(conn, ids)


def _to_call() -> Select[str]:
    """Tasks with error callbacks to be called; other effects are of no use without their task."""
    effect = schema.effect
    return select(effect.c.task).where(effect.c.kind == EffectKind.ERRBACK.value)


def _is_over(older_than: float, task: FromClause = schema.task) -> ColumnElement[bool]:
    pending = select(schema.effect.c.task)
    return task.c.state.in_(_FINAL) & (task.c.finished < older_than) & task.c.id.not_in(pending)


def _kept(conn: Connection, older_than: float) -> set[str]:
    """Tasks that are over, but connected with one that is not.

    Walked step by step, each by index: PostgreSQL answers one recursive query for a long chain
    with a scan of all edges for each of its links.
    """
    edge = schema.dependency
    child, parent = schema.task.alias(), schema.task.alias()
    pairs = edge.join(child, child.c.id == edge.c.child).join(parent, parent.c.id == edge.c.parent)
    child_over, parent_over = _is_over(older_than, child), _is_over(older_than, parent)
    border = union(
        select(edge.c.parent).select_from(pairs).where(parent_over, ~child_over),
        select(edge.c.child).select_from(pairs).where(child_over, ~parent_over),
    )
    keep: set[str] = set()
    reached = set(conn.scalars(border))
    while reached:
        keep |= reached
        around = union(
            select(edge.c.parent).where(any_of(conn, edge.c.child, reached)),
            select(edge.c.child).where(any_of(conn, edge.c.parent, reached)),
        )
        reached = set(conn.scalars(around)) - keep
    return keep


def _delete(conn: Connection, ids: Sequence[str]) -> list[Removed]:
    if not ids:
        return []
    task, effect = schema.task, schema.effect
    # guarded once more: on PostgreSQL a retry, and its end, may have come between
    is_over = task.c.state.in_(_FINAL) & task.c.id.not_in(_to_call())
    statement = (
        delete(task)
        .where(any_of(conn, task.c.id, ids), is_over)
        .returning(task.c.id, task.c.work_dir)
    )
    removed = [Removed(*row) for row in conn.execute(statement)]
    conn.execute(delete(effect).where(any_of(conn, effect.c.task, [row.id for row in removed])))
    return removed
