"""Allocations, pilots and tasks on them, written to SQL the way the service does."""

from __future__ import annotations

from sqlalchemy import insert

from balsam_celery.packing import Request
from balsam_celery.resources import NodeCapacity, NodeShare
from balsam_celery.service.submit import insert_requests
from balsam_celery.site import Site
from balsam_celery.states import State
from balsam_celery.store import allocations, schema
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationRow, AllocationState, PilotRow
from balsam_celery.store.transitions import Move, move
from balsam_celery.wire import to_plain
from tests.store.making import add, program

NODES = tuple(NodeCapacity(f"n{number}", (0, 1)) for number in range(2))
REQUEST = Request("local", 2, 300, "a test")


def requested(store: Store, site: Site, request: Request = REQUEST) -> str:
    """An allocation, REQUESTED."""
    [id] = store.run(lambda conn: insert_requests(conn, site, [request], now=store.clock()))
    return id


def set_allocation(store: Store, id: str, state: AllocationState, **values: object) -> None:
    """Put an allocation into ``state``."""
    before = allocation(store, id).state
    assert store.run(
        lambda conn: allocations.update_allocation(conn, id, (before,), state=state, **values)
    )


def allocation(store: Store, id: str) -> AllocationRow:
    """The allocation's row."""
    with store.read() as conn:
        return allocations.get_allocation(conn, id)


def pilot_in(store: Store, allocation_id: str, id: str = "p1", ends_in: float = 300) -> str:
    """A live pilot of two nodes with two cores each."""
    assert store.run(
        lambda conn: allocations.insert_pilot(
            conn,
            id=id,
            allocation=allocation_id,
            host="here",
            pid=1,
            nodes=[to_plain(node) for node in NODES],
            end_time=store.clock() + ends_in,
            now=store.clock(),
        )
    )
    return id


def pilot(store: Store, id: str) -> PilotRow:
    """The pilot's row."""
    with store.read() as conn:
        return allocations.get_pilot(conn, id)


def running_pilot(store: Store, site: Site, id: str = "p1") -> str:
    """A RUNNING allocation with a live pilot; returns the allocation's id."""
    made = requested(store, site)
    set_allocation(store, made, AllocationState.RUNNING, native_id="x", started=store.clock())
    pilot_in(store, made, id)
    return made


def dispatched(
    store: Store,
    id: str,
    pilot_id: str,
    *,
    nodes: tuple[str, ...] = ("n0",),
    running: bool = False,
    attempt: int = 1,
    core: int = 0,
) -> None:
    """A task that is DISPATCHED to, or RUNNING on, nodes of a pilot."""
    add(store, program(id, num_nodes=len(nodes)), now=store.clock())
    shares = [to_plain(NodeShare(node, (core,))) for node in nodes]
    values = {"attempt": attempt, "pilot": pilot_id, "shares": shares, "work_dir": "/w"}
    moves = [Move(id, State.PREPROCESSED, State.DISPATCHED, values=values)]
    if running:
        moves.append(Move(id, State.DISPATCHED, State.RUNNING))
    row = {
        "task": id,
        "number": attempt,
        "pilot": pilot_id,
        "nodes": shares,
        "argv": ["/bin/true"],
        "dispatched": store.clock(),
        "started": store.clock() if running else None,
    }
    with store.write() as conn:
        assert len(move(conn, moves, now=store.clock(), who="test")) == len(moves)
        conn.execute(insert(schema.attempt), [row])


def rows(store: Store, *states: AllocationState) -> list[AllocationRow]:
    """Rows of allocations in one of ``states``, or of all."""
    with store.read() as conn:
        return allocations.list_allocations(conn, states or None)
