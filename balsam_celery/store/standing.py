"""Where one task stands: what goes before it, and which parents it waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select, text

from balsam_celery.store import schema
from balsam_celery.store.queries import read_tasks
from balsam_celery.store.rows import PilotRow, TaskRow


@dataclass(frozen=True, slots=True)
class Ahead:
    """Programs that wait for slots too, may start now, and go before a task.

    Attributes:
        higher: those of higher priority.
        wider: those of its priority over more nodes.
        older: those of its priority and shape that are older.
        of_shape: those of its shape, of higher priority or older.
    """

    higher: int = 0
    wider: int = 0
    older: int = 0
    of_shape: int = 0


def ahead(conn: Connection, row: TaskRow, shape: Sequence[str], now: float) -> Ahead:
    """What goes before ``row``; ``shape``: the columns in which tasks of one shape agree."""
    task = schema.task.c
    alike = [task[name].is_not_distinct_from(getattr(row, name)) for name in shape]
    level = task.priority == row.priority
    sooner = or_(task.created < row.created, and_(task.created == row.created, task.id < row.id))
    older = and_(level, sooner, *alike)
    higher = task.priority > row.priority

    def count(*conditions: ColumnElement[bool]) -> int:
        query = select(func.count()).where(
            text(schema.PLACEABLE_SQL), task.kind == "program", task.not_before <= now, *conditions
        )
        return conn.scalar(query) or 0

    return Ahead(
        higher=count(higher),
        wider=count(level, task.num_nodes > row.num_nodes),
        older=(before := count(older)),
        of_shape=before + count(higher, *alike),
    )


def unmet_parents(conn: Connection, id: str, *, limit: int) -> list[TaskRow]:
    """Parents that a task waits for, or failed with; the first ``limit`` of them."""
    task, edge = schema.task, schema.dependency
    query = (
        select(task)
        .join(edge, edge.c.parent == task.c.id)
        .where(edge.c.child == id, edge.c.met.is_(False))
        .order_by(edge.c.position)
        .limit(limit)
    )
    return read_tasks(conn, query)


def pilot_of(conn: Connection, id: str) -> PilotRow | None:
    """The pilot of that whole id."""
    query = select(schema.pilot).where(schema.pilot.c.id == id)
    found = conn.execute(query).mappings().first()
    return None if found is None else PilotRow.of(found)


def running_on(conn: Connection, pilots: Sequence[str]) -> dict[str, int]:
    """How many tasks each of the pilots holds; one without any is left out."""
    task = schema.task.c
    query = (
        select(task.pilot, func.count())
        .where(text(schema.ON_PILOT_SQL), task.pilot.in_(pilots))
        .group_by(task.pilot)
    )
    return {row[0]: row[1] for row in conn.execute(query)}
