"""Allocations and pilots; every change is guarded by the state it starts from (R1)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    RowMapping,
    Table,
    and_,
    case,
    cast,
    func,
    insert,
    not_,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from balsam_celery.errors import InvalidInput, NotFound
from balsam_celery.store import schema
from balsam_celery.store.rows import AllocationRow, AllocationState, PilotRow, PilotState
from balsam_celery.store.sql import starts_with
from balsam_celery.store.transitions import IllegalTransition

#: Allocations that the scheduler may still run.
LIVE_ALLOCATIONS = (AllocationState.REQUESTED, AllocationState.QUEUED, AllocationState.RUNNING)
#: Pilots that may still hold tasks.
LIVE_PILOTS = (PilotState.LIVE, PilotState.DRAINING)
#: Begins the reason of a pilot that ends because no task could be started in it.
NO_NODE = "none of its nodes can be used"

#: Seconds for which an allocation that came to nothing is shown beside the live ones.
SHOWN_FOR = 3600.0
#: Seconds after a pilot's end for which its keys in Redis are looked for again.
SWEPT_FOR = 3600.0
#: The fact that tells what allocations that were deleted had been charged (node-seconds).
CHARGED = "charged"

_A, _P = AllocationState, PilotState
#: The scheduler may tell of an allocation late, so states may be skipped, but never gone back to.
NEXT_ALLOCATION: dict[AllocationState, frozenset[AllocationState]] = {
    _A.REQUESTED: frozenset({_A.QUEUED, _A.RUNNING, _A.ENDED, _A.FAILED}),
    _A.QUEUED: frozenset({_A.RUNNING, _A.ENDED, _A.FAILED}),
    _A.RUNNING: frozenset({_A.ENDED}),
    _A.ENDED: frozenset(),
    _A.FAILED: frozenset(),
}
NEXT_PILOT: dict[PilotState, frozenset[PilotState]] = {
    _P.LIVE: frozenset({_P.DRAINING, _P.ENDED}),
    _P.DRAINING: frozenset({_P.ENDED}),
    _P.ENDED: frozenset(),
}


def insert_allocation(
    conn: Connection,
    *,
    id: str,
    queue: str,
    nodes: int,
    wall_time: int,
    run_dir: str,
    now: float,
    asked_for: str = "",
) -> None:
    """A new allocation, REQUESTED; ``wall_time`` in seconds, ``asked_for``: why."""
    row = {
        "id": id,
        "queue": queue,
        "nodes": nodes,
        "wall_time": wall_time,
        "state": AllocationState.REQUESTED.value,
        "created": now,
        "run_dir": run_dir,
        "asked_for": asked_for,
    }
    conn.execute(insert(schema.allocation), [row])


def update_allocation(
    conn: Connection, id: str, states: Collection[AllocationState], **values: Any
) -> bool:
    """Set columns of an allocation that is in one of ``states``; tell whether it was.

    Raises:
        IllegalTransition: ``values["state"]`` cannot follow one of ``states``.
    """
    if "state" in values:
        target = AllocationState(values["state"])
        _check_next(id, NEXT_ALLOCATION, [AllocationState(state) for state in states], target)
    return _update(conn, schema.allocation, id, states, values)


def get_allocation(conn: Connection, id: str) -> AllocationRow:
    """The allocation of that id, or the only one whose id starts so or whose native id it is.

    Raises:
        NotFound: there is none.
        InvalidInput: the prefix fits several.
    """
    table = schema.allocation
    # "" is the native id of one of which it is not known whether the scheduler has it
    exact = or_(table.c.id == id, table.c.native_id == id) if id else table.c.id == id
    row = _one(conn, table, "allocation", id, exact)
    return AllocationRow.of(row)


def list_allocations(
    conn: Connection, states: Collection[AllocationState] | None = None
) -> list[AllocationRow]:
    """Allocations (in one of ``states``), oldest first."""
    table = schema.allocation
    query = select(table).order_by(table.c.created, table.c.id)
    if states is not None:
        query = query.where(table.c.state.in_(list(states)))
    return [AllocationRow.of(row) for row in conn.execute(query).mappings()]


def charged(conn: Connection) -> float:
    """Node-seconds that allocations were charged, or may still be; of those deleted too.

    Of those that have ended what they lasted, of those that wait or run their whole wall time; of
    nodes that were given back until then.
    """
    site = schema.site.c
    deleted = select(cast(site.value, Double)).where(site.key == CHARGED).scalar_subquery()
    # in one statement: while some are deleted each is counted once
    counted = select(func.coalesce(func.sum(charge()), 0.0) + func.coalesce(deleted, 0.0))
    return float(conn.scalar(counted) or 0.0)


def charge() -> ColumnElement[float]:
    """Node-seconds that one allocation was charged, or may still be."""
    table = schema.allocation.c
    lasted = case(
        (table.state.in_(list(LIVE_ALLOCATIONS)), table.wall_time),
        (table.started.is_(None), 0.0),
        else_=table.ended - table.started,
    )
    return (table.nodes - table.nodes_back) * lasted + table.charged_back


def give_back(conn: Connection, id: str, nodes: int, now: float) -> None:
    """So many more of an allocation's nodes are back at the scheduler, charged until ``now``."""
    table = schema.allocation
    seconds = case((table.c.started < now, now - table.c.started), else_=0.0)
    conn.execute(
        update(table)
        .where(table.c.id == id)
        .values(
            nodes_back=table.c.nodes_back + nodes,
            charged_back=table.c.charged_back + nodes * seconds,
        )
    )


def came_to_nothing(conn: Connection, since: float) -> list[AllocationRow]:
    """Allocations that FAILED, or ended without a pilot though nobody cancelled them; oldest first.

    ``since``: seconds since the epoch; those that ended before are left out.
    """
    table, pilot = schema.allocation, schema.pilot
    used = select(pilot.c.id).where(pilot.c.allocation == table.c.id).exists()
    unused = (
        (table.c.state == AllocationState.ENDED) & table.c.cancel_requested.is_(None) & not_(used)
    )
    over = table.c.state.in_([AllocationState.ENDED, AllocationState.FAILED])
    query = (
        select(table)
        .where(over, table.c.ended >= since)  # found by index, however many ended before
        .where(or_(table.c.state == AllocationState.FAILED, unused))
        .order_by(table.c.created, table.c.id)
    )
    return [AllocationRow.of(row) for row in conn.execute(query).mappings()]


def insert_pilot(
    conn: Connection,
    *,
    id: str,
    allocation: str,
    host: str,
    pid: int,
    nodes: Sequence[dict[str, Any]],
    end_time: float,
    now: float,
) -> bool:
    """A pilot that registered, LIVE; tell whether it is new (a registration may come twice).

    ``nodes``: plain ``resources.NodeCapacity`` values.
    """
    table = schema.pilot
    dialect = sqlite if conn.dialect.name == "sqlite" else postgresql
    row = {
        "id": id,
        "allocation": allocation,
        "state": PilotState.LIVE.value,
        "host": host,
        "pid": pid,
        "nodes": list(nodes),
        "registered": now,
        "heartbeat": now,
        "end_time": end_time,
    }
    statement = dialect.insert(table).values(row).on_conflict_do_nothing().returning(table.c.id)
    return conn.scalar(statement) is not None


def update_pilot(conn: Connection, id: str, states: Collection[PilotState], **values: Any) -> bool:
    """Set columns of a pilot that is in one of ``states``; tell whether it was.

    Raises:
        IllegalTransition: ``values["state"]`` cannot follow one of ``states``.
    """
    if "state" in values:
        target = PilotState(values["state"])
        _check_next(id, NEXT_PILOT, [PilotState(state) for state in states], target)
    return _update(conn, schema.pilot, id, states, values)


def get_pilot(conn: Connection, id: str) -> PilotRow:
    """The pilot of that id, or the only one whose id starts so.

    Raises:
        NotFound: there is none.
        InvalidInput: the prefix fits several.
    """
    table = schema.pilot
    return PilotRow.of(_one(conn, table, "pilot", id, table.c.id == id))


def list_pilots(
    conn: Connection,
    states: Collection[PilotState] | None = None,
    *,
    allocation: str | None = None,
    allocations: Collection[str] | None = None,
) -> list[PilotRow]:
    """Pilots (in one of ``states``, of that allocation, of one of those), oldest first."""
    table = schema.pilot
    query = select(table).order_by(table.c.registered, table.c.id)
    if states is not None:
        query = query.where(table.c.state.in_(list(states)))
    if allocation is not None:
        query = query.where(table.c.allocation == allocation)
    if allocations is not None:
        query = query.where(table.c.allocation.in_(list(allocations)))
    return [PilotRow.of(row) for row in conn.execute(query).mappings()]


def ended_since(conn: Connection, since: float) -> list[PilotRow]:
    """ENDED pilots that ended after ``since``, or whose own end time is later, in no order.

    Found by index, however many ended before.
    """
    table = schema.pilot
    ended = table.c.state == PilotState.ENDED
    # the state stands in each part, or SQLite reads all of that state
    query = select(table).where(
        or_(and_(ended, table.c.ended >= since), and_(ended, table.c.end_time >= since))
    )
    return [PilotRow.of(row) for row in conn.execute(query).mappings()]


_S = TypeVar("_S", AllocationState, PilotState)


def _check_next(
    id: str, table: Mapping[_S, frozenset[_S]], sources: Collection[_S], target: _S
) -> None:
    for source in sources:
        if target != source and target not in table[source]:
            raise IllegalTransition(f"{id}: {source} -> {target}")


def _update(
    conn: Connection, table: Table, id: str, states: Collection[str], values: dict[str, Any]
) -> bool:
    condition = (table.c.id == id, table.c.state.in_(list(states)))
    return conn.execute(update(table).where(*condition).values(values)).rowcount == 1


def _one(
    conn: Connection, table: Table, word: str, id: str, exact: ColumnElement[bool]
) -> RowMapping:
    row = conn.execute(select(table).where(exact)).mappings().first()
    if row is not None:
        return row
    query = select(table).where(starts_with(conn, table.c.id, id)).order_by(table.c.id).limit(2)
    found = conn.execute(query).mappings().all() if id else []
    if not found:
        raise NotFound(f"there is no {word} {id!r}: 'balsam allocations' lists them")
    if len(found) > 1:
        several = f"{found[0]['id']} and {found[1]['id']}"
        raise InvalidInput(f"{word} {id!r} fits several, such as {several}: give more of it")
    return found[0]
