"""Records of workers become moves, attempts, results and effects, each once."""

from __future__ import annotations

import pytest

from balsam_celery.errors import TaskFailed, TaskKilled, TaskTimeout
from balsam_celery.service.outcome import celery_result
from balsam_celery.service.record import record
from balsam_celery.service.requests import request_kill, retry
from balsam_celery.settings import RetrySettings
from balsam_celery.states import State
from balsam_celery.store import allocations
from balsam_celery.store.allocations import LIVE_ALLOCATIONS
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationState, EffectKind, PilotState
from balsam_celery.wire import KillAsked, PilotEnded, Registered, StepStarted, Wake
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
from tests.store.making import SUCCESS, add, history, program, task

S = State


@pytest.fixture
def placed(store: Store) -> Store:
    """One task, t00001, DISPATCHED on a pilot."""
    add_pilot(store)
    add(store, program("t00001", max_retries=1, retry_delay=0.0))
    [sent] = start(store)
    assert sent.spec.id == "t00001"
    return store


def test_a_success_is_complete(placed: Store) -> None:
    told = tell(placed, started("t00001"))
    assert [c.state for c in told.changes] == [S.RUNNING]
    assert not told.left
    told = tell(placed, ended("t00001", environment_digest="abc"))
    assert told.left == (("pilot1", "t00001", 1),)
    assert history(placed, "t00001")[2:] == list(SUCCESS)
    row = task(placed, "t00001")
    assert (row.pilot, row.shares, row.failures) == (None, None, 0)
    [attempt] = attempts_of(placed, "t00001")
    assert (attempt.started, attempt.ended, attempt.outcome) == (1001.0, 1003.0, "exit")
    assert (attempt.exit_code, attempt.user_time, attempt.max_memory) == (0, 1.5, 4096)
    assert (attempt.environment_digest, attempt.argv) == ("abc", ["/bin/true"])
    state, result = celery_result(row)
    assert state == "SUCCESS"
    assert result == {
        "task_id": "t00001", "name": "t00001", "state": "JOB_FINISHED", "outcome": "exit",
        "exit_code": 0, "signal": None, "work_dir": "/run/work/default/t00001.t00001/1",
        "output_tail": "out", "error_tail": "err", "reason": "", "attempts": 1,
        "created": row.created, "started": 1001.0, "ended": 1003.0, "seconds": 2.0,
    }  # fmt: skip
    assert [e.kind for e in effects_of(placed, "t00001")] == [EffectKind.RESULT]


def test_an_end_that_overtakes_its_start_writes_the_start(placed: Store) -> None:
    tell(placed, ended("t00001"))
    tell(placed, started("t00001"))
    assert history(placed, "t00001")[2:] == list(SUCCESS)
    assert attempts_of(placed, "t00001")[0].started == 1001.0


def test_start_and_end_in_one_batch(placed: Store) -> None:
    tell(placed, Wake(), started("t00001"), ended("t00001"), ended("t00001"))
    assert history(placed, "t00001")[2:] == list(SUCCESS)


def test_repeated_and_old_records_change_nothing(placed: Store) -> None:
    tell(placed, ended("t00001", code=1))
    assert task(placed, "t00001").state is S.RESTART_READY
    tell(placed, ended("t00001", code=0), started("t00001"))
    assert task(placed, "t00001").state is S.RESTART_READY
    [sent] = start(placed)
    assert sent.spec.attempt == 2
    told = tell(placed, ended("t00001", code=0, attempt=1), ended("none00", code=0))
    assert not told.changes
    assert task(placed, "t00001").state is S.DISPATCHED
    first, second = attempts_of(placed, "t00001")
    assert (first.exit_code, second.ended) == (1, None)


def test_failures_are_counted(placed: Store) -> None:
    tell(placed, ended("t00001", code=3))
    row = task(placed, "t00001")
    assert (row.state, row.failures, row.reason) == (S.RESTART_READY, 1, "exit code 3")
    start(placed)
    tell(placed, ended("t00001", "timeout", attempt=2, reason="wall_time of 60 s is over"))
    row = task(placed, "t00001")
    assert (row.state, row.failures) == (S.FAILED, 2)
    state, error = celery_result(row)
    assert state == "FAILURE"
    assert isinstance(error, TaskTimeout)
    assert str(error) == "task t00001 failed: wall_time of 60 s is over"
    assert error.outcome["attempts"] == 2


def test_a_retry_waits_until_its_time(store: Store) -> None:
    add_pilot(store)
    add(store, program("t00001", max_retries=2, retry_delay=30.0))
    start(store)
    before = store.clock()
    tell(store, ended("t00001", code=3))
    row = task(store, "t00001")
    assert row.state is S.RESTART_READY
    assert before + 30 <= row.not_before <= store.clock() + 30
    assert start(store) == []


def test_the_site_says_where_the_task_does_not(store: Store) -> None:
    add_pilot(store)
    add(store, program("t00001", max_retries=2), program("t00002", max_retries=2, retry_on=[]))
    start(store)
    said = RetrySettings(retry_on=("!exit:2",), delay=7)
    before = store.clock()
    store.run(
        lambda conn: record(
            conn, [ended("t00001", code=2), ended("t00002", code=2)], now=before, retry=said
        )
    )
    assert task(store, "t00001").state is S.FAILED
    row = task(store, "t00002")
    assert (row.state, row.not_before) == (S.RESTART_READY, before + 7)


@pytest.mark.parametrize("restartable", [False, True])
def test_cuts_are_counted(store: Store, restartable: bool) -> None:
    """In a row, where a task makes progress in between."""
    add_pilot(store)
    add(
        store,
        program("t00001", max_retries=9, retry_delay=0.0, restartable=restartable),
    )
    said = RetrySettings(max_cuts=3, max_restarts=3)

    def attempt(number: int, *end: str) -> State:
        start(store)
        one = ended("t00001", *end, attempt=number, reason="")  # type: ignore[arg-type]
        store.run(lambda conn: record(conn, [one], now=store.clock(), retry=said))
        return task(store, "t00001").state

    ends = [attempt(1, "lost"), attempt(2, "lost"), attempt(3, "timeout")]
    assert ends == [S.RESTART_READY] * 3
    assert task(store, "t00001").cuts == (0 if restartable else 2)
    assert attempt(4, "lost") is (S.RESTART_READY if restartable else S.FAILED)
    if restartable:
        assert attempt(5, "lost") is S.RESTART_READY
        assert attempt(6, "lost") is S.FAILED
    setting = "max_restarts" if restartable else "max_cuts"
    assert f"cut short 3 times before it was done, and [retry] {setting}" in (
        task(store, "t00001").reason
    )
    assert retry(store, ["t00001"]).done == ("t00001",)
    assert task(store, "t00001").cuts == 0


@pytest.mark.parametrize("outcome", ["lost", "drained", "fenced", "killed"])
def test_what_is_taken_back_counts_as_no_failure(placed: Store, outcome: str) -> None:
    for attempt in range(1, 6):
        tell(placed, ended("t00001", outcome, attempt=attempt, started=None))  # type: ignore[arg-type]
        row = task(placed, "t00001")
        assert (row.state, row.failures) == (S.RESTART_READY, 0)
        if outcome == "drained":
            # a pilot that gives work back gets no more of it
            assert not start(placed)
            add_pilot(placed, id=f"pilot{attempt + 1}")
        assert start(placed)
    tell(placed, ended("t00001", attempt=6))
    assert task(placed, "t00001").state is S.JOB_FINISHED
    assert len(attempts_of(placed, "t00001")) == 6
    assert not [a for a in attempts_of(placed, "t00001") if a.ended is None]


def test_cannot_start(placed: Store) -> None:
    reason = "cannot start: no such program: relax.x"
    for attempt in (1, 2):
        tell(placed, ended("t00001", "cannot-start", attempt=attempt, started=None, reason=reason))
        start(placed)
    row = task(placed, "t00001")
    assert (row.state, row.reason) == (S.FAILED, reason)
    assert history(placed, "t00001")[-3:] == [S.DISPATCHED, S.RUN_ERROR, S.FAILED]
    assert isinstance(celery_result(row)[1], TaskFailed)


def test_a_kill_is_final_when_the_worker_confirms_it(placed: Store) -> None:
    tell(placed, started("t00001"))
    answer = request_kill(placed, ["t00001"], "not needed")
    assert answer.requested == ("t00001",)
    assert task(placed, "t00001").state is S.RUNNING
    tell(placed, ended("t00001", "killed", reason="killed: not needed"))
    row = task(placed, "t00001")
    assert (row.state, row.reason) == (S.USER_KILLED, "not needed")
    assert attempts_of(placed, "t00001")[0].outcome == "killed"
    state, error = celery_result(row)
    assert state == "REVOKED"
    assert isinstance(error, TaskKilled)


def test_a_program_that_ended_before_its_kill_has_finished(placed: Store) -> None:
    request_kill(placed, ["t00001"], "late")
    tell(placed, ended("t00001"))
    assert task(placed, "t00001").state is S.JOB_FINISHED


def test_revokes_of_rows_and_of_others(placed: Store) -> None:
    add(placed, program("t00002"))
    asked = KillAsked(("t00001", "t00002", "foreign"), terminate=False, who="celery revoke")
    told = tell(placed, started("t00001"), asked)
    # without terminate what runs goes on
    assert task(placed, "t00001").kill_requested is None
    assert task(placed, "t00002").state is S.USER_KILLED
    assert told.foreign == (KillAsked(("foreign",), terminate=False, who="celery revoke"),)
    tell(placed, KillAsked(("t00001",), terminate=True, who="flower"))
    assert task(placed, "t00001").kill_requested is not None


def test_steps(store: Store) -> None:
    add(store, step("s00001"), program("t00001", parents=["s00001"]))
    assert task(store, "s00001").state is S.READY
    advance(store)
    row = task(store, "s00001")
    assert (row.state, row.attempt) == (S.DISPATCHED, 1)
    [effect] = effects_of(store, "s00001")
    assert (effect.kind, effect.payload) == (EffectKind.SEND, {"attempt": 1})
    tell(store, StepStarted("s00001", 1, 1001.0, "tasks@h"))
    assert task(store, "s00001").state is S.RUNNING
    tell(store, step_ended("s00001", "SUCCESS", {"x": 1}))
    row = task(store, "s00001")
    assert celery_result(row) == ("SUCCESS", {"x": 1})
    assert history(store, "s00001")[1:] == [S.READY, *SUCCESS]
    assert task(store, "t00001").state is S.PREPROCESSED


def test_a_step_that_raised(store: Store) -> None:
    add(store, step("s00001", errbacks=[{"id": "e00001", "rows": []}]))
    advance(store)
    encoded = {"exc_type": "ValueError", "exc_message": ["bad"], "exc_module": "builtins"}
    tell(store, step_ended("s00001", "FAILURE", encoded))
    row = task(store, "s00001")
    assert (row.state, row.reason) == (S.FAILED, "ValueError: bad")
    state, result = celery_result(row)
    assert (state, result["exc_type"]) == ("FAILURE", "ValueError")
    kinds = [e.kind for e in effects_of(store, "s00001")]
    assert kinds == [EffectKind.SEND, EffectKind.RESULT, EffectKind.ERRBACK]


def test_a_killed_step(store: Store) -> None:
    add(store, step("s00001"))
    advance(store)
    request_kill(store, ["s00001"], "enough")
    assert task(store, "s00001").state is S.DISPATCHED
    tell(store, step_ended("s00001", "REVOKED"))
    row = task(store, "s00001")
    assert (row.state, row.reason) == (S.USER_KILLED, "enough")


def test_a_second_incarnation_drains_the_first(store: Store) -> None:
    add_pilot(store)
    again = Registered("pilot2", "a-pilot1", "host", 2, 9999.0, (), 1001.0)
    tell(store, again, again)
    with store.read() as conn:
        assert allocations.get_pilot(conn, "pilot1").state is PilotState.DRAINING
        assert allocations.get_pilot(conn, "pilot2").state is PilotState.LIVE
    tell(store, PilotEnded("pilot2", "idle", 1002.0), PilotEnded("unknown", "?", 1.0))
    with store.read() as conn:
        assert allocations.get_pilot(conn, "pilot2").state is PilotState.DRAINING


def test_a_pilot_without_an_allocation_of_ours_is_not_taken(store: Store) -> None:
    tell(store, Registered("pilot9", "nobody", "host", 1, 9999.0, (), 1001.0))
    with store.read() as conn:
        assert not allocations.list_pilots(conn)


def test_a_pilot_of_an_allocation_that_is_over_is_known_as_ended(store: Store) -> None:
    """What it has in Redis is deleted only if it is known."""
    add_pilot(store)
    store.run(
        lambda conn: allocations.update_allocation(
            conn, "a-pilot1", LIVE_ALLOCATIONS, state=AllocationState.ENDED, ended=1000.0
        )
    )
    late = Registered("late", "a-pilot1", "host", 2, 9999.0, (), 1001.0)
    tell(store, late, late)
    with store.read() as conn:
        pilot = allocations.get_pilot(conn, "late")
        assert (pilot.state, pilot.ended) == (PilotState.ENDED, store.clock())
        assert pilot.reason.startswith("its allocation is over")
        assert allocations.get_pilot(conn, "pilot1").state is PilotState.LIVE


def test_of_two_ends_in_one_batch_the_first_counts(store: Store) -> None:
    add_pilot(store)
    add(store, program("t00001"), program("t00002"))
    start(store)
    tell(
        store,
        ended("t00002"),
        ended("t00001", "lost", started=None, reason="its worker died"),
        ended("t00001", code=3),
    )
    assert task(store, "t00001").state is S.RESTART_READY
    [attempt] = attempts_of(store, "t00001")
    assert (attempt.outcome, attempt.exit_code) == ("lost", None)
