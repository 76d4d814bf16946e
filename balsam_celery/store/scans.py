"""What the service looks for at every pass: by partial index, whatever the backlog.

SQLite uses a partial index only for a query that holds the index's condition word for word, hence
the literal conditions of ``store.schema`` here and no bound states; and even then it prefers
``(state, created)`` and sorts the whole backlog, hence the hints.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVarTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Double,
    Integer,
    ScalarSelect,
    Select,
    String,
    bindparam,
    case,
    func,
    literal,
    select,
    text,
    tuple_,
)

from balsam_celery.resources import Resources
from balsam_celery.store import schema
from balsam_celery.store.queries import read_tasks
from balsam_celery.store.rows import TaskRow, resources_of
from balsam_celery.store.sql import any_of

_Columns = TypeVarTuple("_Columns")


@dataclass(frozen=True, slots=True)
class BacklogShape:
    """Waiting tasks of one shape: what packing needs to know of them.

    Attributes:
        application: one that was asked for by name; ``""``: any other.
        expected_time: mean of what their users expect, seconds, of those that expect about the
            same; ``None``: they say nothing.
        longest: the largest of these.
        ran: seconds of the longest attempt of theirs that was cut short; ``None``: none was.
        checkpoint_grace: the longest of them, seconds.
        count: how many; ``oldest`` is when the first of them was created.
    """

    num_nodes: int
    ranks_per_node: int
    threads_per_rank: int
    threads_per_core: int
    gpus_per_rank: float
    node_packing_count: int | None
    memory_per_node: int
    resources_per_node: str
    wall_time: int
    priority: int
    application: str
    restartable: bool
    expected_time: float | None
    longest: float | None
    ran: float | None
    checkpoint_grace: int
    count: int
    oldest: float

    @property
    def resources(self) -> Resources:
        """What each asks of nodes."""
        return resources_of(self)


class Waiting(NamedTuple):
    """A task that waits for slots: the columns of it that placement looks at."""

    id: str
    kind: str
    attempt: int
    priority: int
    created: float
    num_nodes: int
    ranks_per_node: int
    threads_per_rank: int
    threads_per_core: int
    gpus_per_rank: float
    node_packing_count: int | None
    cpu_affinity: str
    memory_per_node: int
    resources_per_node: str
    wall_time: int
    restartable: bool
    expected_time: float | None
    ran: float | None
    checkpoint_grace: int
    application: str

    @property
    def resources(self) -> Resources:
        """What it asks of nodes."""
        return resources_of(self, self.cpu_affinity)

    @property
    def line(self) -> float:
        """``schema.LINE`` of it."""
        return self.created - (self.expected_time or 0.0)


def placeable(
    conn: Connection,
    *,
    now: float,
    limit: int,
    but: Collection[ColumnElement[bool]] = (),
    alike: Waiting | None = None,
) -> list[Waiting]:
    """Tasks that wait for slots and may start at ``now``: by priority, then widest, then oldest.

    What a task is expected to run counts as age there (``schema.LINE``).

    ``but``: without those for which one of these holds; ``alike``: only those of the priority and
    width of this one.
    """
    # a pass for each task that ends reads hundreds of these rows, hence no column more than needed
    task = schema.task
    query = _first_in_line().where(*(~condition for condition in but)) if but else _first_in_line()
    if alike is not None:
        query = query.where(task.c.priority == alike.priority, task.c.num_nodes == alike.num_nodes)
    return list(map(Waiting._make, conn.execute(query, {"now": now, "limit": limit})))


def oldest_of_each(
    conn: Connection,
    behind: Waiting,
    *,
    now: float,
    limit: int,
    but: Collection[ColumnElement[bool]] = (),
) -> list[Waiting]:
    """As :func:`placeable`, of each priority and width behind those of ``behind`` only the first.

    The index is not walked: from each task found the next is looked up, so it takes as long as
    there are priorities and widths, however many tasks wait.
    """
    task = schema.task
    last = task.alias("last")

    def first(*conditions: ColumnElement[bool]) -> ScalarSelect[str]:
        query = by_index(_waiting([task.c.id], now), "ix_task_placeable")
        query = query.where(*(~condition for condition in but), *conditions)
        return query.order_by(*_IN_LINE).limit(1).scalar_subquery()

    def after(
        priority: ColumnElement[int] | int, num_nodes: ColumnElement[int] | int
    ) -> ColumnElement[str]:
        # two looks: with one condition for both SQLite would walk all of the same priority
        narrower = first(task.c.priority == priority, task.c.num_nodes < num_nodes)
        return func.coalesce(narrower, first(task.c.priority < priority))

    found = select(after(behind.priority, behind.num_nodes).label("id")).cte(recursive=True)
    found = found.union_all(
        select(after(last.c.priority, last.c.num_nodes)).join_from(
            found, last, last.c.id == found.c.id
        )
    )
    query = select(*_columns()).join_from(found, task, task.c.id == found.c.id).limit(limit)
    return [Waiting._make(row) for row in conn.execute(query)]


_IN_LINE = (
    schema.task.c.priority.desc(),
    schema.task.c.num_nodes.desc(),
    schema.LINE,
)


def _columns() -> list[Column[Any]]:
    return [schema.task.c[name] for name in Waiting._fields]


@functools.cache
def _first_in_line() -> Select[Any]:
    query = by_index(_waiting(_columns(), bindparam("now", type_=Double)), "ix_task_placeable")
    return query.order_by(*_IN_LINE).limit(bindparam("limit", type_=Integer))


def _waiting(columns: Sequence[Column[Any]], now: ColumnElement[float] | float) -> Select[Any]:
    return select(*columns).where(text(schema.PLACEABLE_SQL), schema.task.c.not_before <= now)


def backlog(
    conn: Connection, *, now: float, applications: Collection[str] = ()
) -> list[BacklogShape]:
    """All tasks that wait for slots and may start at ``now``, counted by shape.

    Apart are those of each of ``applications``, all others having ``""``, and those whose users
    expect a time, or that were cut short. Names and times of which each task has its own must not
    make a row for each, so names are given, and times are counted together in steps.
    """
    task = schema.task
    shape = (
        task.c.num_nodes,
        task.c.ranks_per_node,
        task.c.threads_per_rank,
        task.c.threads_per_core,
        task.c.gpus_per_rank,
        task.c.node_packing_count,
        task.c.memory_per_node,
        task.c.resources_per_node,
        task.c.wall_time,
        task.c.priority,
        task.c.restartable,
    )
    known: ColumnElement[str] = literal("")
    if applications:
        known = case((any_of(conn, task.c.application, applications), task.c.application), else_="")
    # a name of its own: PostgreSQL would take "application" for the column
    known_as = known.label("known_as")
    expected, ran = task.c.expected_time, task.c.ran
    totals = (
        func.avg(expected).label("expected_time"),
        func.max(expected).label("longest"),
        func.max(ran).label("ran"),
        func.max(task.c.checkpoint_grace).label("checkpoint_grace"),
        func.count().label("count"),
        func.min(task.c.created).label("oldest"),
    )
    query = (
        by_index(select(*shape, known_as, *totals), "ix_task_placeable")
        .where(text(schema.PLACEABLE_SQL), task.c.not_before <= now)
        .group_by(*shape, "known_as", *_about(expected), *_about(ran))
    )
    return [
        BacklogShape(application=row.pop("known_as"), **row)
        for row in map(dict, conn.execute(query).mappings())
    ]


def _about(seconds: ColumnElement[float]) -> tuple[ColumnElement[Any], ...]:
    """What times of about the same length have in common: the width of their step, and which."""
    width = case(
        (seconds < 60, 10.0),
        (seconds < 600, 60.0),
        (seconds < 3600, 600.0),
        (seconds >= 3600, 3600.0),
    )
    return width, func.round(seconds / width)


def on_pilots(conn: Connection, pilot: str | None = None) -> list[TaskRow]:
    """Tasks DISPATCHED or RUNNING, on one pilot or on any."""
    task = schema.task
    query = by_index(select(task), "ix_task_on_pilot").where(text(schema.ON_PILOT_SQL))
    if pilot is not None:
        query = query.where(task.c.pilot == pilot)
    return read_tasks(conn, query)


#: Where a look that goes on in turns stopped: the time that orders the tasks, and the last id.
Place = tuple[float, str]
BEGIN: Place = (-math.inf, "")


def kills_requested(conn: Connection, *, limit: int, after: Place = BEGIN) -> list[TaskRow]:
    """Tasks that are to be killed and are not final, oldest request first, those ``after``."""
    since, id = after
    return read_tasks(conn, _killed(), {"since": since, "id": id, "limit": limit})


@functools.cache
def _killed() -> Select[Any]:
    task = schema.task
    order = (task.c.kill_requested, task.c.id)
    after = tuple_(bindparam("since", type_=Double), bindparam("id", type_=String))
    query = by_index(select(task), "ix_task_kill_requested")
    query = query.where(text(schema.KILL_SQL), tuple_(*order) > after)
    return query.order_by(*order).limit(bindparam("limit", type_=Integer))


def by_index(query: Select[*_Columns], index: str) -> Select[*_Columns]:
    """``query``, which SQLite answers by ``index`` or not at all; PostgreSQL finds it by itself."""
    return query.with_hint(schema.task, f"INDEXED BY {index}", "sqlite")
