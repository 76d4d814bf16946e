"""The audit finds each thing that can be wrong, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.chaos.audit import Findings, audit, done_again, histories
from tests.chaos.ledger import Line, parse
from tests.chaos.plan import Injected
from tests.chaos.workload import RULES, Task, canvases, errback_id, named, task_id, tasks

SITE = "s"
PATHS = {
    "JOB_FINISHED": ["CREATED", "READY", "STAGED_IN", "PREPROCESSED", "DISPATCHED", "RUNNING",
                     "RUN_DONE", "POSTPROCESSED", "JOB_FINISHED"],
    "FAILED": ["CREATED", "READY", "STAGED_IN", "PREPROCESSED", "DISPATCHED", "RUNNING",
               "RUN_ERROR", "FAILED"],
}  # fmt: skip


STEP_PATH = [*PATHS["JOB_FINISHED"][:2], *PATHS["JOB_FINISHED"][3:]]


class Case:
    """A run of a few tasks in which all went well: what the audit is given."""

    def __init__(self) -> None:
        self.asked = [
            Task(0, "serial", 1.0),
            Task(1, "told", 1.0),
            Task(2, "step", 1.0),
            Task(3, "hooked", 1.0),
        ]
        self.rows: list[dict[str, Any]] = []
        self.attempts: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.ledger: list[str] = []
        for id, task in named(SITE, self.asked).items():
            rule = RULES[task.kind]
            self.rows.append({"id": id, "state": rule.state, "reason": ""})
            self.attempt(id, 1, rule.status or 0, is_step=rule.is_step)
            if task.kind.startswith("errback"):
                self.ledger.append(f"told {id} 1 0 7 0.5 1.0 {TOLD}")
            source = None
            for target in STEP_PATH if rule.is_step else PATHS[rule.state]:
                self.events.append({"task": id, "from_state": source, "to_state": target})
                source = target
        self.ran(f"{HOOKED}:preprocess", 0, 0, 0.0)
        self.ran(f"{HOOKED}:postprocess", 1, 0, 5.0)

    def attempt(
        self, id: str, number: int, code: int, begin: float = 0.0, *, is_step: bool = False
    ) -> None:
        """An attempt that ran for a second and was recorded."""
        how = {"outcome": "exit", "exit_code": code}
        if is_step:
            how = {"outcome": "FAILURE" if code else "SUCCESS", "exit_code": None}
        self.attempts.append({"task": id, "number": number, "ended": 1.0, **how})
        self.ran(id, number, code, begin)

    def ran(self, name: str, number: int, code: int, begin: float) -> None:
        """What a program, a step or a hook writes."""
        self.ledger.append(f"start {name} {number} 0 7 {begin} 1.0 1")
        self.ledger.append(f"end {name} {number} 0 7 {begin + 1.0} 1.0 {code}")

    def forget(self, what: str, name: str) -> None:
        """Take lines out of the ledger."""
        self.ledger = [one for one in self.ledger if not one.startswith(f"{what} {name} ")]

    def lines(self) -> list[Line]:
        return parse("\n".join(self.ledger))

    def audit(self, *injected: Injected) -> Findings:
        return audit(
            SITE, self.asked, self.lines(), self.rows, self.attempts, self.events, injected
        )


ID, TOLD, STEP, HOOKED = (task_id(SITE, number) for number in range(4))
ERRBACK = errback_id(TOLD, "errback")


def lose_the_row(case: Case) -> None:
    del case.rows[0]


def not_final(case: Case) -> None:
    case.rows[0]["state"] = "RUNNING"


def another_end(case: Case) -> None:
    case.rows[0]["state"] = "FAILED"


def fails_again_without_right(case: Case) -> None:
    case.attempt(TOLD, 2, 3, begin=5.0)


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


def step_recorded_twice(case: Case) -> None:
    case.attempt(STEP, 2, 0, begin=5.0, is_step=True)


def step_that_nobody_ran(case: Case) -> None:
    case.forget("end", STEP)


def hook_left_out(case: Case) -> None:
    case.forget("start", f"{HOOKED}:preprocess")


def hook_broken_off(case: Case) -> None:
    case.forget("end", f"{HOOKED}:postprocess")


def hook_of_another_attempt(case: Case) -> None:
    case.ran(f"{HOOKED}:postprocess", 2, 0, 9.0)


def hook_of_nobody(case: Case) -> None:
    case.ran(f"{ID}:handler", 1, 0, 9.0)


def hook_twice(case: Case) -> None:
    case.ran(f"{HOOKED}:postprocess", 1, 0, 9.0)


def errback_without_row(case: Case) -> None:
    case.rows = [row for row in case.rows if row["id"] != ERRBACK]


def errback_not_called(case: Case) -> None:
    case.forget("told", ERRBACK)


def errback_told_of_another(case: Case) -> None:
    case.ledger.append(f"told {ERRBACK} 1 0 7 0.5 1.0 {ID}")


def errback_of_nobody(case: Case) -> None:
    case.ledger.append(f"told {ID} 1 0 7 0.5 1.0 {TOLD}")


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
        (step_recorded_twice, "twice"),
        (step_that_nobody_ran, "unmatched"),
        (hook_left_out, "callbacks"),
        (hook_broken_off, "callbacks"),
        (hook_of_another_attempt, "callbacks"),
        (hook_of_nobody, "callbacks"),
        (hook_twice, "twice"),
        (errback_without_row, "lost"),
        (errback_not_called, "callbacks"),
        (errback_told_of_another, "callbacks"),
        (errback_of_nobody, "callbacks"),
    ],
)
def test_each_harm_is_found(harm: Callable[[Case], None], name: str) -> None:
    case = Case()
    harm(case)
    found = case.audit()
    assert [name for name, count in found.counts().items() if count] == [name], found.told()


def test_a_hook_may_run_again_when_its_worker_was_killed_in_between() -> None:
    case = Case()
    hook_twice(case)
    for moment, right in ((4.0, False), (7.0, True), (12.0, False)):
        found = case.audit(Injected("kill:transitions", moment, 0.0, moment + 0.1))
        assert (found.twice == []) is right
    assert case.audit(Injected("kill:beat", 7.0, 0.0, 7.1)).twice
    # it had still to be killed by ``balsam up``
    assert not case.audit(Injected("kill:supervisor", 4.0, 0.0, 6.0)).twice
    case.ran(STEP, 1, 0, 9.0)
    assert case.audit(Injected("kill:transitions", 7.0, 0.0, 7.1)).twice


def test_the_handler_runs_for_what_has_failed() -> None:
    case = Case()
    case.asked[0] = Task(0, "handled", 1.0)
    case.attempts[0]["exit_code"] = 3
    case.attempt(ID, 2, 0, begin=5.0)
    assert [name for name, count in case.audit().counts().items() if count] == ["callbacks"]
    case.ran(f"{ID}:handler", 1, 0, 3.0)
    assert case.audit() == Findings()


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
    late = {"errback", "errback-program"}
    assert {task.kind for task in drawn} == RULES.keys() - late
    assert {task.kind for task in named(SITE, drawn).values()} == RULES.keys()
    for canvas in canvases(1, 3000):
        for before in canvas[:-1]:
            assert {RULES[task.kind].state for task in before} == {"JOB_FINISHED"}
    assert any(len(canvas) > 2 for canvas in canvases(1, 3000)), "chains of several"


def test_a_beginning_of_the_workload_is_the_workload_of_as_many() -> None:
    done = 0
    for canvas in canvases(1, 200):
        done += sum(map(len, canvas))
        assert tasks(1, done) == tasks(1, 300)[:done]
