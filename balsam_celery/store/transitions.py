"""Changes of a task's state: guarded, each with its event row (R1)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Select, case, insert, select, update

from balsam_celery.errors import StoreError
from balsam_celery.states import FINAL, State, is_legal
from balsam_celery.store import schema
from balsam_celery.store.sql import given, given_any, update_each


class IllegalTransition(ValueError):
    """A move that DESIGN's table does not have: a bug of the caller, never the data's fault."""


@dataclass(frozen=True, slots=True)
class Move:
    """One change of state.

    Attributes:
        id: the task.
        source: the state it must be in.
        target: the state it gets.
        message: for people, in the event.
        attempt: the attempt it must be at; ``None``: any.
        values: other columns of ``schema.task`` to set. ``changed`` is set by itself, and
            ``finished`` when a final state is entered or left.
        time: of the event, when it happened before it was told; ``None``: now.
    """

    id: str
    source: State
    target: State
    message: str = ""
    attempt: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    time: float | None = None


def move(conn: Connection, moves: Sequence[Move], *, now: float, who: str) -> set[int]:
    """Do what is possible of ``moves``, in their order, in the caller's transaction.

    Several moves of one task may stand in one call (DISPATCHED → RUNNING → RUN_DONE); once one of
    them is lost, the later ones of that task are lost too.

    Args:
        conn: from ``Store.write`` or ``Store.run``.
        moves: what to do.
        now: seconds since the epoch.
        who: the mover, for the events.

    Returns:
        Indexes of the moves that were done; the others lost (the task was gone, in another
        state, or at another attempt).

    Raises:
        IllegalTransition: a move that the table of states does not have; nothing was done.
    """
    for one in moves:
        if not is_legal(one.source, one.target):
            raise IllegalTransition(f"task {one.id}: {one.source} -> {one.target}")
        if not _OWN_COLUMNS.isdisjoint(one.values):
            raise ValueError(f"task {one.id}: values may not hold id or state")
    found = _lock(conn, {one.id for one in moves})
    at = dict(found)
    changes: dict[str, dict[str, Any]] = {}
    event_rows = []
    won = set()
    for index, one in enumerate(moves):
        state, attempt = at.get(one.id, _GONE)
        if state != one.source or one.attempt not in (None, attempt):
            at[one.id] = _GONE
            continue
        won.add(index)
        at[one.id] = (one.target, one.values.get("attempt", attempt))
        change = changes.setdefault(one.id, {"changed": now})
        if one.target in FINAL:
            change["finished"] = now
        elif one.source in FINAL:
            change["finished"] = None
        change.update(one.values)
        change["state"] = one.target.value
        event_rows.append(
            {
                "task": one.id,
                "from_state": one.source.value,
                "to_state": one.target.value,
                "time": now if one.time is None else one.time,
                "who": who,
                "message": one.message,
            }
        )
    if event_rows:
        _update(conn, changes, found)
        conn.execute(insert(schema.event), event_rows)
    return won


def add_reason(conn: Connection, id: str, reason: str) -> None:
    """Say more about a task's end, if it has ended; its state is what it was."""
    task = schema.task.c
    final = task.state.in_(sorted(state.value for state in FINAL))
    with_reason = case((task.reason == "", reason), else_=task.reason + f"; {reason}")
    conn.execute(update(schema.task).where(task.id == id, final).values(reason=with_reason))


#: What a task that does not exist, or lost a move, is at: no move starts there.
_GONE: tuple[State | None, int] = (None, -1)
_OWN_COLUMNS = frozenset({"id", "state"})


def _lock(conn: Connection, ids: set[str]) -> dict[str, tuple[State | None, int]]:
    """State and attempt of the tasks that exist, held until the transaction ends.

    SQLite has one writer; PostgreSQL locks the rows, in one order for all, so that two movers
    cannot wait for each other (and not against new edges to them, hence ``key_share``).
    """
    rows = conn.execute(_locked(conn.dialect.name), given(conn, ids))
    return {id: (State(state), attempt) for id, state, attempt in rows}


@functools.cache
def _locked(dialect: str) -> Select[str, str, int]:
    task = schema.task
    query = select(task.c.id, task.c.state, task.c.attempt).where(given_any(dialect, task.c.id))
    return query.order_by(task.c.id).with_for_update(key_share=True)


def _update(
    conn: Connection,
    changes: Mapping[str, dict[str, Any]],
    found: Mapping[str, tuple[State | None, int]],
) -> None:
    """One guarded UPDATE for each task, whatever number of moves it made."""
    rows = []
    for id, change in changes.items():
        state, attempt = found[id]
        rows.append(({"id": id, "state": state, "attempt": attempt}, change))
    done = update_each(conn, schema.task, rows)
    if done != len(rows):
        # the rows were locked, so only a transaction opened for reading gets here
        raise StoreError(f"{len(rows) - done} tasks changed under a lock: use Store.write")
