"""Steps whose worker dies, or whose message cannot be sent."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection

from balsam_celery.service import steps
from balsam_celery.service.cases import Batch
from balsam_celery.service.release import settle
from balsam_celery.service.requests import request_kill, retry
from balsam_celery.settings import RetrySettings
from balsam_celery.states import State
from balsam_celery.store.engine import Store
from balsam_celery.wire import StepStarted
from tests.service.acting import advance, attempts_of, step, tell
from tests.store.making import add, history, task

S = State


def lose(store: Store, attempt: int, *, began: bool) -> State:
    """The worker of an attempt dies; returns where its task is then."""
    if began:
        tell(store, StepStarted("s00001", attempt, store.clock(), "tasks@here"))

    def write(conn: Connection) -> None:
        batch = Batch(conn, store.clock(), "service", retry=RetrySettings(max_cuts=3))
        steps.lost(batch, "s00001", attempt, "its worker died")
        settle(batch)

    store.run(write)
    return task(store, "s00001").state


def test_a_step_that_takes_its_worker_along_is_given_up(store: Store) -> None:
    add(store, step("s00001"), step("c00001", parents=["s00001"]))
    advance(store)
    assert lose(store, 1, began=True) is S.DISPATCHED
    # one that waited in a queue is not to blame
    assert [lose(store, number, began=False) for number in (2, 3, 4)] == [S.DISPATCHED] * 3
    assert lose(store, 5, began=True) is S.DISPATCHED
    assert (task(store, "s00001").cuts, task(store, "s00001").failures) == (2, 0)
    assert lose(store, 6, began=True) is S.FAILED
    row = task(store, "s00001")
    assert row.reason == (
        "cut short 3 times before it was done, and [retry] max_cuts in site.toml is 3;"
        " the last time: its worker died"
    )
    assert row.result["reason"] == row.reason
    assert history(store, "s00001")[-3:] == [S.RUNNING, S.RUN_TIMEOUT, S.FAILED]
    assert [one.outcome for one in attempts_of(store, "s00001")] == ["lost"] * 6
    assert task(store, "c00001").state is S.FAILED
    retry(store, ["s00001"])
    assert (task(store, "s00001").state, task(store, "s00001").cuts) == (S.DISPATCHED, 0)


@pytest.mark.parametrize("began", [False, True])
def test_a_lost_step_that_is_to_be_killed(store: Store, began: bool) -> None:
    add(store, step("s00001"))
    advance(store)
    request_kill(store, ["s00001"], "enough")
    assert lose(store, 1, began=began) is S.USER_KILLED
    assert task(store, "s00001").reason == "enough"


@pytest.mark.parametrize("killed", [False, True])
def test_a_step_whose_message_cannot_be_sent(store: Store, killed: bool) -> None:
    add(store, step("s00001"))
    advance(store)
    if killed:
        request_kill(store, ["s00001"], "enough")

    def write(conn: Connection) -> None:
        batch = Batch(conn, store.clock(), "service")
        for attempt in (7, 1):
            steps.cannot_send(batch, "s00001", attempt, "its message cannot be sent")
        settle(batch)

    store.run(write)
    row = task(store, "s00001")
    if killed:
        assert (row.state, row.reason) == (S.USER_KILLED, "enough")
    else:
        assert (row.state, row.reason) == (S.FAILED, "its message cannot be sent")
    [one] = attempts_of(store, "s00001")
    assert (one.outcome, one.reason) == ("cannot-start", "its message cannot be sent")
