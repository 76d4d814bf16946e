"""The audit finds each thing that can be wrong, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.chaos.audit import Findings, audit, done_again, histories
from tests.chaos.ledger import Line, parse
from tests.chaos.workload import RULES, Task, task_id, tasks

SITE = "s"
PATHS = {
    "JOB_FINISHED": ["CREATED", "READY", "STAGED_IN", "PREPROCESSED", "DISPATCHED", "RUNNING",
                     "RUN_DONE", "POSTPROCESSED", "JOB_FINISHED"],
    "FAILED": ["CREATED", "READY", "STAGED_IN", "PREPROCESSED", "DISPATCHED", "RUNNING",
               "RUN_ERROR", "FAILED"],
}  # fmt: skip


class Case:
    """A run of two tasks in which all went well: what the audit is given."""

    def __init__(self) -> None:
        self.asked = [Task(0, "serial", 1.0), Task(1, "fail", 1.0)]
        self.rows: list[dict[str, Any]] = []
        self.attempts: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.ledger: list[str] = []
        for task in self.asked:
            id, rule = task_id(SITE, task.number), RULES[task.kind]
            self.rows.append({"id": id, "state": rule.state, "reason": ""})
            self.attempt(id, 1, rule.status or 0)
            source = None
            for target in PATHS[rule.state]:
                self.events.append({"task": id, "from_state": source, "to_state": target})
                source = target

    def attempt(self, id: str, number: int, code: int, begin: float = 0.0) -> None:
        """An attempt that ran for a second and was recorded."""
        self.attempts.append(
            {"task": id, "number": number, "ended": 1.0, "outcome": "exit", "exit_code": code}
        )
        self.ledger.append(f"start {id} {number} 0 7 {begin} 1.0 1")
        self.ledger.append(f"end {id} {number} 0 7 {begin + 1.0} 1.0 {code}")

    def lines(self) -> list[Line]:
        return parse("\n".join(self.ledger))

    def audit(self) -> Findings:
        return audit(SITE, self.asked, self.lines(), self.rows, self.attempts, self.events)


ID = task_id(SITE, 0)


def lose_the_row(case: Case) -> None:
    del case.rows[0]


def not_final(case: Case) -> None:
    case.rows[0]["state"] = "RUNNING"


def another_end(case: Case) -> None:
    case.rows[0]["state"] = "FAILED"


def fails_again_without_right(case: Case) -> None:
    case.attempt(task_id(SITE, 1), 2, 3, begin=5.0)


def recorded_twice(case: Case) -> None:
    case.attempt(ID, 2, 0, begin=5.0)


def started_twice(case: Case) -> None:
    case.ledger.append(f"start {ID} 1 0 8 9.0 1.0 1")


def lived_beside_another(case: Case) -> None:
    case.ledger.append(f"overlap {ID} 1 0 7 0.1 1.0 -")


def began_before_the_end(case: Case) -> None:
    case.ledger.append(f"start {ID} 2 0 8 0.5 1.0 1")
    case.attempts.append(
        {"task": ID, "number": 2, "ended": 1.0, "outcome": "lost", "exit_code": None}
    )


def ran_without_a_row(case: Case) -> None:
    case.ledger.append(f"start {ID} 2 0 8 5.0 1.0 1")


def has_no_outcome(case: Case) -> None:
    case.attempts.append(
        {"task": ID, "number": 2, "ended": None, "outcome": None, "exit_code": None}
    )


def success_of_no_program(case: Case) -> None:
    del case.ledger[1]


def leaps(case: Case) -> None:
    del case.events[3]


def unasked(case: Case) -> None:
    case.rows.append({"id": "x", "state": "FAILED", "reason": ""})


def test_all_is_well() -> None:
    assert Case().audit() == Findings()


@pytest.mark.parametrize(
    ("harm", "name"),
    [
        (lose_the_row, "lost"),
        (not_final, "lost"),
        (another_end, "wrong"),
        (fails_again_without_right, "wrong"),
        (recorded_twice, "twice"),
        (started_twice, "twice"),
        (lived_beside_another, "overlapped"),
        (began_before_the_end, "overlapped"),
        (ran_without_a_row, "unmatched"),
        (has_no_outcome, "unmatched"),
        (success_of_no_program, "unmatched"),
        (unasked, "unmatched"),
        (leaps, "histories"),
    ],
)
def test_each_harm_is_found(harm: Callable[[Case], None], name: str) -> None:
    case = Case()
    harm(case)
    found = case.audit()
    assert [name for name, count in found.counts().items() if count] == [name], found.told()


def test_a_move_that_the_table_does_not_know() -> None:
    moves = [(None, "CREATED"), ("CREATED", "RUNNING")]
    events = [{"task": "t", "from_state": a, "to_state": b} for a, b in moves]
    assert histories(events) == ["t: CREATED → RUNNING"]


def test_work_that_was_done_again_is_counted_apart() -> None:
    case = Case()
    assert done_again(case.lines()) == 0
    case.attempts[0] |= {"outcome": "lost", "exit_code": None}
    case.attempt(ID, 2, 0, begin=5.0)
    assert case.audit() == Findings()
    assert done_again(case.lines()) == 1


def test_the_workload_is_the_seeds_and_has_all_kinds() -> None:
    drawn = tasks(1, 3000)
    assert drawn == tasks(1, 3000)
    assert drawn != tasks(2, 3000)
    assert {task.kind for task in drawn} == set(RULES)
    parents = [drawn[task.parent] for task in drawn if task.parent is not None]
    assert parents
    assert {RULES[parent.kind].state for parent in parents} == {"JOB_FINISHED"}
