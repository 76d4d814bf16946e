"""Where one task stands: what goes before it, and which parents it waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, func, not_, or_, select, text, tuple_

from balsam_celery.candidate import ANY_NUMBER, grown
from balsam_celery.store import schema
from balsam_celery.store.queries import read_tasks
from balsam_celery.store.rows import PilotRow, TaskRow
from balsam_celery.store.scans import by_index


@dataclass(frozen=True, slots=True)
class Ahead:
    """Programs that wait for slots too, may start now, and that placement tries before a task.

    Attributes:
        higher: those of higher priority, which grows with age.
        wider: those of its priority over more nodes.
        larger: those of its priority and width that take more of each node.
        older: those of its priority that take as much, and are older.
        alike: those of the older that are of its shape.
        of_shape: those of its shape, of higher priority or older.
    """

    higher: int = 0
    wider: int = 0
    larger: int = 0
    older: int = 0
    alike: int = 0
    of_shape: int = 0

    @property
    def total(self) -> int:
        """All that go before it."""
        return self.higher + self.wider + self.larger + self.older


def ahead(
    conn: Connection, row: TaskRow, shape: Sequence[str], *, now: float, ageing: float
) -> Ahead:
    """What goes before ``row``.

    Args:
        conn: a transaction.
        row: a program that waits for slots.
        shape: the columns in which tasks of one shape agree.
        now: seconds since the epoch.
        ageing: seconds of waiting that raise a task's priority by one.
    """
    task = schema.task.c
    level = int(grown(row.priority, row.created, now, ageing))
    alike = [task[name].is_not_distinct_from(getattr(row, name)) for name in shape]

    def reaches(wanted: int) -> ColumnElement[bool]:
        """Its priority, grown with age, is ``wanted`` or more; no database need round for that."""
        return or_(task.priority >= wanted, task.created <= now - ageing * (wanted - task.priority))

    higher = reaches(level + 1)
    same = and_(reaches(level), not_(higher))
    as_wide = and_(same, task.num_nodes == row.num_nodes)
    # as ``placement`` orders them: the fewer share a node, the wider; then by cores, then by age
    share = (
        func.coalesce(task.node_packing_count, ANY_NUMBER),
        -task.ranks_per_node
        * ((task.threads_per_rank + task.threads_per_core - 1) // task.threads_per_core),
    )
    own = row.resources
    given = (own.node_packing_count or ANY_NUMBER, -own.least_cores)
    larger = and_(as_wide, tuple_(*share) < tuple_(*given))
    older = and_(
        as_wide,
        tuple_(*share) == tuple_(*given),
        tuple_(task.created, task.id) < tuple_(row.created, row.id),
    )

    def count(*conditions: ColumnElement[bool]) -> ColumnElement[int]:
        return func.count().filter(*conditions)

    # once over the backlog, however long: each row is read one time
    query = (
        by_index(
            select(
                count(higher),
                count(same, task.num_nodes > row.num_nodes),
                count(larger),
                count(older),
                count(older, *alike),
                count(higher, *alike),
            ).select_from(schema.task),
            "ix_task_placeable",
        )
        .where(text(schema.PLACEABLE_SQL), reaches(level))
        .where(task.kind == "program", task.not_before <= now)
    )
    first, wider, more, before, same_shape, of_shape = conn.execute(query).one()
    return Ahead(first, wider, more, before, same_shape, same_shape + of_shape)


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
