"""Learned runtimes in the table ``runtime``."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from balsam_celery.runtimes import MEMORY, Learned, Run, counted
from balsam_celery.store import schema


def add(conn: Connection, runs: Iterable[Run]) -> None:
    """Count ``runs``.

    Last in a transaction: its rows are everybody's, and are locked in their order until it ends.
    """
    rows = [
        {"application": application, "shape": shape, "bucket": bucket, "count": count}
        for (application, shape, bucket), count in counted(runs).items()
    ]
    if not rows:
        return
    table = schema.runtime
    dialect = sqlite if conn.dialect.name == "sqlite" else postgresql
    statement = dialect.insert(table)
    conn.execute(
        statement.on_conflict_do_update(
            index_elements=[table.c.application, table.c.shape, table.c.bucket],
            set_={"count": table.c.count + statement.excluded.count},
        ),
        rows,
    )


def fade(conn: Connection) -> int:
    """Let old runs count less: halve the counts of what is known from more than MEMORY runs.

    A program that became faster or slower is so believed after about as many runs.

    Returns:
        How many pairs of application and shape were halved.
    """
    table = schema.runtime
    column = table.c
    known = conn.execute(
        select(column.application, column.shape)
        .group_by(column.application, column.shape)
        .having(func.sum(column.count) > MEMORY)
        .order_by(column.application, column.shape)
    ).all()
    for application, shape in known:
        own = (column.application == application, column.shape == shape)
        conn.execute(delete(table).where(*own, column.count < 2))
        conn.execute(update(table).where(*own).values(count=column.count // 2))
    return len(known)


def learned(conn: Connection, least: int = 1) -> Learned:
    """What was counted of the applications of which ``least`` runs or more were."""
    table = schema.runtime.c
    often = (
        select(table.application).group_by(table.application).having(func.sum(table.count) >= least)
    )
    query = select(table.application, table.shape, table.bucket, table.count).where(
        table.application.in_(often)
    )
    return Learned.of(
        {
            (application, shape, bucket): count
            for application, shape, bucket, count in conn.execute(query)
        }
    )
