"""Whatever the facts are, why a task is where it is can be said: a property."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from balsam_celery.packing import Request
from balsam_celery.placement import Reservation
from balsam_celery.service.backoff import Pause
from balsam_celery.service.explained import plain_task
from balsam_celery.service.why import why
from balsam_celery.service.why_facts import Job, SiteFacts, Standing
from balsam_celery.states import State
from balsam_celery.store.rows import AllocationState, PilotState
from balsam_celery.store.standing import Ahead
from tests.service.rows import NOW, allocation_row, attempt_row, pilot_row, task_row
from tests.service.test_why import PARENTS, SHARES, facts

A = AllocationState
SHORT = st.text("xyz .!", max_size=8)
TIMES = st.none() | st.floats(NOW - 1e5, NOW + 1e5)
ROWS = {
    "kind": st.sampled_from(["program", "celery"]),
    "attempt": st.integers(0, 3),
    "failures": st.integers(0, 3),
    "max_retries": st.integers(0, 2),
    "retry_on": st.none() | st.lists(st.sampled_from(["error", "signal"])),
    "kill_requested": TIMES,
    "kill_reason": SHORT,
    "not_before": st.just(0.0) | st.floats(NOW - 10, NOW + 10),
    "pilot": st.none() | st.just("p1"),
    "shares": st.none() | st.just(SHARES),
    "hooks": st.dictionaries(
        st.sampled_from(["stage_in", "preprocess", "postprocess", "stage_out", "handler"]),
        st.just(["x"]),
    ),
    "reason": SHORT,
    "finished": TIMES,
    "waiting_on": st.integers(0, 9),
}
OUTCOMES = ["exit", "signal", "timeout", "killed", "fenced", "cannot-start", "lost", "SUCCESS"]
ATTEMPTS = st.builds(
    attempt_row,
    outcome=st.none() | st.sampled_from(OUTCOMES),
    exit_code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 64),
    started=TIMES,
    ended=TIMES,
    reason=SHORT,
    stderr_tail=st.none() | SHORT,
)
PILOTS = st.builds(
    pilot_row,
    st.sampled_from(PilotState),
    allocation=st.sampled_from(["a1", "other"]),
    heartbeat=st.floats(NOW - 1e3, NOW),
    end_time=st.floats(NOW - 1e3, NOW + 1e3),
)
ALLOCATIONS = st.builds(
    allocation_row,
    st.sampled_from([A.REQUESTED, A.QUEUED, A.RUNNING]),
    native_id=st.none() | st.sampled_from(["", "17"]),
    submitted=TIMES,
    started=TIMES,
    cancel_requested=TIMES,
    reason=SHORT,
)
STANDINGS = st.builds(
    Standing,
    hopeless=SHORT,
    ahead=st.builds(Ahead, *[st.integers(0, 9)] * 4),
    starts=st.sampled_from(["", "", "p1"]),
    reservation=st.none() | st.just(Reservation("x", "p1", ("n0",), NOW + 1)),
    fits=st.lists(PILOTS, max_size=2).map(tuple),
    planned=st.none() | ALLOCATIONS,
    pilot=st.none() | PILOTS,
    job=st.builds(Job, TIMES, SHORT),
    request=st.none() | st.just(Request("debug", 1, 60, "")),
    held=st.none() | st.just(("budget", "no node-hours are left")),
    paused=st.dictionaries(st.just("debug"), st.builds(Pause, st.just(NOW), st.just(1), SHORT)),
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    state=st.sampled_from(State),
    row=st.fixed_dictionaries(ROWS),
    attempt=st.none() | ATTEMPTS,
    parents=st.lists(st.sampled_from(PARENTS), max_size=2).map(tuple),
    pilot=st.none() | PILOTS,
    allocation=st.none() | ALLOCATIONS,
    standing=STANDINGS,
    site=st.builds(SiteFacts, st.booleans(), st.booleans(), SHORT),
)
def test_every_state_gives_a_sentence_whatever_the_facts(
    state: State, row: dict[str, Any], **values: Any
) -> None:
    found = why(facts(state, row=row, **values))
    assert found.code.replace("-", "").isalpha()
    assert found.text[0].isupper()
    assert found.text.rstrip()[-1] in ".!?"
    assert "None" not in found.text
    plain = plain_task(task_row(state, **row), found)
    assert plain["code"] == found.code
