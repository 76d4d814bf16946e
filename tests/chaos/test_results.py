"""Each final task has the result that its row says."""

from __future__ import annotations

from typing import Any

from tests.chaos.plan import Injected
from tests.chaos.results import EXCUSED, wrong_results

DONE = {"id": "t", "state": "JOB_FINISHED", "finished": 100.0, "result": {"exit_code": 0}}
GOOD = {"status": "SUCCESS", "result": {"exit_code": 0}}


def found(kept: dict[str, Any] | None, row: dict[str, Any] = DONE, *faults: Injected) -> int:
    return len(wrong_results([row], {"t": kept}, faults))


def test_what_is_the_rows_is_right() -> None:
    assert found(GOOD) == 0
    assert found({"status": "FAILURE", "result": {}}, {**DONE, "state": "FAILED"}) == 0
    assert found({"status": "REVOKED", "result": {}}, {**DONE, "state": "USER_KILLED"}) == 0


def test_another_state_or_value_is_wrong() -> None:
    assert found({**GOOD, "status": "FAILURE"}) == 1
    assert found({**GOOD, "result": {"exit_code": 1}}) == 1


def test_a_missing_result_is_wrong() -> None:
    assert found(None) == 1
    assert found(None, {**DONE, "state": "FAILED"}) == 1
    assert found(None, DONE, Injected("pause:redis", 0.0, 101.0)) == 1


def test_only_a_kill_of_redis_just_after_the_end_excuses_a_missing_one() -> None:
    kill = "kill:redis"
    assert found(None, DONE, Injected(kind=kill, monotonic=0.0, wall=101.0)) == 0
    assert found(None, DONE, Injected(kind=kill, monotonic=0.0, wall=99.0)) == 1
    assert found(None, DONE, Injected(kind=kill, monotonic=0.0, wall=101.0 + EXCUSED)) == 1


def test_a_task_that_is_not_final_has_none() -> None:
    assert found(None, {**DONE, "state": "RUNNING"}) == 0
