"""New tasks, in bulk: rows, tags, edges and first events in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any

from sqlalchemy import Connection, insert, select

from balsam_celery.errors import InvalidInput
from balsam_celery.states import FINAL, State
from balsam_celery.store import effects, schema
from balsam_celery.store.first_states import FirstState, first_states
from balsam_celery.store.newtask import NewTask, check_tasks
from balsam_celery.store.rows import EffectKind
from balsam_celery.store.sql import any_of

__all__ = ["NewTask", "insert_tasks"]

#: Between two tasks of one insertion, seconds; a double still tells them apart.
_STEP = 1e-6
_GIVEN = tuple(f.name for f in fields(NewTask) if f.name not in ("tags", "parents"))


def insert_tasks(conn: Connection, tasks: Sequence[NewTask], *, now: float, who: str) -> None:
    """Insert ``tasks`` with their tags, edges and first events, in the caller's transaction.

    First states: AWAITING_PARENTS while a parent is not met; PREPROCESSED for a program whose
    argv is rendered and that has neither ``stage_in`` nor ``preprocess``; else READY (steps, and
    programs that still need a parent's result, which the service renders). A parent that is
    JOB_FINISHED already is met; a parent that is FAILED or USER_KILLED is met under policy
    ``ignore``, and under ``fail`` the child ends FAILED at once, with the reason and an effect
    ``result`` (payload ``{}``) and one ``errback`` per errback (payload: the errback).

    ``waiting_on`` is the number of edges not met. ``created`` keeps the order of ``tasks``: each
    is a microsecond younger than the one before, the last one ``now``.

    Raises:
        InvalidInput: an id that exists, a name or tag that is too long, a number that does not
            fit, parents that wait for each other.
        NotFound: a parent that does not exist.
    """
    if not tasks:
        return
    check_tasks(tasks)
    _refuse_existing(conn, [task.id for task in tasks])
    plans = first_states(tasks, _parents_in_table(conn, tasks))
    first = now - (len(tasks) - 1) * _STEP
    created = {task.id: first + index * _STEP for index, task in enumerate(tasks)}
    rows = [_task_row(task, plans[task.id], created[task.id], now) for task in tasks]
    conn.execute(insert(schema.task), rows)
    tags = [{"task": task.id, "tag": tag} for task in tasks for tag in set(task.tags)]
    if tags:
        conn.execute(insert(schema.tag), tags)
    edges = [edge for task in tasks for edge in _edge_rows(task, plans[task.id])]
    if edges:
        conn.execute(insert(schema.dependency), edges)
    event_rows = [
        row
        for task in tasks
        for row in _event_rows(task, plans[task.id], created[task.id], now, who)
    ]
    conn.execute(insert(schema.event), event_rows)
    ended = [task for task in tasks if plans[task.id].state in FINAL]
    effects.add(conn, [effect for task in ended for effect in _end_effects(task)], now=now)


def _refuse_existing(conn: Connection, ids: Sequence[str]) -> None:
    task = schema.task
    found = conn.scalar(select(task.c.id).where(any_of(conn, task.c.id, ids)).limit(1))
    if found is not None:
        raise InvalidInput(f"task id {found!r} exists already: give each task its own")


def _parents_in_table(conn: Connection, tasks: Sequence[NewTask]) -> dict[str, State]:
    """States of the parents that are rows already, held until the transaction ends.

    On PostgreSQL a parent that ends meanwhile waits for this transaction, and then sees the new
    edges: without the lock a child could wait for ever.
    """
    inside = {task.id for task in tasks}
    ids = {parent for task in tasks for parent in task.parents} - inside
    if not ids:
        return {}
    task_table = schema.task
    query = (
        select(task_table.c.id, task_table.c.state)
        .where(any_of(conn, task_table.c.id, ids))
        .order_by(task_table.c.id)
        .with_for_update(read=True)
    )
    return {id: State(state) for id, state in conn.execute(query)}


def _task_row(task: NewTask, plan: FirstState, created: float, now: float) -> dict[str, Any]:
    row = {name: getattr(task, name) for name in _GIVEN}
    row["application"] = task.application or task.name
    row.update(
        state=plan.state.value,
        attempt=0,
        failures=0,
        waiting_on=plan.met.count(False),
        reason=plan.reason,
        created=created,
        changed=now,
        finished=now if plan.state in FINAL else None,
    )
    return row


def _edge_rows(task: NewTask, plan: FirstState) -> list[dict[str, Any]]:
    return [
        {"child": task.id, "parent": parent, "position": position, "met": met}
        for position, (parent, met) in enumerate(zip(task.parents, plan.met, strict=True))
    ]


def _event_rows(
    task: NewTask, plan: FirstState, created: float, now: float, who: str
) -> list[dict[str, Any]]:
    steps: list[tuple[State | None, State]] = [(None, State.CREATED), *pairwise(plan.path)]
    return [
        {
            "task": task.id,
            "from_state": source,
            "to_state": target,
            "time": created if source is None else now,
            "who": who,
            "message": plan.reason if target in FINAL else "",
        }
        for source, target in steps
    ]


def _end_effects(task: NewTask) -> list[effects.NewEffect]:
    return [
        effects.NewEffect(task.id, EffectKind.RESULT, {}),
        *(effects.NewEffect(task.id, EffectKind.ERRBACK, errback) for errback in task.errbacks),
    ]
