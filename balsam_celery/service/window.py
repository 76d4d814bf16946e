"""Which waiting tasks a placement pass looks at: the first of the backlog that may fit."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import ColumnElement, Connection, and_, select, text

from balsam_celery.ledger import Ledger
from balsam_celery.placement import Candidate, Pass, place
from balsam_celery.store import scans, schema
from balsam_celery.store.rows import TaskRow

#: How many waiting tasks a pass looks at.
WINDOW = 500
#: How many shapes that do not fit it passes over at the most.
MOST_SHAPES = 50
SHAPE = (
    "num_nodes",
    "ranks_per_node",
    "threads_per_rank",
    "threads_per_core",
    "gpus_per_rank",
    "node_packing_count",
    "wall_time",
)
Shape = tuple[object, ...]


def decide(conn: Connection, ledger: Ledger, kill_grace: int, now: float) -> tuple[Pass, bool]:
    """What placement says of the first tasks of the backlog, and whether there are more.

    When the first ones are so many of shapes that do not fit that the window holds nothing else,
    it is moved past those shapes, so that what fits behind them is seen too.
    """
    # by id: a later window shows those of an earlier one again that found room
    candidates: dict[str, Candidate] = {}
    passed: set[Shape] = set()
    while True:
        window = _window(conn, passed, now)
        candidates |= {
            row.id: _candidate(row, kill_grace) for row in window if row.kind == "program"
        }
        decided = place(ledger, candidates.values(), now)
        placed = {one.id for one in decided.placements}
        fitting = {shape_of(row) for row in window if row.id in placed}
        refused = {shape_of(row) for row in window} - fitting
        if len(window) < WINDOW or not refused or len(passed) >= MOST_SHAPES:
            return decided, len(window) == WINDOW
        if any(shape_of(row) in fitting for row in window[-1:]):
            # the last ones found room: the next pass goes on behind them
            return decided, True
        passed |= refused


def _window(conn: Connection, passed: Collection[Shape], now: float) -> list[TaskRow]:
    if not passed:
        return scans.placeable(conn, now=now, limit=WINDOW)
    task = schema.task
    query = (
        select(task)
        .where(text(schema.PLACEABLE_SQL), task.c.not_before <= now)
        .where(*(~_is_of(shape) for shape in passed))
        .order_by(task.c.priority.desc(), task.c.num_nodes.desc(), task.c.created)
        .limit(WINDOW)
    )
    return [TaskRow.of(row) for row in conn.execute(query).mappings()]


def shape_of(row: TaskRow) -> Shape:
    """What placement tells tasks apart by."""
    return tuple(getattr(row, name) for name in SHAPE)


def _is_of(shape: Shape) -> ColumnElement[bool]:
    pairs = zip(SHAPE, shape, strict=True)
    return and_(*(schema.task.c[name].is_not_distinct_from(value) for name, value in pairs))


def _candidate(row: TaskRow, kill_grace: int) -> Candidate:
    return Candidate(
        id=row.id,
        attempt=row.attempt + 1,
        resources=row.resources,
        wall_time=row.wall_time,
        kill_grace=kill_grace,
        priority=row.priority,
        created=row.created,
        restartable=row.restartable,
        expected_time=row.expected_time,
    )
