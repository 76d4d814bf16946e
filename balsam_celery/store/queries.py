"""Reading tasks, attempts and events."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, func, select, tuple_

from balsam_celery.errors import InvalidInput, NotFound
from balsam_celery.states import State
from balsam_celery.store import schema
from balsam_celery.store.rows import AttemptRow, EventRow, TaskRow
from balsam_celery.store.sql import any_of, given, given_any, glob, starts_with

#: A task is named by its whole id, or by at least this many of its first characters.
MIN_PREFIX = 6


class Cursor(NamedTuple):
    """Where a page ended: pass it as ``after`` for the next page."""

    created: float
    id: str


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which tasks; every condition given must hold.

    Attributes:
        ids: whole ids; ``None``: any (an empty tuple fits none).
        name: ``*`` stands for any text, ``?`` for any character.
        workflow: exactly this one.
        tags: all of them.
        states: any of them; empty: any state.
        kind: ``program`` or ``celery``.
        application: exactly this one.
        created_after, created_before, finished_after, finished_before: seconds since the epoch;
            after is inclusive, before exclusive.
    """

    ids: tuple[str, ...] | None = None
    name: str | None = None
    workflow: str | None = None
    tags: tuple[str, ...] = ()
    states: tuple[State, ...] = ()
    kind: str | None = None
    application: str | None = None
    created_after: float | None = None
    created_before: float | None = None
    finished_after: float | None = None
    finished_before: float | None = None


def select_tasks(
    conn: Connection,
    f: TaskFilter,
    *,
    limit: int,
    after: Cursor | None = None,
    newest_first: bool = False,
) -> list[TaskRow]:
    """At most ``limit`` tasks that fit, by time of creation; the next page starts ``after``."""
    task = schema.task
    query = select(task).where(*_conditions(conn, f)).limit(limit)
    place = tuple_(task.c.created, task.c.id)
    if newest_first:
        query = query.order_by(task.c.created.desc(), task.c.id.desc())
    else:
        query = query.order_by(task.c.created, task.c.id)
    if after is not None:
        query = query.where(place < after if newest_first else place > after)
    return read_tasks(conn, query)


def select_ids(conn: Connection, f: TaskFilter) -> list[str]:
    """Ids of all the tasks that fit, oldest first."""
    task = schema.task
    query = select(task.c.id).where(*_conditions(conn, f)).order_by(task.c.created, task.c.id)
    return list(conn.scalars(query))


def cursor(row: TaskRow) -> Cursor:
    """The cursor that continues after ``row``."""
    return Cursor(row.created, row.id)


def count_tasks(conn: Connection, f: TaskFilter) -> dict[State, int]:
    """How many tasks fit, by state; states without any are left out."""
    task = schema.task
    query = select(task.c.state, func.count()).where(*_conditions(conn, f)).group_by(task.c.state)
    return {State(state): count for state, count in conn.execute(query)}


def get_task(conn: Connection, id: str) -> TaskRow:
    """The task of that id, or the only one whose id starts so (6 characters or more).

    Raises:
        NotFound: there is none.
        InvalidInput: the prefix fits several.
    """
    task = schema.task
    exact = read_tasks(conn, select(task).where(task.c.id == id))
    if exact:
        return exact[0]
    if len(id) < MIN_PREFIX:
        raise NotFound(
            f"there is no task {id!r}: give an id, or at least {MIN_PREFIX} of its start"
        )
    found = read_tasks(
        conn, select(task).where(starts_with(conn, task.c.id, id)).order_by(task.c.id).limit(2)
    )
    if not found:
        raise NotFound(f"there is no task {id!r}: 'balsam ls' lists the tasks")
    if len(found) > 1:
        raise InvalidInput(
            f"task id {id!r} fits several, such as {found[0].id} and {found[1].id}: give more of it"
        )
    return found[0]


def find_tasks(conn: Connection, ids: Sequence[str]) -> dict[str, TaskRow]:
    """The tasks of whole ``ids`` that exist, by id."""
    rows = read_tasks(conn, _of_ids(conn.dialect.name), given(conn, ids))
    return {row.id: row for row in rows}


@functools.cache
def _of_ids(dialect: str) -> Select[Any]:
    return select(schema.task).where(given_any(dialect, schema.task.c.id))


def attempts(conn: Connection, id: str) -> list[AttemptRow]:
    """Attempts of a task, oldest first."""
    attempt = schema.attempt
    query = select(attempt).where(attempt.c.task == id).order_by(attempt.c.number)
    return [AttemptRow.of(row) for row in conn.execute(query).mappings()]


def last_attempts(conn: Connection, ids: Sequence[str]) -> dict[str, AttemptRow]:
    """The latest attempt of each task that has one, by task id."""
    rows = conn.execute(_last_attempts(conn.dialect.name), given(conn, ids)).mappings()
    return {row["task"]: AttemptRow.of(row) for row in rows}


@functools.cache
def _last_attempts(dialect: str) -> Select[Any]:
    attempt, task = schema.attempt, schema.task
    is_last = (task.c.id == attempt.c.task) & (task.c.attempt == attempt.c.number)
    return select(attempt).join(task, is_last).where(given_any(dialect, task.c.id))


def events(conn: Connection, id: str) -> list[EventRow]:
    """Events of a task, oldest first."""
    event = schema.event
    query = select(event).where(event.c.task == id).order_by(event.c.id)
    return [EventRow.of(row) for row in conn.execute(query).mappings()]


def parents(conn: Connection, id: str) -> list[TaskRow]:
    """Parents of a task, in the order in which their results are handed on."""
    task, edge = schema.task, schema.dependency
    query = (
        select(task)
        .join(edge, edge.c.parent == task.c.id)
        .where(edge.c.child == id)
        .order_by(edge.c.position)
    )
    return read_tasks(conn, query)


def children(conn: Connection, id: str) -> list[TaskRow]:
    """Tasks that wait or waited for this one, oldest first."""
    task, edge = schema.task, schema.dependency
    query = (
        select(task)
        .join(edge, edge.c.child == task.c.id)
        .where(edge.c.parent == id)
        .order_by(task.c.created, task.c.id)
    )
    return read_tasks(conn, query)


def descendants(conn: Connection, ids: Sequence[str]) -> list[str]:
    """Ids of all tasks that depend on ``ids``, directly or not, without ``ids`` themselves."""
    edge = schema.dependency
    below = (
        select(edge.c.child.label("id")).where(any_of(conn, edge.c.parent, ids)).cte(recursive=True)
    )
    # UNION, not UNION ALL: a task below two parents is walked once
    below = below.union(select(edge.c.child).join(below, edge.c.parent == below.c.id))
    given = set(ids)
    return [id for id in conn.scalars(select(below.c.id)) if id not in given]


def read_tasks(
    conn: Connection, query: Select[Any], parameters: Mapping[str, Any] | None = None
) -> list[TaskRow]:
    """The tasks of a query for every column of ``schema.task``, with their tags."""
    rows = conn.execute(query, parameters).mappings().all()
    if not rows:
        return []
    tags: dict[str, list[str]] = defaultdict(list)
    ids = [row["id"] for row in rows]
    for task_id, name in conn.execute(_tags(conn.dialect.name), given(conn, ids)):
        tags[task_id].append(name)
    return [TaskRow.of(row, tuple(sorted(tags.get(row["id"], ())))) for row in rows]


@functools.cache
def _tags(dialect: str) -> Select[str, str]:
    tag = schema.tag
    return select(tag.c.task, tag.c.tag).where(given_any(dialect, tag.c.task))


def _conditions(conn: Connection, f: TaskFilter) -> list[ColumnElement[bool]]:
    task, tag = schema.task, schema.tag
    exact = {task.c.workflow: f.workflow, task.c.kind: f.kind, task.c.application: f.application}
    conditions = [column == value for column, value in exact.items() if value is not None]
    if f.ids is not None:
        conditions.append(any_of(conn, task.c.id, f.ids))
    if f.name is not None:
        conditions.append(glob(conn, task.c.name, f.name))
    if f.states:
        conditions.append(task.c.state.in_([State(state).value for state in f.states]))
    for name in f.tags:
        conditions.append(task.c.id.in_(select(tag.c.task).where(tag.c.tag == name)))
    for column, after, before in (
        (task.c.created, f.created_after, f.created_before),
        (task.c.finished, f.finished_after, f.finished_before),
    ):
        if after is not None:
            conditions.append(column >= after)
        if before is not None:
            conditions.append(column < before)
    return conditions
