"""Kill and retry, in SQL alone."""

from __future__ import annotations

from balsam_celery.service.requests import Answer, request_kill, retry
from balsam_celery.states import State
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import EffectKind
from tests.service.acting import (
    add_pilot,
    advance,
    attempts_of,
    effects_of,
    ended,
    start,
    started,
    step,
    step_ended,
    tell,
)
from tests.store.making import add, history, program, task

S = State


def test_what_runs_nowhere_is_killed_at_once(store: Store) -> None:
    add(store, program("t00001"))
    answer = request_kill(store, ["t00001", "none00"], "typo", who="anna")
    assert answer == Answer(done=("t00001",), refused={"none00": "no such task"})
    row = task(store, "t00001")
    assert (row.state, row.reason, row.kill_reason) == (S.USER_KILLED, "typo", "typo")
    assert [e.kind for e in effects_of(store, "t00001")] == [EffectKind.RESULT]
    again = request_kill(store, ["t00001"], "typo")
    assert again.refused == {"t00001": "it is USER_KILLED already"}


def test_descendants_go_along_unless_told_not_to(store: Store) -> None:
    add(
        store,
        program("p00001"),
        program("c00001", parents=["p00001"]),
        program("g00001", parents=["c00001"], on_parent_failure="ignore"),
        program("p00002"),
        program("c00002", parents=["p00002"]),
        program("i00002", parents=["p00002"], on_parent_failure="ignore"),
    )
    assert set(request_kill(store, ["p00001"], "x").done) == {"p00001", "c00001", "g00001"}
    assert {task(store, id).state for id in ("c00001", "g00001")} == {S.USER_KILLED}
    request_kill(store, ["p00002"], "x", descendants=False)
    assert task(store, "c00002").state is S.FAILED
    assert task(store, "i00002").state is S.PREPROCESSED


def test_retry_after_failure_and_after_kill(store: Store) -> None:
    add_pilot(store)
    add(store, program("t00001", max_retries=1, retry_delay=0.0))
    for attempt in (1, 2):
        start(store)
        tell(store, ended("t00001", code=1, attempt=attempt))
    assert task(store, "t00001").state is S.FAILED
    assert retry(store, ["t00001"]).done == ("t00001",)
    row = task(store, "t00001")
    assert (row.state, row.failures, row.result, row.reason, row.finished) == (
        S.RESTART_READY, 0, None, "", None,
    )  # fmt: skip
    kinds = [e.kind for e in effects_of(store, "t00001")]
    assert kinds == [EffectKind.RESULT, EffectKind.FORGET]
    start(store)
    tell(store, started("t00001", 3))
    request_kill(store, ["t00001"], "x")
    tell(store, ended("t00001", "killed", attempt=3))
    assert task(store, "t00001").state is S.USER_KILLED
    retry(store, ["t00001"])
    assert task(store, "t00001").kill_requested is None
    start(store)
    tell(store, ended("t00001", attempt=4))
    assert task(store, "t00001").state is S.JOB_FINISHED
    assert [a.exit_code for a in attempts_of(store, "t00001")] == [1, 1, None, 0]
    assert retry(store, ["t00001"]).refused == {
        "t00001": "it is JOB_FINISHED: only FAILED and USER_KILLED tasks can be retried"
    }


def test_children_wait_again_for_a_parent_that_is_retried(store: Store) -> None:
    add_pilot(store, (4,))
    add(
        store,
        program("p00001"),
        program("p00002"),
        program("c00001", parents=["p00001"]),
        program("b00001", parents=["p00001", "p00002"]),
        program("g00001", parents=["c00001"]),
    )
    start(store)
    tell(store, ended("p00001", code=1), ended("p00002", code=1))
    assert {task(store, id).state for id in ("c00001", "b00001", "g00001")} == {S.FAILED}
    answer = retry(store, ["g00001"])
    assert answer.refused == {"g00001": "its parent c00001 did not finish: retry that one"}
    assert set(retry(store, ["p00001"]).done) == {"p00001", "c00001", "g00001"}
    # its other parent is FAILED still: it would wait for ever
    assert task(store, "b00001").state is S.FAILED
    assert set(retry(store, ["p00002"]).done) == {"p00002", "b00001"}
    start(store)
    tell(store, ended("p00001", attempt=2), ended("p00002", attempt=2))
    advance(store)
    start(store)
    assert task(store, "b00001").state is S.DISPATCHED
    tell(store, ended("c00001"))
    advance(store)
    assert task(store, "g00001").state is S.PREPROCESSED
    assert history(store, "c00001").count(S.AWAITING_PARENTS) == 2


def test_a_chain_that_was_killed_whole_is_retried_whole(store: Store) -> None:
    add(store, program("p00001"), program("c00001", parents=["p00001"]))
    request_kill(store, ["p00001"], "x")
    retry(store, ["p00001"])
    # it never ran, so it is made ready again from the start
    assert task(store, "p00001").state is S.PREPROCESSED
    assert task(store, "c00001").state is S.AWAITING_PARENTS


def test_a_child_that_was_killed_by_name_stays_killed(store: Store) -> None:
    add(store, program("p00001"), program("c00001", parents=["p00001"]))
    request_kill(store, ["c00001"], "x")
    request_kill(store, ["p00001"], "x")
    assert retry(store, ["p00001"]).done == ("p00001",)
    assert task(store, "c00001").state is S.USER_KILLED
    retry(store, ["c00001"])
    assert task(store, "c00001").state is S.AWAITING_PARENTS


def test_a_child_that_ignores_failures_is_retried_without_its_parent(store: Store) -> None:
    """It was killed while it waited, and its parent failed after that."""
    add_pilot(store, (4,))
    add(
        store,
        program("p00001"),
        program("p00002"),
        program("c00001", parents=["p00001"], on_parent_failure="ignore"),
        program("b00001", parents=["p00001", "p00002"], on_parent_failure="ignore"),
        program("g00001", parents=["c00001"]),
    )
    start(store)
    request_kill(store, ["c00001", "b00001"], "x")
    tell(store, ended("p00001", code=1))
    answer = retry(store, ["c00001", "b00001", "g00001"])
    assert (set(answer.done), answer.refused) == ({"c00001", "b00001", "g00001"}, {})
    assert task(store, "c00001").state is S.PREPROCESSED
    # the one waits for its other parent, the other for one that is retried
    row = task(store, "b00001")
    assert (row.state, row.waiting_on) == (S.AWAITING_PARENTS, 1)
    assert task(store, "g00001").state is S.AWAITING_PARENTS
    # a parent that is retried beside it is waited for
    request_kill(store, ["b00001"], "x")
    tell(store, ended("p00002", code=1))
    assert set(retry(store, ["b00001", "p00002"]).done) == {"b00001", "p00002"}
    assert task(store, "b00001").state is S.AWAITING_PARENTS
    start(store)
    tell(store, ended("p00002", attempt=2))
    assert task(store, "b00001").state is S.PREPROCESSED


def test_a_child_that_ignores_failures_comes_along_with_its_parent_only(store: Store) -> None:
    """It was not asked for by itself."""
    add_pilot(store)
    add(
        store,
        program("q00001"),
        program("p00001", parents=["q00001"]),
        program("c00001", parents=["p00001"], on_parent_failure="ignore"),
    )
    start(store)
    request_kill(store, ["p00001"], "x")
    tell(store, ended("q00001", code=1))
    assert set(retry(store, ["p00001"]).refused) == {"p00001"}
    assert task(store, "c00001").state is S.USER_KILLED
    assert set(retry(store, ["p00001", "q00001"]).done) == {"p00001", "q00001", "c00001"}
    assert task(store, "c00001").state is S.AWAITING_PARENTS


def test_retry_of_a_step_sends_it_again(store: Store) -> None:
    add(store, step("s00001"))
    advance(store)
    encoded = {"exc_type": "ValueError", "exc_message": ["bad"], "exc_module": "builtins"}
    tell(store, step_ended("s00001", "FAILURE", encoded))
    retry(store, ["s00001"])
    row = task(store, "s00001")
    assert (row.state, row.attempt) == (S.DISPATCHED, 2)
    assert effects_of(store, "s00001")[-1].payload == {"attempt": 2}
    tell(store, step_ended("s00001", "SUCCESS", 5, attempt=1))
    assert task(store, "s00001").state is S.DISPATCHED
    tell(store, step_ended("s00001", "SUCCESS", 6, attempt=2))
    assert task(store, "s00001").result == 6


def test_many_at_once(store: Store) -> None:
    ids = [f"t{number:05}" for number in range(1000)]
    add(store, *(program(id) for id in ids))
    assert len(request_kill(store, ids, "x").done) == 1000
    assert len(retry(store, ids).done) == 1000
    assert task(store, ids[-1]).state is S.PREPROCESSED
