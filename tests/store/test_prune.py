"""Pruning and removing: only what is over, with everything that hangs on it."""

from __future__ import annotations

import pytest
from sqlalchemy import func, insert, select, update

from balsam_celery.errors import InvalidInput, NotFound
from balsam_celery.states import State
from balsam_celery.store import allocations, effects, facts, schema
from balsam_celery.store.effects import NewEffect
from balsam_celery.store.engine import Store
from balsam_celery.store.prune import Removed, prune, prune_allocations, remove
from balsam_celery.store.queries import TaskFilter, select_ids
from balsam_celery.store.rows import AllocationState, EffectKind, PilotState
from tests.store.making import SUCCESS, add, program, race, walk

S = State


def finish(store: Store, *ids: str, at: float) -> None:
    for id in ids:
        walk(store, id, SUCCESS, now=at, work_dir=f"/run/{id}")


def finish_child(store: Store, id: str, at: float) -> None:
    walk(store, id, [S.AWAITING_PARENTS, S.READY, *SUCCESS], now=at)


def prune_all(store: Store, older_than: float) -> list[str]:
    return sorted(row.id for row in store.run(lambda conn: prune(conn, older_than)))


def left(store: Store) -> list[str]:
    with store.read() as conn:
        return sorted(select_ids(conn, TaskFilter()))


def test_old_final_tasks_go_with_everything_that_hangs_on_them(store: Store) -> None:
    add(store, program("old-1", tags=["x"]), program("young"), program("waits"))
    finish(store, "old-1", at=100.0)
    finish(store, "young", at=500.0)
    with store.write() as conn:
        row = {"task": "old-1", "number": 1, "nodes": [], "argv": [], "dispatched": 50.0}
        conn.execute(insert(schema.attempt), [row])
    assert store.run(lambda conn: prune(conn, 500.0)) == [Removed("old-1", "/run/old-1")]
    assert left(store) == ["waits", "young"]
    with store.read() as conn:
        for table in (schema.attempt, schema.tag, schema.event):
            count = select(func.count()).select_from(table).where(table.c.task == "old-1")
            assert conn.scalar(count) == 0


def test_workflow_stays_while_any_of_it_is_not_over(store: Store) -> None:
    # two chains that share nothing, and one that meets the first only through "join"
    add(
        store,
        program("a1"),
        program("a2", parents=["a1"]),
        program("b1"),
        program("join", parents=["a2", "b1"]),
        program("c1"),
        program("c2", parents=["c1"]),
    )
    finish(store, "a1", "b1", "c1", at=100.0)
    finish_child(store, "a2", 100.0)
    finish_child(store, "c2", 100.0)
    assert prune_all(store, 200.0) == ["c1", "c2"]
    assert left(store) == ["a1", "a2", "b1", "join"]
    finish_child(store, "join", 300.0)
    assert prune_all(store, 200.0) == []  # it is over, but young
    assert prune_all(store, 301.0) == ["a1", "a2", "b1", "join"]


def test_task_with_an_effect_to_perform_stays(store: Store) -> None:
    add(store, program("task-1"))
    finish(store, "task-1", at=100.0)
    with store.write() as conn:
        effects.add(conn, [NewEffect("task-1", EffectKind.RESULT, {})], now=1.0)
    assert prune_all(store, 200.0) == []
    with store.write() as conn:
        effects.done(conn, [row.id for row in effects.due(conn, 10.0, 10)])
    assert prune_all(store, 200.0) == ["task-1"]


def test_prune_goes_on_in_portions(store: Store) -> None:
    ids = [f"task-{i}" for i in range(7)]
    add(store, *(program(id) for id in ids))
    finish(store, *ids, at=100.0)
    sizes = [len(store.run(lambda conn: prune(conn, 200.0, limit=3))) for _ in range(4)]
    assert sizes == [3, 3, 1, 0]


def test_prune_of_a_large_workflow(store: Store) -> None:
    number = 3000
    tasks = [program(f"head-{i}") for i in range(number)]
    body = program("body-1", parents=[task.id for task in tasks])
    add(store, *tasks, body)
    for task in tasks[:5]:
        finish(store, task.id, at=100.0)
    assert prune_all(store, 200.0) == []


def test_remove(store: Store) -> None:
    add(store, program("task-1"), program("task-2"), program("task-3"))
    finish(store, "task-1", "task-2", at=100.0)
    with store.write() as conn:
        effects.add(conn, [NewEffect("task-1", EffectKind.RESULT, {})], now=1.0)
        assert remove(conn, []) == []
        assert {row.id for row in remove(conn, ["task-1", "task-2"])} == {"task-1", "task-2"}
        assert effects.count(conn) == 0
    assert left(store) == ["task-3"]


def test_remove_is_all_or_none(store: Store) -> None:
    add(store, program("task-1"), program("task-2"))
    finish(store, "task-1", at=100.0)
    for ids, error, said in (
        (["task-1", "task-2"], InvalidInput, "task-2 is PREPROCESSED: kill it first"),
        (["task-1", "nobody"], NotFound, "nobody"),
    ):
        with pytest.raises(error, match=said), store.write() as conn:
            remove(conn, ids)
    assert left(store) == ["task-1", "task-2"]


def test_task_whose_error_callback_is_still_to_be_called_is_not_removed(store: Store) -> None:
    """Nothing else knows of the callback; a result that is not told yet is lost with its task."""
    add(store, program("task-1"), program("task-2"))
    for id in ("task-1", "task-2"):
        walk(store, id, [S.PREPROCESSED, S.DISPATCHED, S.RUN_ERROR, S.FAILED], now=100.0)
    asked = [NewEffect("task-1", kind, {}) for kind in (EffectKind.RESULT, EffectKind.ERRBACK)]
    with store.write() as conn:
        effects.add(conn, [*asked, NewEffect("task-2", EffectKind.RESULT, {})], now=1.0)
    said = "task-1 has an error callback that is not called yet: .*service"
    with pytest.raises(InvalidInput, match=said), store.write() as conn:
        remove(conn, ["task-1", "task-2"])
    with store.write() as conn:
        effects.done(conn, [row.id for row in effects.due(conn, 10.0, 10)])
        assert len(remove(conn, ["task-1", "task-2"])) == 2


def test_parent_of_a_waiting_child_is_not_removed(store: Store) -> None:
    add(store, program("task-1"), program("child1", parents=["task-1"]))
    finish(store, "task-1", at=100.0)
    with pytest.raises(InvalidInput, match="still needed by child1"), store.write() as conn:
        remove(conn, ["task-1"])


A, P = AllocationState, PilotState
#: Long after everything, for what stays for a while.
LATE = 1e6


def ended_allocation(
    store: Store, id: str, *, pilot: dict[str, object] | None = None, **values: object
) -> None:
    """One of three nodes that ran from 100 to 200, with a pilot that ended then, but for …"""
    row = {"state": A.ENDED, "started": 100.0, "ended": 200.0, **values}
    of_pilot = {"state": P.ENDED, "ended": 200.0, **(pilot or {})}
    with store.write() as conn:
        allocations.insert_allocation(
            conn, id=id, queue="q", nodes=3, wall_time=600, run_dir="/run", now=50.0
        )
        allocations.insert_pilot(
            conn,
            id=f"pilot-{id}",
            allocation=id,
            host="here",
            pid=1,
            nodes=[],
            end_time=700.0,
            now=100.0,
        )
        for table, name, told in (
            (schema.allocation, id, row),
            (schema.pilot, f"pilot-{id}", of_pilot),
        ):
            conn.execute(update(table).where(table.c.id == name).values(told))


def attempt_in(store: Store, task: str, allocation: str) -> None:
    row = {"task": task, "number": 1, "nodes": [], "argv": [], "dispatched": 50.0}
    where = {"allocation": allocation, "pilot": f"pilot-{allocation}"}
    with store.write() as conn:
        conn.execute(insert(schema.attempt), [row | where])


def prune_all_allocations(store: Store, older_than: float, now: float = LATE) -> int:
    return store.run(lambda conn: prune_allocations(conn, older_than, now=now))


def standing(store: Store) -> tuple[list[str], list[str]]:
    """Ids of all allocations, and of those that have pilots."""
    with store.read() as conn:
        ids = [row.id for row in allocations.list_allocations(conn)]
        return sorted(ids), sorted(row.allocation for row in allocations.list_pilots(conn))


def charged(store: Store) -> float:
    with store.read() as conn:
        return allocations.charged(conn)


def test_old_allocations_go_with_their_pilots_and_stay_charged(store: Store) -> None:
    ended_allocation(store, "old", nodes_back=1, charged_back=12.5)
    ended_allocation(store, "unused", state=A.FAILED, started=None)
    ended_allocation(store, "young", ended=900.0)
    ended_allocation(store, "runs", state=A.RUNNING, ended=None, pilot={"state": P.LIVE})
    before = charged(store)
    assert before == 2 * 100.0 + 12.5 + 3 * 800.0 + 3 * 600.0
    assert prune_all_allocations(store, 900.0) == 2
    assert standing(store) == (["runs", "young"], ["runs", "young"])
    assert charged(store) == before
    assert prune_all_allocations(store, 900.0) == 0
    assert prune_all_allocations(store, 901.0) == 1
    assert charged(store) == before
    assert standing(store) == (["runs"], ["runs"])


def test_an_allocation_stays_while_a_task_that_ran_in_it_is_kept(store: Store) -> None:
    ended_allocation(store, "one")
    add(store, program("task-1"))
    finish(store, "task-1", at=150.0)
    attempt_in(store, "task-1", "one")
    assert prune_all_allocations(store, 900.0) == 0
    assert prune_all(store, 900.0) == ["task-1"]
    assert prune_all_allocations(store, 900.0) == 1


def test_what_is_owed_something_stays(store: Store) -> None:
    ended_allocation(store, "not-reaped", pilot={"state": P.DRAINING, "ended": None})
    ended_allocation(store, "may-live", pilot={"end_time": 1500.0})
    ended_allocation(store, "swept", pilot={"ended": 1500.0})
    assert prune_all_allocations(store, 1000.0) == 0
    # within an hour of their end they are shown, and their pilots' keys are looked for
    assert prune_all_allocations(store, 5000.0, now=5000.0) == 0
    assert prune_all_allocations(store, 5000.0, now=5101.0) == 2
    assert standing(store)[0] == ["not-reaped"]


def test_allocations_go_in_portions(store: Store) -> None:
    for number in range(5):
        ended_allocation(store, f"a{number}", ended=200.0 + number)
    before = charged(store)
    sizes = [
        store.run(lambda conn: prune_allocations(conn, 900.0, now=LATE, limit=2)) for _ in range(4)
    ]
    assert sizes == [2, 2, 1, 0]
    assert charged(store) == before


def test_two_that_prune_at_once_count_each_allocation_once(store: Store) -> None:
    for number in range(40):
        ended_allocation(store, f"a{number:02}")
    before = charged(store)

    def some(_: int) -> int:
        counts = []
        while number := store.run(lambda conn: prune_allocations(conn, 900.0, now=LATE, limit=5)):
            counts.append(number)
        return sum(counts)

    assert sum(race(4, some)) == 40
    assert charged(store) == before
    assert standing(store) == ([], [])


def test_a_fact_that_is_a_number_grows(store: Store) -> None:
    race(4, lambda number: store.run(lambda conn: facts.add(conn, "sum", 0.1 * number)))
    with store.read() as conn:
        assert float(facts.recall(conn, "sum") or 0) == pytest.approx(0.6)
