"""Why a task is where it is, as a pure function of facts."""

from __future__ import annotations

from typing import Any

import pytest

from balsam_celery.packing import Request
from balsam_celery.placement import Reservation
from balsam_celery.service.backoff import Pause
from balsam_celery.service.phrases import last_line, listed, moment
from balsam_celery.service.poll import NOT_KNOWN
from balsam_celery.service.why import BY_STATE, why
from balsam_celery.service.why_facts import Job, SiteFacts, Standing, TaskFacts
from balsam_celery.states import State
from balsam_celery.store.rows import AllocationState, PilotState
from balsam_celery.store.standing import Ahead
from tests.service.rows import NOW, allocation_row, attempt_row, pilot_row, task_row

S, A = State, AllocationState
SHARES = [{"node": "n0", "cores": [0], "gpus": []}, {"node": "n1", "cores": [0], "gpus": []}]
QUEUED = allocation_row(A.QUEUED, reason="Priority")
AHEAD = Ahead(higher=12, wider=1, larger=2, older=4, of_shape=5)
PAUSE = Pause(NOW + 120, 3, "Invalid account")


def facts(state: State, *, row: dict[str, Any] | None = None, **values: Any) -> TaskFacts:
    """Facts of a task in ``state``."""
    return TaskFacts(task_row(state, **row or {}), NOW, 5, **values)


def waits(**standing: Any) -> TaskFacts:
    """Facts of a program that waits for slots."""
    return facts(S.PREPROCESSED, standing=Standing(**standing))


PARENTS = (
    task_row(S.RUNNING, id="parent-1", name="grid"),
    task_row(S.PREPROCESSED, id="parent-2", name="mesh"),
)
ON_PILOT = {"pilot": "p1", "shares": SHARES, "attempt": 1, "num_nodes": 2}
LIVE = {"pilot": pilot_row(), "allocation": allocation_row(A.RUNNING)}
FAILED = {"attempt": 3, "failures": 3, "max_retries": 2, "reason": "exit code 3"}
BAD = attempt_row(exit_code=3, stderr_tail="start\nTraceback\nValueError: no grid\n\n")

#: Facts → code, and words that the sentence holds.
TABLE: dict[str, tuple[TaskFacts, str, list[str]]] = {
    "parent": (
        facts(S.AWAITING_PARENTS, row={"waiting_on": 1}, parents=PARENTS[:1]),
        "parents", ["It waits for its parent grid (parent-1), which is RUNNING."],
    ),
    "parents": (
        facts(S.AWAITING_PARENTS, row={"waiting_on": 7}, parents=PARENTS),
        "parents", ["for 7 parents: grid (parent-1), which is RUNNING", "and 5 more."],
    ),
    "not before": (
        facts(S.PREPROCESSED, row={"not_before": NOW + 90}), "not-before", ["before", "(in 1m30s)"],
    ),
    "a step's countdown": (
        facts(S.READY, row={"kind": "celery", "not_before": NOW + 90}), "not-before", ["in 1m30s"],
    ),
    "stage-in": (
        facts(S.READY, row={"hooks": {"stage_in": ["a"]}}),
        "hook-stage-in", ["transitions worker", "staged in"],
    ),
    "preprocess": (
        facts(S.STAGED_IN, row={"hooks": {"preprocess": ["a"]}}),
        "hook-preprocess", ["its preprocess hook"],
    ),
    "postprocess": (
        facts(S.RUN_DONE, row={"hooks": {"postprocess": ["a"], "stage_out": ["b"]}}),
        "hook-postprocess", ["has ended well", "its postprocess hook"],
    ),
    "stage-out": (
        facts(S.POSTPROCESSED, row={"hooks": {"postprocess": ["a"], "stage_out": ["b"]}}),
        "hook-stage-out", ["staged out"],
    ),
    "the service's turn": (facts(S.RUN_TIMEOUT), "service", ["next look"]),
    "a step's turn": (facts(S.RESTART_READY, row={"kind": "celery"}), "service", ["Celery task"]),
    "new": (facts(S.CREATED), "new", ["looks at it next"]),
    "parents done": (facts(S.AWAITING_PARENTS), "parents-done", ["All its parents"]),
    "handler": (
        facts(S.RUN_ERROR, row={"hooks": {"handler": ["a"]}}), "hook-handler", ["its handler"],
    ),
    "impossible": (
        waits(hopeless="num_nodes is 9: no queue gives more than 4; ask for fewer"),
        "impossible", ["num_nodes is 9", "FAILED"],
    ),
    "starting": (waits(starts="p1"), "starting", ["fits into pilot p1"]),
    "reserved": (
        waits(reservation=Reservation("abcdef-1", "p1", ("n0", "n1"), NOW + 60),
              fits=(pilot_row(),)),
        "reserved", ["nodes n0 and n1 of pilot p1, kept for it: it starts by", "(in 1m)"],
    ),
    "behind": (
        waits(fits=(pilot_row(),), ahead=AHEAD),
        "behind",
        ["slots in pilot p1 (allocation a1, until", "behind 12 tasks of higher priority,"
         " 1 task over more nodes, 2 tasks with more of each node and 4 older tasks."],
    ),
    "behind nothing that waits": (
        waits(fits=(pilot_row(),)), "behind", ["behind what runs there."],
    ),
    "queued": (
        waits(planned=QUEUED, job=Job(NOW + 300), ahead=AHEAD),
        "queued",
        ["planned for allocation a1 (2 nodes for 1h in queue debug)", "(Priority)", "(in 5m)",
         "It stands behind 12 tasks"],
    ),
    "queued, and fits elsewhere": (
        waits(planned=QUEUED, fits=(pilot_row(allocation="other"),)), "queued", ["allocation a1"],
    ),
    "not told when": (
        waits(planned=QUEUED), "queued", ["the scheduler does not say when it starts"],
    ),
    "scheduler away": (
        waits(planned=QUEUED, job=Job(trouble="squeue: no answer in 30 s")),
        "queued", ["when it starts is not known: squeue: no answer in 30 s"],
    ),
    "late": (waits(planned=QUEUED, job=Job(NOW - 5)), "queued", ["any moment"]),
    "queued behind its own": (
        waits(planned=QUEUED, job=Job(full=2)),
        "queued", ["(Priority); max_running of queue debug is 2, and as many run; the scheduler"],
    ),
    "asked for behind its own": (
        waits(request=Request("debug", 2, 600, "because"), job=Job(full=2)),
        "to-request", ["plans next; it has to wait, since max_running of queue debug is 2, and as"],
    ),
    "starts up": (
        waits(planned=allocation_row(A.RUNNING, started=NOW - 10)),
        "starting-up", ["runs since", "(10s ago)", "its pilot has not registered yet"],
    ),
    "no room in the pilot": (
        waits(planned=allocation_row(A.RUNNING), pilot=pilot_row()),
        "no-room", ["allocation a1", "its pilot p1 has no room that lasts long enough"],
    ),
    "not submitted": (
        waits(planned=allocation_row(A.REQUESTED, native_id=None)), "requested", ["is asked for"],
    ),
    "not taken": (
        waits(planned=allocation_row(
            A.REQUESTED, native_id=None, submitted=NOW - 9, reason="not submitted yet: no sbatch")),
        "not-submitted", ["not submitted yet: no sbatch"],
    ),
    "in doubt": (
        waits(planned=allocation_row(A.REQUESTED, native_id="", submitted=NOW - 9)),
        "in-doubt", ["may be submitted"],
    ),
    "never starts": (
        waits(planned=allocation_row(A.QUEUED, reason="can never start: PartitionNodeLimit")),
        "never-starts", ["which can never start: PartitionNodeLimit"],
    ),
    "not told": (
        waits(planned=allocation_row(A.QUEUED, reason=f"{NOT_KNOWN}noon: squeue: down")),
        "not-known", ["its state is not known since noon"],
    ),
    "given up": (
        waits(planned=allocation_row(A.QUEUED, cancel_requested=NOW, reason="by the user")),
        "cancelling", ["which is to end (by the user)"],
    ),
    "asked for next": (
        waits(request=Request("debug", 2, 600, "because"), ahead=AHEAD),
        "to-request", ["2 nodes for 10m in queue debug is asked for", "It stands behind 12"],
    ),
    "paused": (
        waits(paused={"debug": PAUSE}),
        "paused", ["Queue debug is asked for nothing until", "3 allocations in a row", "account"],
    ),
    "held": (
        waits(held=("max-allocations", "packing.max_allocations (10) are queued or running")),
        "max-allocations", ["none may be asked for now", "max_allocations (10)"],
    ),
    "a full queue": (waits(held=("max-queued", "two wait")), "max-queued", ["two wait."]),
    "no budget": (waits(held=("budget", "0.0 node-hours left")), "budget", ["node-hours left."]),
    "machine full": (
        waits(held=("machine-full", "the nodes of this machine (2) are in allocations")),
        "machine-full", ["none may be asked for now: the nodes of this machine (2)"],
    ),
    "no queue": (waits(held=("no-queue", "no queue can hold it")), "no-queue", ["no queue"]),
    "new to the service": (waits(), "slots", ["plans for it next"]),
    "to be tried again": (
        facts(S.RESTART_READY,
              row={"attempt": 1, "failures": 1, "max_retries": 3},
              attempt=attempt_row(exit_code=3)),
        "slots", ["It was tried once before (exit code 3); 2 retries left."],
    ),
    "waits before it is tried again": (
        facts(S.RESTART_READY,
              row={"attempt": 1, "failures": 1, "max_retries": 3, "not_before": NOW + 20},
              attempt=attempt_row(exit_code=3)),
        "retry-delay",
        ["It waits before it is tried again, until", "(in 20s)", "(exit code 3); 2 retries left."],
    ),
    "never to be retried": (
        facts(S.FAILED, row=FAILED | {"failures": 1, "attempt": 1}, retry_on=("!exit:3",),
              attempt=BAD),
        "exit-code", ["[retry] retry_on (!exit:3) names '!exit:3'"],
    ),
    "cut too often": (
        facts(S.FAILED, row=FAILED | {"failures": 0, "reason": "cut short 10 times"},
              attempt=attempt_row(outcome="drained", exit_code=None)),
        "cut-short", ["cut short 10 times."],
    ),
    "taken back": (
        facts(S.RESTART_READY, row={"attempt": 2},
              attempt=attempt_row(outcome="fenced", exit_code=None, reason="its allocation ended")),
        "slots", ["tried twice before (its allocation ended); nothing counts as a failure so far."],
    ),
    "sent": (
        facts(S.DISPATCHED, row=ON_PILOT, **LIVE), "sent", ["nodes n0 and n1 of pilot p1"],
    ),
    "sent ahead": (
        facts(S.DISPATCHED, row=ON_PILOT | {"shares": [{"node": "n0", "queued": True}]}, **LIVE),
        "sent-ahead", ["node n0 of pilot p1 ahead of time", "cores are free"],
    ),
    "a step that was sent": (
        facts(S.DISPATCHED, row={"kind": "celery", "attempt": 1}), "sent", ["tasks worker"],
    ),
    "running": (
        facts(S.RUNNING, row=ON_PILOT, **LIVE),
        "running",
        ["nodes n0 and n1 of pilot p1 (allocation a1) since", "(1m ago)",
         "(in 9m5s) at the latest"],
    ),
    "running until the pilot's end": (
        facts(S.RUNNING, row=ON_PILOT, pilot=pilot_row(end_time=NOW + 30)), "running", ["(in 30s)"],
    ),
    "second attempt": (
        facts(S.RUNNING, row=ON_PILOT | {"attempt": 2, "failures": 1, "max_retries": 2}, **LIVE),
        "running", ["This is attempt 2; 1 retry left."],
    ),
    "silent pilot": (
        facts(S.RUNNING, row=ON_PILOT, pilot=pilot_row(heartbeat=NOW - 300)),
        "pilot-silent", ["heard of last at", "(5m ago)", "scheduler", "balsam allocations cancel"],
    ),
    "lost node": (
        facts(S.RUNNING, row=ON_PILOT, pilot=pilot_row(nodes=[{"name": "n1", "lost": True}])),
        "node-lost", ["node n1 is gone"],
    ),
    "pilot ended": (
        facts(S.RUNNING, row=ON_PILOT, pilot=pilot_row(PilotState.ENDED, reason="walltime")),
        "pilot-ended", ["has ended: walltime", "takes the task back"],
    ),
    "kill asked": (
        facts(S.RUNNING, row=ON_PILOT | {"kill_requested": NOW - 9, "kill_reason": "wrong input"},
              **LIVE),
        "kill-asked", ["(9s ago) (wrong input)", "once pilot p1 has told"],
    ),
    "kill of a step": (
        facts(S.RUNNING, row={"kind": "celery", "kill_requested": NOW - 9}),
        "kill-asked", ["the tasks worker has told"],
    ),
    "finished": (
        facts(S.JOB_FINISHED, row={"attempt": 2, "finished": NOW - 60}, attempt=attempt_row()),
        "finished", ["(1m ago) after 40s, at attempt 2."],
    ),
    "failed": (
        facts(S.FAILED, row=FAILED, attempt=BAD),
        "exit-code",
        ["It failed: exit code 3.", "error output ended with: 'ValueError: no grid'",
         "tried 3 times, its 2 retries used up", "balsam retry abcdef-1"],
    ),
    "failed without retries": (
        facts(S.FAILED, row=FAILED | {"attempt": 1, "failures": 1, "max_retries": 0},
              attempt=attempt_row(outcome="signal", signal=11, exit_code=None, stdout_tail="ok")),
        "signal", ["Its output ended with: 'ok'.", "tried once, without retries"],
    ),
    "over its limit": (
        facts(S.FAILED, row=FAILED, attempt=attempt_row(outcome="timeout", exit_code=None)),
        "wall-time", [],
    ),
    "not started": (
        facts(S.FAILED, row=FAILED, attempt=attempt_row(outcome="cannot-start", exit_code=None)),
        "cannot-start", [],
    ),
    "failed at its end": (
        facts(S.FAILED, row=FAILED | {"reason": "stage_out: no space"}, attempt=attempt_row()),
        "failed", ["stage_out: no space"],
    ),
    "never ran": (
        facts(S.FAILED, row={"reason": "no value for {grid}"}), "never-ran", ["{grid}"],
    ),
    "not retried": (
        facts(S.FAILED, row=FAILED | {"failures": 1, "attempt": 1, "retry_on": ["signal"]},
              attempt=BAD),
        "exit-code", ["its retry_on (signal) does not name 'exit:3'"],
    ),
    "failed with its parent": (
        facts(S.FAILED, row={"reason": "parent grid (parent-1) FAILED"},
              parents=(task_row(S.FAILED, id="parent-1", name="grid"),)),
        "parent-failed", ["never ran: parent grid (parent-1) FAILED.", "balsam retry parent-1"],
    ),
    "failed as impossible": (
        facts(S.FAILED, row={"reason": "no allocation can hold it: num_nodes is 9"}),
        "impossible", ["num_nodes is 9"],
    ),
    "killed": (
        facts(S.USER_KILLED, row={"reason": "killed by the user", "finished": NOW - 60}),
        "killed", ["(1m ago): killed by the user."],
    ),
    "no service": (
        facts(S.PREPROCESSED, site=SiteFacts(service=False)),
        "service-down", ["The service is not up", "'balsam up'", "waits for slots"],
    ),
    "no Redis": (
        facts(S.PREPROCESSED, site=SiteFacts(redis="Connection refused")),
        "redis-down", ["Redis does not answer", "Connection refused."],
    ),
    "no beat": (
        facts(S.PREPROCESSED, site=SiteFacts(beat=False)), "beat-down", ["Beat is not up"],
    ),
    "running without beat": (
        facts(S.RUNNING, row=ON_PILOT, site=SiteFacts(beat=False), **LIVE), "running", [],
    ),
    "running without a service": (
        facts(S.RUNNING, row=ON_PILOT, site=SiteFacts(service=False), **LIVE),
        "running", ["It runs on", "The service is not up"],
    ),
    "finished without a service": (
        facts(S.JOB_FINISHED, site=SiteFacts(service=False)), "finished", ["It finished at"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_each_situation_is_told(name: str) -> None:
    given_facts, code, words = TABLE[name]
    found = why(given_facts)
    assert found.code == code
    for one in words:
        assert one in found.text
    if "service" not in name:
        assert "service is not up" not in found.text


def test_every_state_has_its_function() -> None:
    assert BY_STATE.keys() == set(State)


def test_what_programs_read() -> None:
    found = why(waits(planned=QUEUED, job=Job(NOW + 300), ahead=AHEAD))
    assert (found.allocation, found.expected_start, found.ahead) == ("a1", NOW + 300, AHEAD)
    found = why(waits(reservation=Reservation("x", "p1", ("n0",), NOW + 60), fits=(pilot_row(),)))
    assert (found.pilot, found.allocation, found.nodes) == ("p1", "a1", ("n0",))
    found = why(facts(S.RUNNING, row=ON_PILOT, **LIVE))
    assert found.latest_end == NOW - 60 + 600 + 5
    assert (found.pilot, found.allocation, found.nodes) == ("p1", "a1", ("n0", "n1"))


def test_parts_of_sentences() -> None:
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed(list("abcdef")) == "a, b, c, d and 2 more"
    assert last_line(None) == last_line(" \n ") == ""
    assert len(last_line("x" * 1000)) == 201
    assert moment(NOW, NOW).endswith("(0s ago)")
