"""Effects: what must happen outside SQL because of a committed transaction (R7)."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Connection,
    Double,
    Integer,
    Select,
    bindparam,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)

from balsam_celery.store import schema
from balsam_celery.store.rows import EffectKind, EffectRow


@dataclass(frozen=True, slots=True)
class NewEffect:
    """An effect to add; ``payload`` is any JSON value but null."""

    task: str
    kind: EffectKind
    payload: Any
    not_before: float = 0.0


def add(conn: Connection, rows: Sequence[NewEffect], *, now: float) -> None:
    """Add effects in the transaction that makes them due."""
    if rows:
        conn.execute(
            insert(schema.effect),
            [
                {
                    "task": row.task,
                    "kind": EffectKind(row.kind).value,
                    "payload": row.payload,
                    "created": now,
                    "tries": 0,
                    "not_before": row.not_before,
                }
                for row in rows
            ],
        )


def due(conn: Connection, now: float, limit: int) -> list[EffectRow]:
    """Effects to perform, oldest first.

    An effect waits for the earlier ones of its task: a ``forget`` never overtakes a ``result``.
    """
    rows = conn.execute(_due(), {"now": now, "limit": limit}).mappings()
    return [EffectRow.of(row) for row in rows]


@functools.cache
def _due() -> Select[Any]:
    effect, now = schema.effect, bindparam("now", type_=Double)
    earlier = effect.alias()
    blocked = exists().where(
        earlier.c.task == effect.c.task, earlier.c.id < effect.c.id, earlier.c.not_before > now
    )
    query = select(effect).where(effect.c.not_before <= now, ~blocked).order_by(effect.c.id)
    return query.limit(bindparam("limit", type_=Integer))


def done(conn: Connection, ids: Collection[int]) -> None:
    """Drop effects that were performed."""
    if ids:
        effect = schema.effect
        conn.execute(delete(effect).where(effect.c.id.in_(list(ids))))


def failed(conn: Connection, id: int, not_before: float) -> None:
    """Count a failed try of an effect and put it off until ``not_before``."""
    effect = schema.effect
    conn.execute(
        update(effect)
        .where(effect.c.id == id)
        .values(tries=effect.c.tries + 1, not_before=not_before)
    )


def count(conn: Connection) -> int:
    """How many effects are not yet performed."""
    return conn.scalar(select(func.count()).select_from(schema.effect)) or 0
