"""Allocations and pilots: guarded by state."""

from __future__ import annotations

import pytest

from balsam_celery.errors import InvalidInput, NotFound
from balsam_celery.store import allocations
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationState as A
from balsam_celery.store.rows import PilotState as P
from balsam_celery.store.transitions import IllegalTransition
from tests.store.making import race


@pytest.fixture
def filled(store: Store) -> Store:
    with store.write() as conn:
        for now, name in ((10.0, "alloc-1"), (11.0, "alloc-2")):
            allocations.insert_allocation(
                conn,
                id=name,
                queue="debug",
                nodes=2,
                wall_time=600,
                run_dir="/run",
                now=now,
            )
    return store


def insert_pilot(store: Store, id: str, allocation: str) -> bool:
    with store.write() as conn:
        return allocations.insert_pilot(
            conn,
            id=id,
            allocation=allocation,
            host="login",
            pid=7,
            nodes=[{"name": "node01", "cores": [0, 1]}],
            end_time=700.0,
            now=100.0,
        )


def test_life_of_an_allocation(filled: Store) -> None:
    with filled.write() as conn:
        assert allocations.update_allocation(
            conn, "alloc-1", [A.REQUESTED], state=A.QUEUED, native_id="local-1", submitted=20.0
        )
        assert not allocations.update_allocation(conn, "alloc-1", [A.REQUESTED], state=A.FAILED)
        assert allocations.update_allocation(
            conn, "alloc-1", [A.QUEUED], state=A.RUNNING, started=30.0
        )
        assert allocations.update_allocation(
            conn, "alloc-1", allocations.LIVE_ALLOCATIONS, cancel_requested=40.0
        )
    with filled.read() as conn:
        row = allocations.get_allocation(conn, "local-1")
        assert (row.id, row.state, row.submitted, row.cancel_requested) == (
            "alloc-1", A.RUNNING, 20.0, 40.0
        )  # fmt: skip
        everything = allocations.list_allocations(conn)
        assert [row.id for row in everything] == ["alloc-1", "alloc-2"]
        assert [r.id for r in allocations.list_allocations(conn, [A.REQUESTED])] == ["alloc-2"]
        assert allocations.list_allocations(conn, []) == []


def test_ended_allocation_never_comes_back(filled: Store) -> None:
    with filled.write() as conn:
        allocations.update_allocation(conn, "alloc-1", [A.REQUESTED], state=A.ENDED)
        with pytest.raises(IllegalTransition):
            allocations.update_allocation(conn, "alloc-1", [A.ENDED], state=A.RUNNING)


def test_allocation_is_found_by_prefix(filled: Store) -> None:
    with filled.read() as conn:
        with pytest.raises(InvalidInput, match="alloc-1 and alloc-2"):
            allocations.get_allocation(conn, "alloc")
        for wrong in ("nothing", "", "*"):
            with pytest.raises(NotFound):
                allocations.get_allocation(conn, wrong)
        assert allocations.get_allocation(conn, "alloc-2").queue == "debug"


def test_pilot_registers_once_and_ends_once(filled: Store) -> None:
    assert insert_pilot(filled, "pilot-1", "alloc-1")
    assert not insert_pilot(filled, "pilot-1", "alloc-1")
    with filled.write() as conn:
        assert allocations.update_pilot(conn, "pilot-1", [P.LIVE], heartbeat=120.0)
        assert allocations.update_pilot(conn, "pilot-1", [P.LIVE], state=P.DRAINING)
        assert allocations.update_pilot(
            conn, "pilot-1", allocations.LIVE_PILOTS, state=P.ENDED, ended=130.0
        )
        with pytest.raises(IllegalTransition):
            allocations.update_pilot(conn, "pilot-1", [P.ENDED], state=P.LIVE)
    with filled.read() as conn:
        row = allocations.get_pilot(conn, "pilot")
        assert (row.state, row.heartbeat, row.nodes[0]["cores"]) == (P.ENDED, 120.0, [0, 1])
        assert allocations.list_pilots(conn, allocations.LIVE_PILOTS) == []
        assert [r.id for r in allocations.list_pilots(conn, allocation="alloc-1")] == ["pilot-1"]
        assert allocations.list_pilots(conn, allocation="alloc-2") == []
        with pytest.raises(NotFound):
            allocations.get_pilot(conn, "other")


def test_of_racing_updates_exactly_one_wins(filled: Store) -> None:
    def attack(index: int) -> bool:
        return filled.run(
            lambda conn: allocations.update_allocation(
                conn, "alloc-1", [A.REQUESTED], state=A.QUEUED, native_id=f"local-{index}"
            )
        )

    assert race(6, attack).count(True) == 1
