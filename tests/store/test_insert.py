"""Insertion: first states, edges, order, bulk, and what is refused."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import select

from balsam_celery.errors import InvalidInput, NotFound
from balsam_celery.states import State
from balsam_celery.store import effects, schema
from balsam_celery.store.engine import Store
from balsam_celery.store.insert import NewTask, insert_tasks
from balsam_celery.store.queries import TaskFilter, children, count_tasks, parents, select_tasks
from balsam_celery.store.rows import EffectKind
from balsam_celery.store.transitions import Move, move
from tests.store.making import SUCCESS, add, history, program, task, walk
from tests.store.statements import statements

S = State


def test_program_without_parents_may_be_placed_at_once(store: Store) -> None:
    add(store, program("task-1", tags=["a", "b", "a"], data={"k": [1, None]}, priority=-3))
    row = task(store, "task-1")
    assert row.state is S.PREPROCESSED
    assert row.tags == ("a", "b")
    assert (row.data, row.priority, row.argv) == ({"k": [1, None]}, -3, ["/bin/true"])
    assert row.application == "task-1"
    assert row.resources.ranks == 1
    assert history(store, "task-1") == [S.CREATED, S.READY, S.PREPROCESSED]


@pytest.mark.parametrize(
    "values",
    [{"hooks": {"stage_in": ["a"]}}, {"hooks": {"preprocess": ["x"]}}, {"kind": "celery"}],
    ids=["stage_in", "preprocess", "step"],
)
def test_what_needs_something_first_is_ready(store: Store, values: dict[str, object]) -> None:
    add(store, program("task-1", **values))
    assert task(store, "task-1").state is S.READY
    assert history(store, "task-1") == [S.CREATED, S.READY]


def test_children_wait_for_parents_given_in_any_order(store: Store) -> None:
    add(
        store,
        program("body-1", parents=["head-2", "head-1", "head-3"]),
        *(program(f"head-{i}") for i in (1, 2, 3)),
    )
    row = task(store, "body-1")
    assert (row.state, row.waiting_on) == (S.AWAITING_PARENTS, 3)
    with store.read() as conn:
        assert [r.id for r in parents(conn, "body-1")] == ["head-2", "head-1", "head-3"]
        assert [r.id for r in children(conn, "head-1")] == ["body-1"]


def test_finished_parent_is_met_and_the_argv_still_to_be_rendered(store: Store) -> None:
    add(store, program("parent"))
    walk(store, "parent", SUCCESS)
    add(store, program("other-parent"), program("child1", parents=["parent"]))
    add(store, program("child2", parents=["parent", "other-parent"]))
    assert (task(store, "child1").state, task(store, "child1").waiting_on) == (S.READY, 0)
    assert task(store, "child2").waiting_on == 1
    with store.read() as conn:
        edge = schema.dependency
        query = select(edge.c.parent, edge.c.met).where(edge.c.child == "child2")
        assert dict(iter(conn.execute(query))) == {"parent": True, "other-parent": False}


@pytest.mark.parametrize("end", [S.FAILED, S.USER_KILLED])
def test_failed_parent_fails_child_and_grandchild_at_once(store: Store, end: State) -> None:
    add(store, program("parent"))
    walk(store, "parent", [S.PREPROCESSED, end])
    add(
        store,
        program("grandchild", parents=["child1"]),
        program("child1", parents=["parent"], errbacks=[{"task": "clean"}]),
        program("child2", parents=["parent"], on_parent_failure="ignore"),
    )
    for id, of in (("child1", "parent"), ("grandchild", "child1")):
        row = task(store, id)
        assert (row.state, row.waiting_on, row.finished) == (S.FAILED, 1, 1000.0)
        assert of in row.reason
        assert history(store, id) == [S.CREATED, S.AWAITING_PARENTS, S.FAILED]
    assert task(store, "child2").state is S.READY
    with store.read() as conn:
        asked = {(row.task, row.kind) for row in effects.due(conn, 1000.0, 10)}
    assert asked == {
        ("child1", EffectKind.RESULT),
        ("child1", EffectKind.ERRBACK),
        ("grandchild", EffectKind.RESULT),
    }


def test_tasks_keep_the_order_in_which_they_were_given(store: Store) -> None:
    ids = [f"task-{index:03}" for index in range(50)][::-1]
    add(store, *(program(id) for id in ids))
    with store.read() as conn:
        rows = select_tasks(conn, TaskFilter(), limit=100)
    assert [row.id for row in rows] == ids
    assert rows[-1].created == 1000.0
    assert rows[0].created > 999.9


def test_ten_thousand_tasks_in_one_call(store: Store) -> None:
    number = 10_000
    tasks = [program(f"task-{i:06}", tags=["bulk"]) for i in range(number - 1)]
    tasks.append(program("last-one", parents=[task.id for task in tasks]))
    start = time.monotonic()
    add(store, *tasks)
    took = time.monotonic() - start
    with store.read() as conn:
        counts = count_tasks(conn, TaskFilter())
    assert counts == {S.PREPROCESSED: number - 1, S.AWAITING_PARENTS: 1}
    assert task(store, "last-one").waiting_on == number - 1
    assert took < 30, "a few seconds are wanted, also on a loaded machine"


def test_nothing_is_inserted_when_one_is_refused(store: Store) -> None:
    with pytest.raises(NotFound, match="nobody"):
        add(store, program("task-1"), program("task-2", parents=["nobody"]))
    with store.read() as conn:
        assert count_tasks(conn, TaskFilter()) == {}


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ([program("same-1"), program("same-1")], "given twice"),
        (
            [program("task-1", parents=["task-2"]), program("task-2", parents=["task-1"])],
            "wait for",
        ),
        ([program("task-1", parents=["task-1"])], "wait for"),
        ([program("head-1"), program("task-1", parents=["head-1", "head-1"])], "each parent once"),
        ([program("x" * 156)], "156 characters"),
        ([program("task-1", name="n" * 201)], "name"),
        ([program("task-1", name="a\x00b")], "NUL"),
        ([program("task-1", tags=["\udc80"])], "UTF-8"),
        ([program("task-1", num_nodes=2**40)], "num_nodes"),
        ([program("task-1", on_parent_failure="maybe")], "on_parent_failure"),
        ([program("")], "empty"),
        ([NewTask("task-1", "name", argv=["a"])], "wall_time"),
    ],
)
def test_what_the_table_cannot_hold_is_refused(
    store: Store, tasks: list[NewTask], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        add(store, *tasks)


def test_existing_id_is_refused(store: Store) -> None:
    add(store, program("task-1"))
    with pytest.raises(InvalidInput, match="exists already"):
        add(store, program("task-1"))


def test_nothing_to_insert(store: Store) -> None:
    with statements(store) as said:
        add(store)
    assert not [one for one, _ in said if one.startswith("INSERT")]


def test_child_of_a_parent_that_ends_meanwhile_is_not_forgotten(store: Store) -> None:
    """The child's transaction has read the parent's state when the parent ends."""
    add(store, program("parent"))
    walk(store, "parent", SUCCESS[:-1])
    inserted, may_commit = threading.Event(), threading.Event()

    def insert_child() -> None:
        with store.write() as conn:
            insert_tasks(conn, [program("child1", parents=["parent"])], now=1.0, who="test")
            inserted.set()
            may_commit.wait(30)

    seen: list[str] = []

    def end_parent() -> None:
        last = Move("parent", S.POSTPROCESSED, S.JOB_FINISHED)
        with store.write() as conn:
            assert move(conn, [last], now=2.0, who="test") == {0}
            edge = schema.dependency
            seen.extend(conn.scalars(select(edge.c.child).where(edge.c.parent == "parent")))

    child = threading.Thread(target=insert_child)
    child.start()
    assert inserted.wait(30)
    parent = threading.Thread(target=end_parent)
    parent.start()
    parent.join(0.3)  # it must wait: the parent's row is held
    assert parent.is_alive()
    may_commit.set()
    child.join()
    parent.join()
    assert seen == ["child1"]
