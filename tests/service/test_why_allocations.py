"""Why an allocation is where it is, and what becomes of the backlog, as pure functions of facts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from balsam_celery.packing import Note, Request
from balsam_celery.resources import Resources
from balsam_celery.service.backoff import Pause
from balsam_celery.service.poll import NOT_KNOWN
from balsam_celery.service.why_allocations import AllocationFacts, why_allocation
from balsam_celery.service.why_backlog import Need, describe, why_need
from balsam_celery.service.why_facts import Job
from balsam_celery.store.rows import AllocationState, PilotState
from tests.service.rows import NOW, allocation_row, pilot_row
from tests.service.test_why_any import PILOTS, SHORT, TIMES

A = AllocationState
CODES = ["kept", "overdue", "ending", "unneeded", "too-large", "too-small", "idle", "time-over"]


def facts(state: AllocationState, *, row: dict[str, Any] | None = None, **values: Any) -> Any:
    """Facts of an allocation in ``state``."""
    return AllocationFacts(allocation_row(state, **row or {}), NOW, **values)


TABLE: dict[str, tuple[AllocationFacts, str, list[str]]] = {
    "asked for": (
        facts(A.REQUESTED, row={"native_id": None}, planned=3),
        "requested", ["It is asked for", "3 waiting tasks are planned for it."],
    ),
    "in doubt": (
        facts(A.REQUESTED, row={"native_id": "", "submitted": NOW, "reason": "held: not known"}),
        "in-doubt", ["It may be submitted: held: not known."],
    ),
    "not taken yet": (
        facts(A.REQUESTED, row={"native_id": None, "submitted": NOW, "reason": "no sbatch"}),
        "not-submitted", ["It could not be submitted yet: no sbatch."],
    ),
    "queued": (
        facts(
            A.QUEUED, row={"reason": "Priority", "asked_for": "9 waiting tasks fill 2 nodes"},
            job=Job(NOW + 60), planned=1,
        ),
        "queued",
        ["It waits in the scheduler's queue (Priority); the scheduler expects to start it at",
         "(in 1m). It was asked for at", "(2m ago): 9 waiting tasks fill 2 nodes. 1 waiting",
         "1 waiting task is planned for it."],
    ),
    "queued behind its own": (
        facts(A.QUEUED, job=Job(full=4), planned=1),
        "queued", ["queue; max_running of queue debug is 4, and as many run; the scheduler does"],
    ),
    "never starts": (
        facts(A.QUEUED, row={"reason": "can never start: PartitionTimeLimit"}),
        "never-starts", ["It can never start: PartitionTimeLimit."],
    ),
    "not known": (
        facts(A.QUEUED, row={"reason": f"{NOT_KNOWN}noon: squeue: down"}),
        "not-known", ["its state is not known since noon: squeue: down."],
    ),
    "not needed": (
        facts(A.QUEUED, note=Note("a1", "unneeded", "nothing needs it any more"), planned=1),
        "queued", ["It is given up when the service plans next: nothing needs it any more."],
    ),
    "overdue": (
        facts(A.QUEUED, note=Note("a1", "overdue", "it has been queued for 3d"), planned=1),
        "queued", ["It has been queued for 3d."],
    ),
    "to be drained": (
        facts(A.RUNNING, pilot=pilot_row(), note=Note("a1", "idle", "idle for 1m")),
        "running", ["It is drained when the service plans next: idle for 1m."],
    ),
    "starts up": (
        facts(A.RUNNING, row={"started": NOW - 5}), "starting-up", ["has not registered yet"],
    ),
    "runs": (
        facts(A.RUNNING, pilot=pilot_row(), running=2, planned=7),
        "running", ["It runs 2 tasks on 2 nodes, until", "7 waiting tasks are planned"],
    ),
    "idle": (
        facts(A.RUNNING, pilot=pilot_row(idle_since=NOW - 9)), "idle", ["Nothing runs in it since"],
    ),
    "drains": (
        facts(A.RUNNING, pilot=pilot_row(PilotState.DRAINING, reason="idle"), running=1),
        "draining", ["Nothing more starts in it (idle); 1 task is still on it"],
    ),
    "its pilot has ended": (
        facts(A.RUNNING, pilot=pilot_row(PilotState.ENDED, reason="killed")),
        "pilot-ended", ["Its pilot has ended: killed.", "has not said yet"],
    ),
    "cancelled": (
        facts(A.QUEUED, row={"cancel_requested": NOW - 9, "reason": "given up: no need"}),
        "cancelling", ["(9s ago) (given up: no need): the scheduler's word is awaited."],
    ),
    "failed": (
        facts(A.FAILED, row={"ended": NOW - 9, "reason": "Invalid account"}),
        "failed", ["It failed at", "(9s ago): Invalid account."],
    ),
    "ended": (facts(A.ENDED), "ended", ["It ended: no reason is known."]),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_each_situation_is_told(name: str) -> None:
    given_facts, code, words = TABLE[name]
    found = why_allocation(given_facts)
    assert found.code == code
    for one in words:
        assert one in found.text


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    state=st.sampled_from(A),
    row=st.fixed_dictionaries(
        {
            "native_id": st.none() | st.sampled_from(["", "17"]),
            "cancel_requested": TIMES,
            "submitted": TIMES,
            "started": TIMES,
            "ended": TIMES,
            "reason": SHORT,
        }
    ),
    job=st.builds(Job, TIMES, SHORT),
    pilot=st.none() | PILOTS,
    running=st.integers(0, 3),
    planned=st.integers(0, 3),
    note=st.none() | st.builds(Note, st.just("a1"), st.sampled_from(CODES), st.just("so it is")),
)
def test_every_state_gives_a_sentence_whatever_the_facts(
    state: AllocationState, row: dict[str, Any], **values: Any
) -> None:
    found = why_allocation(facts(state, row=row, **values))
    assert found.code.replace("-", "").isalpha()
    assert found.text[0].isupper()
    assert found.text[-1] in ".!?"
    assert "None" not in found.text


ASKED = Request("debug", 2, 600, "because")
PAUSED = {"debug": Pause(NOW + 60, 1, "no nodes")}
WIDE = Resources(num_nodes=2, gpus_per_rank=1)


@pytest.mark.parametrize(
    ("need", "code", "left", "words"),
    [
        (
            Need(Resources(), 600, 0, 12, (("a1", 8), ("a2", 4))), "planned", 0,
            ["12 waiting tasks of 1 core, 10m each at the most: planned 8 for allocation a1 and 4"],
        ),
        (
            Need(WIDE, 600, 3, 12, (("a1", 8),), ((ASKED, 4),)), "to-request", 0,
            ["of 2 nodes and 1 GPUs a node", "of priority 3", "4 for one of 2 nodes for 10m in"],
        ),
        (
            Need(Resources(), 60, 0, 9, (("a1", 8),), held=("budget", "no hours are left")),
            "budget", 1, ["1 wait, and nothing more is asked for: no hours are left."],
        ),
        (
            Need(Resources(), 60, 0, 1, held=("no-queue", "x"), paused=PAUSED), "paused", 1,
            ["1 waiting task of 1 core, 1m at the most. They wait: Queue debug is asked for",
             "an allocation came to nothing, the last: no nodes"],
        ),
        (
            Need(Resources(num_nodes=9), 60, 0, 1, held=("impossible", "num_nodes is 9")),
            "impossible", 1, ["can hold them: num_nodes is 9."],
        ),
    ],
)  # fmt: skip
def test_the_backlog(need: Need, code: str, left: int, words: list[str]) -> None:
    found = why_need(need, NOW)
    assert (found.code, need.left) == (code, left)
    for one in words:
        assert one in found.text
    assert found.text.startswith(describe(need))
