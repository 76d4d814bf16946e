"""What the end of a task means for those that wait for it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from balsam_celery.errors import TaskFailed
from balsam_celery.service.outcome import celery_result
from balsam_celery.states import State
from balsam_celery.store.engine import Store
from balsam_celery.store.insert import NewTask
from balsam_celery.store.rows import EffectKind
from tests.service.acting import (
    add_pilot,
    advance,
    attempts_of,
    effects_of,
    ended,
    start,
    step,
    step_ended,
    tell,
)
from tests.store.conftest import Clock
from tests.store.making import add, history, program, task

S = State


def child(
    id: str, *parents: str, command: tuple[str, ...] = ("/bin/true",), **values: Any
) -> NewTask:
    """A program whose command is a template, with parents."""
    made = program(id, parents=parents)
    return dataclasses.replace(made, command=command, literal=False, **values)


def finish(store: Store, *ids: str, code: int = 0) -> None:
    """Run the tasks and let them end."""
    start(store)
    for id in ids:
        tell(store, ended(id, code=code, attempt=task(store, id).attempt))


def test_a_child_gets_the_parents_result(store: Store) -> None:
    add_pilot(store)
    add(
        store,
        program("p00001"),
        child("c00001", "p00001", command=("fit", "{0[work_dir]}", "{1}", "{k}"), inputs="single",
              arguments={"args": ["a b; $(c)"], "kwargs": {"k": 2}}),
    )  # fmt: skip
    finish(store, "p00001")
    row = task(store, "c00001")
    assert row.state is S.PREPROCESSED
    assert row.argv == ["fit", "/run/work/default/p00001.p00001/1", "a b; $(c)", "2"]
    [sent] = start(store)
    assert sent.spec.inputs is not None
    assert sent.spec.inputs["args"][0]["task_id"] == "p00001"
    assert attempts_of(store, "c00001")[0].argv == row.argv


def test_a_body_gets_the_results_in_the_order_of_its_header(store: Store) -> None:
    add_pilot(store, (3,))
    header = [program(f"p0000{i}") for i in range(3)]
    command = ("fit", "{0[0][task_id]}", "{0[2][task_id]}")
    body = child("c00001", "p00002", "p00000", "p00001", command=command, inputs="list")
    add(store, *header, body)
    start(store)
    tell(store, ended("p00001"), ended("p00000"))
    assert task(store, "c00001").waiting_on == 1
    tell(store, ended("p00002"))
    assert task(store, "c00001").argv == ["fit", "p00002", "p00001"]


def test_all_parents_in_one_batch(store: Store) -> None:
    add_pilot(store, (3,))
    add(store, program("p00001"), program("p00002"), child("c00001", "p00001", "p00002"))
    start(store)
    tell(store, ended("p00001"), ended("p00002"), ended("p00001"))
    assert task(store, "c00001").state is S.PREPROCESSED
    assert task(store, "c00001").waiting_on == 0


def test_a_command_that_cannot_be_filled_fails_its_task(store: Store) -> None:
    add_pilot(store)
    bad = child("c00001", "p00001", command=("fit", "{0[nothing]}"), inputs="single")
    add(store, program("p00001"), bad, child("g00001", "c00001"))
    finish(store, "p00001")
    row = task(store, "c00001")
    assert row.state is S.FAILED
    assert "no 'nothing'" in row.reason
    assert task(store, "g00001").state is S.FAILED


def test_failure_runs_down_to_the_last_descendant(store: Store) -> None:
    add_pilot(store)
    add(
        store,
        program("p00001", errbacks=[{"id": "e1", "rows": []}]),
        child("c00001", "p00001", errbacks=[{"id": "e2", "rows": []}]),
        child("g00001", "c00001"),
        child("i00001", "c00001", on_parent_failure="ignore"),
        child("i00002", "i00001"),
    )
    finish(store, "p00001", code=1)
    states = {
        id: task(store, id).state for id in ("p00001", "c00001", "g00001", "i00001", "i00002")
    }
    assert states == {
        "p00001": S.FAILED, "c00001": S.FAILED, "g00001": S.FAILED, "i00001": S.PREPROCESSED,
        "i00002": S.AWAITING_PARENTS,
    }  # fmt: skip
    assert task(store, "c00001").reason == "parent p00001 (p00001) FAILED"
    state, error = celery_result(task(store, "g00001"))
    assert state == "FAILURE"
    assert isinstance(error, TaskFailed)
    assert error.outcome["task_id"] == "g00001"
    for id, kinds in (
        ("p00001", [EffectKind.RESULT, EffectKind.ERRBACK]),
        ("c00001", [EffectKind.RESULT, EffectKind.ERRBACK]),
        ("g00001", [EffectKind.RESULT]),
    ):
        assert [e.kind for e in effects_of(store, id)] == kinds


def test_one_parent_fails_and_one_finishes_in_one_batch(store: Store) -> None:
    add_pilot(store, (3,))
    add(store, program("p00001"), program("p00002"), child("c00001", "p00001", "p00002"))
    start(store)
    tell(store, ended("p00001"), ended("p00002", code=1))
    assert task(store, "c00001").state is S.FAILED


def test_steps_between_programs(store: Store) -> None:
    add_pilot(store)
    add(
        store,
        program("p00001"),
        dataclasses.replace(step("s00001", parents=["p00001"]), inputs="single"),
        child("c00001", "s00001", command=("fit", "{0}"), inputs="single"),
    )
    finish(store, "p00001")
    assert task(store, "s00001").state is S.DISPATCHED
    tell(store, step_ended("s00001", "SUCCESS", 2.5))
    assert task(store, "c00001").argv == ["fit", "2.5"]


def test_a_countdown_runs_from_the_end_of_the_parent(store: Store, clock: Clock) -> None:
    add_pilot(store)
    late = dataclasses.replace(
        step("s00001", parents=["p00001"]), celery={"options": {}, "countdown": 30.0}
    )
    add(store, program("p00001"), late, child("c00001", "p00001", celery={"countdown": 30.0}))
    clock.now = 2000.0
    finish(store, "p00001")
    advance(store)
    assert task(store, "s00001").state is S.READY
    assert not start(store)
    clock.now = 2030.0
    advance(store)
    assert task(store, "s00001").state is S.DISPATCHED
    assert [sent.spec.id for sent in start(store)] == ["c00001"]


@pytest.mark.parametrize("make", [child, step])
def test_a_child_that_cannot_go_on_fails_by_itself(store: Store, make: Any) -> None:
    """Its parent has ended well, which must not be forgotten: it would run again."""
    add_pilot(store)
    parents = {} if make is child else {"parents": ["p00001"]}
    args = ("c00001", "p00001") if make is child else ("c00001",)
    bad = dataclasses.replace(make(*args, **parents), celery={"options": {}, "countdown": None})
    add(store, program("p00001"), bad, child("c00002", "p00001"))
    finish(store, "p00001")
    assert task(store, "p00001").state is S.JOB_FINISHED
    assert task(store, "c00002").state is S.PREPROCESSED
    row = task(store, "c00001")
    assert row.state is S.FAILED
    assert row.reason.startswith("cannot go on: TypeError: unsupported operand")


def test_a_child_of_a_finished_parent_is_rendered_by_the_service(store: Store) -> None:
    add_pilot(store)
    add(store, program("p00001"))
    finish(store, "p00001")
    add(store, child("c00001", "p00001", command=("fit", "{0[state]}"), inputs="single"))
    assert task(store, "c00001").state is S.READY
    advance(store)
    assert task(store, "c00001").argv == ["fit", "JOB_FINISHED"]
    assert history(store, "c00001")[-1] is S.PREPROCESSED
