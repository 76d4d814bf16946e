"""Reading: filters, pages, prefixes, relatives; partial indexes are used."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Connection, insert, text

from balsam_celery.errors import InvalidInput, NotFound
from balsam_celery.resources import Resources
from balsam_celery.service.window import SHAPE
from balsam_celery.states import State
from balsam_celery.store import allocations, queries, scans, schema, standing
from balsam_celery.store.engine import Store
from balsam_celery.store.queries import TaskFilter
from tests.store.making import SUCCESS, add, program, task, walk
from tests.store.statements import statements

S = State


@pytest.fixture
def filled(store: Store) -> Store:
    add(store, program("early1", name="relax_1", workflow="water", tags=["a"]), now=100.0)
    add(store, program("middle", name="Relax_2", workflow="water", tags=["a", "b"]), now=200.0)
    add(store, program("later1", name="[x]*%?", workflow="ice", kind="celery"), now=300.0)
    walk(store, "early1", SUCCESS, now=400.0)
    return store


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (TaskFilter(), ["early1", "middle", "later1"]),
        (TaskFilter(ids=("middle", "none-such")), ["middle"]),
        (TaskFilter(ids=()), []),
        (TaskFilter(name="relax*"), ["early1"]),  # case counts
        (TaskFilter(name="?elax_?"), ["early1", "middle"]),
        (TaskFilter(name="relax_1"), ["early1"]),
        (TaskFilter(name="relax%"), []),
        (TaskFilter(name="[x]*"), ["later1"]),
        (TaskFilter(name="*%?"), ["later1"]),
        (TaskFilter(workflow="water"), ["early1", "middle"]),
        (TaskFilter(tags=("a",)), ["early1", "middle"]),
        (TaskFilter(tags=("a", "b")), ["middle"]),
        (TaskFilter(tags=("a", "c")), []),
        (TaskFilter(states=(S.JOB_FINISHED, S.READY)), ["early1", "later1"]),
        (TaskFilter(kind="celery"), ["later1"]),
        (TaskFilter(application="Relax_2"), ["middle"]),
        (TaskFilter(created_after=200.0), ["middle", "later1"]),
        (TaskFilter(created_before=200.0), ["early1"]),
        (TaskFilter(finished_after=400.0), ["early1"]),
        (TaskFilter(finished_before=400.0), []),
        (TaskFilter(workflow="water", states=(S.PREPROCESSED,), tags=("b",)), ["middle"]),
    ],
)
def test_filter(filled: Store, wanted: TaskFilter, found: list[str]) -> None:
    with filled.read() as conn:
        rows = queries.select_tasks(conn, wanted, limit=10)
        assert [row.id for row in rows] == found
        assert queries.select_ids(conn, wanted) == found
        assert sum(queries.count_tasks(conn, wanted).values()) == len(found)


@pytest.mark.parametrize("newest_first", [False, True])
def test_pages_hold_each_task_once(store: Store, newest_first: bool) -> None:
    # several created at the very same time, so that the cursor must look at the id too
    for batch in range(5):
        for index in range(5):
            add(store, program(f"task-{batch}-{index}"), now=100.0 * batch)
    with store.read() as conn:
        whole = queries.select_tasks(conn, TaskFilter(), limit=100, newest_first=newest_first)
        seen, after = [], None
        while True:
            page = queries.select_tasks(
                conn, TaskFilter(), limit=4, after=after, newest_first=newest_first
            )
            seen += page
            if len(page) < 4:
                break
            after = queries.cursor(page[-1])
    assert seen == whole
    assert len({row.id for row in seen}) == 25


def test_task_by_id_or_prefix(filled: Store) -> None:
    add(filled, program("6f1e2d3c-aaaa"), program("6f1e2d3c-bbbb"), program("short"))
    assert task(filled, "early1").name == "relax_1"
    assert task(filled, "short").id == "short"
    assert task(filled, "6f1e2d3c-a").id == "6f1e2d3c-aaaa"
    with pytest.raises(InvalidInput, match="6f1e2d3c-aaaa and 6f1e2d3c-bbbb"):
        task(filled, "6f1e2d3c")
    for wrong in ("6f1e2", "nobody-of-that-id", "", "******", "______", "[6]f1e2d3c-a"):
        with pytest.raises(NotFound, match="there is no task"):
            task(filled, wrong)


def test_find_tasks_leaves_out_what_does_not_exist(filled: Store) -> None:
    with filled.read() as conn:
        assert set(queries.find_tasks(conn, ["middle", "nobody", "early1"])) == {"middle", "early1"}
        assert queries.find_tasks(conn, []) == {}


def test_descendants_of_a_diamond(store: Store) -> None:
    add(
        store,
        program("top"),
        program("left", parents=["top"]),
        program("right", parents=["top"]),
        program("bottom", parents=["left", "right"]),
        program("alone"),
    )
    with store.read() as conn:
        assert sorted(queries.descendants(conn, ["top"])) == ["bottom", "left", "right"]
        assert sorted(queries.descendants(conn, ["left", "right"])) == ["bottom"]
        assert queries.descendants(conn, ["bottom", "alone"]) == []
        assert queries.descendants(conn, []) == []


def test_attempts_and_the_last_of_each(store: Store) -> None:
    add(store, program("task-1"), program("task-2"))
    walk(store, "task-1", [S.PREPROCESSED, S.DISPATCHED], attempt=2)
    rows = [
        {"task": "task-1", "number": n, "nodes": [], "argv": ["x"], "dispatched": 100.0 + n}
        for n in (2, 1)
    ]
    with store.write() as conn:
        conn.execute(insert(schema.attempt), rows)
    with store.read() as conn:
        assert [row.number for row in queries.attempts(conn, "task-1")] == [1, 2]
        assert queries.attempts(conn, "task-2") == []
        last = queries.last_attempts(conn, ["task-1", "task-2"])
    assert {id: row.number for id, row in last.items()} == {"task-1": 2}


def test_scans_find_what_the_service_looks_for(store: Store) -> None:
    add(
        store,
        program("narrow"),
        program("wide-1", num_nodes=4),
        program("urgent", priority=5),
        program("future", not_before=5000.0),
        program("step-1", kind="celery"),
        program("placed"),
        program("killed"),
    )
    walk(store, "placed", SUCCESS[:3], pilot="pilot-1")
    with store.write() as conn:
        conn.execute(text("UPDATE task SET kill_requested = 7 WHERE id IN ('placed', 'killed')"))
    walk(store, "killed", [S.PREPROCESSED, S.USER_KILLED])
    with store.read() as conn:
        waiting = scans.placeable(conn, now=1000.0, limit=10)
        assert [row.id for row in waiting] == ["urgent", "wide-1", "narrow"]
        assert [row.id for row in scans.placeable(conn, now=1000.0, limit=1)] == ["urgent"]
        shapes = {
            (row.num_nodes, row.priority): row.count for row in scans.backlog(conn, now=6000.0)
        }
        assert sum(shapes.values()) == 4
        assert shapes[4, 0] == 1
        assert [row.id for row in scans.on_pilots(conn)] == ["placed"]
        assert [row.id for row in scans.on_pilots(conn, "pilot-2")] == []
        [kill] = scans.kills_requested(conn, limit=10)
        assert kill.id == "placed"
        assert scans.kills_requested(conn, limit=10, after=(7.0, "placed")) == []


def test_memory_and_resources_make_shapes(store: Store) -> None:
    asked = {"memory_per_node": 5 << 40, "resources_per_node": "licence=2,nvme=1"}
    add(store, program("plain1"), program("plain2"), program("much-1", **asked))
    with store.read() as conn:
        shapes = {shape.resources: shape.count for shape in scans.backlog(conn, now=2000.0)}
        waiting = {row.id: row.resources for row in scans.placeable(conn, now=2000.0, limit=9)}
    much = Resources(memory_per_node=5 << 40, resources_per_node=(("licence", 2), ("nvme", 1)))
    assert shapes == {Resources(): 2, much: 1}
    assert waiting == {"plain1": Resources(), "plain2": Resources(), "much-1": much}
    assert task(store, "much-1").resources == much


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("query", "index"),
    [
        (lambda conn: scans.placeable(conn, now=1.0, limit=10), "ix_task_placeable"),
        (lambda conn: scans.backlog(conn, now=1.0), "ix_task_placeable"),
        (lambda conn: scans.on_pilots(conn, "p"), "ix_task_on_pilot"),
        (lambda conn: scans.kills_requested(conn, limit=10), "ix_task_kill_requested"),
    ],
    ids=["placeable", "backlog", "on_pilots", "kills"],
)
def test_sqlite_uses_the_partial_index(
    store: Store, query: Callable[[Connection], object], index: str
) -> None:
    [(_, plan)] = plans(store, query)
    assert index in plan


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_sqlite_sorts_no_backlog(store: Store) -> None:
    [(_, plan)] = plans(store, lambda conn: scans.placeable(conn, now=1.0, limit=10))
    assert "ORDER BY" not in plan


def test_expected_time_counts_as_age_among_equals(store: Store) -> None:
    add(store, program("task-older"), now=900.0)
    add(store, program("task-plain"), now=901.5)
    add(store, program("task-short", expected_time=20.0), now=990.0)
    add(store, program("task-long", expected_time=99.0), now=1000.0)
    row = task(store, "task-short")
    with store.read() as conn:
        waiting = scans.placeable(conn, now=2000.0, limit=9)
        before = standing.ahead(conn, row, SHAPE, now=2000.0, ageing=1e9)
    assert [one.id for one in waiting] == ["task-older", "task-long", "task-plain", "task-short"]
    assert before.older == 3


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_what_goes_before_a_task_is_counted_in_one_walk(store: Store) -> None:
    add(store, program("task-1"), program("task-2"))
    row = task(store, "task-2")
    [(statement, plan)] = plans(
        store, lambda conn: standing.ahead(conn, row, SHAPE, now=2000.0, ageing=60.0)
    )
    assert statement.count("SELECT") == 1
    assert plan.count("ix_task_placeable") == 1


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_pilots_of_some_allocations_are_found_by_index(store: Store) -> None:
    [(_, plan)] = plans(store, lambda conn: allocations.list_pilots(conn, allocations=["a", "b"]))
    assert "ix_pilot_allocation" in plan


def plans(store: Store, query: Callable[[Connection], object]) -> list[tuple[str, str]]:
    """Each statement that reads, and how SQLite answers it."""
    with statements(store) as said, store.read() as conn:
        query(conn)
    with store.read() as conn:
        return [
            (statement, str(conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()))
            for statement, values in said
            if statement.startswith("SELECT")
        ]
