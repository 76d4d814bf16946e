"""Staging and hooks: what the service asks for, what the worker does, what follows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from balsam_celery.service import hookrun, hooks, transitions
from balsam_celery.service.cases import Batch
from balsam_celery.service.requests import request_kill
from balsam_celery.settings import RetrySettings
from balsam_celery.states import State
from balsam_celery.store.engine import Store
from balsam_celery.wire import KillAsked
from tests.service.acting import add_pilot, advance, ended, start, step, tell
from tests.service.hooking import Publisher, batch, done, doomed, hooked
from tests.store.conftest import Clock
from tests.store.making import NOW, add, history, program, task

S = State


def waits_for(store: Store) -> list[tuple[str, str]]:
    return [(one.row.id, one.step) for one in advance(store)]


def test_every_step_in_its_order(store: Store) -> None:
    add_pilot(store)
    steps = {"stage_in": ["x"], "preprocess": ["p"], "postprocess": ["q"], "stage_out": [{}]}
    add(store, hooked("t00001", hooks=steps))
    assert waits_for(store) == [("t00001", "stage_in")]
    # a step that is not its turn changes nothing
    tell(store, done("t00001", "preprocess"), done("t00001", "stage_in", attempt=7))
    assert task(store, "t00001").state is S.READY
    tell(store, done("t00001", "stage_in"), done("t00001", "stage_in"))
    assert waits_for(store) == [("t00001", "preprocess")]
    tell(store, done("t00001", "preprocess"))
    assert not waits_for(store)
    [sent] = start(store)
    assert sent.spec.staged == "/run/work/default/t00001.t00001/staged"
    tell(store, ended("t00001"))
    assert task(store, "t00001").state is S.RUN_DONE
    assert waits_for(store) == [("t00001", "postprocess")]
    tell(store, done("t00001", "postprocess", attempt=1))
    assert waits_for(store) == [("t00001", "stage_out")]
    tell(store, done("t00001", "stage_out", attempt=1))
    assert history(store, "t00001")[1:] == [
        S.READY, S.STAGED_IN, S.PREPROCESSED, S.DISPATCHED, S.RUNNING, S.RUN_DONE,
        S.POSTPROCESSED, S.JOB_FINISHED,
    ]  # fmt: skip
    assert task(store, "t00001").result["exit_code"] == 0


@pytest.mark.parametrize("step", ["stage_in", "preprocess", "postprocess", "stage_out"])
def test_a_step_that_fails_fails_the_task(store: Store, step: str) -> None:
    add_pilot(store)
    add(store, hooked("t00001", hooks={step: ["x"]}), program("c00001", parents=["t00001"]))
    advance(store)
    if step in ("postprocess", "stage_out"):
        start(store)
        tell(store, ended("t00001"))
    attempt = task(store, "t00001").attempt
    tell(store, done("t00001", step, ok=False, attempt=attempt, reason=f"{step}: no disk"))
    row = task(store, "t00001")
    assert (row.state, row.reason, row.result["reason"]) == (
        S.FAILED, f"{step}: no disk", f"{step}: no disk",
    )  # fmt: skip
    assert task(store, "c00001").state is S.FAILED


@pytest.mark.parametrize("step", ["stage_in", "preprocess", "postprocess", "stage_out", "handler"])
def test_a_step_for_which_there_was_no_room_is_tried_again(
    store: Store, clock: Clock, step: str
) -> None:
    """With the next message, which no worker takes for a copy of the last."""
    add_pilot(store)
    add(store, hooked("t00001", hooks={step: ["x"]}))
    advance(store)
    if step in ("postprocess", "stage_out", "handler"):
        start(store)
        tell(store, ended("t00001", code=int(step == "handler")))
    before = task(store, "t00001")
    outstanding = hooks.Outstanding()
    [one] = outstanding.unsent(advance(store, outstanding.copies), clock())
    outstanding.sent[one.key] = first = clock()
    reason = f"{step}: No space left on device: /run/x"
    over = done("t00001", step, ok=False, attempt=before.attempt, reason=reason)
    tell(store, dataclasses.replace(over, unfit=True))
    row = task(store, "t00001")
    assert (row.state, row.failures, row.cuts) == (before.state, before.failures, before.cuts)
    assert row.reason == (before.reason if step == "handler" else reason)
    assert not outstanding.unsent(advance(store, outstanding.copies), clock())
    clock.now += transitions.UNFIT_PAUSE
    [again] = outstanding.unsent(advance(store, outstanding.copies), clock())
    assert again.key == one.key
    assert (outstanding.copies[one.key] or 0.0) > first
    tell(store, done("t00001", step, attempt=before.attempt, verdict="finish"))
    row = task(store, "t00001")
    assert row.state in (S.STAGED_IN, S.PREPROCESSED, S.JOB_FINISHED)
    assert row.reason == ""


def test_a_kill_of_a_step_for_which_there_was_no_room_waits_for_nobody(store: Store) -> None:
    add(store, hooked("t00001", hooks={"preprocess": ["x"]}))
    outstanding = hooks.Outstanding()
    outstanding.unsent(advance(store, outstanding.copies), store.clock())
    tell(store, dataclasses.replace(done("t00001", "preprocess", ok=False), unfit=True))
    outstanding.unsent(advance(store, outstanding.copies), store.clock())
    request_kill(store, ["t00001"], "enough")
    rows = doomed(store)
    store.run(lambda conn: hooks.end_killed(batch(store, conn), rows, outstanding))
    assert task(store, "t00001").state is S.USER_KILLED


@pytest.mark.parametrize(
    ("verdict", "ok", "state"),
    [
        ("restart", True, S.RESTART_READY),
        ("finish", True, S.JOB_FINISHED),
        ("fail", True, S.FAILED),
        (None, False, S.FAILED),
    ],
)
def test_what_a_handler_says(store: Store, verdict: str | None, ok: bool, state: State) -> None:
    add_pilot(store)
    add(store, hooked("t00001", hooks={"handler": ["h"]}))
    start(store)
    tell(store, ended("t00001", code=4))
    assert waits_for(store) == [("t00001", "handler")]
    tell(store, done("t00001", "handler", attempt=1, ok=ok, verdict=verdict, reason="said so"))
    assert task(store, "t00001").state is state


def test_a_bad_command_fails_before_anything_is_staged(store: Store) -> None:
    add_pilot(store)
    add(store, program("p00001"))
    start(store)
    tell(store, ended("p00001"))
    bad = dataclasses.replace(
        program("t00001", parents=["p00001"]),
        command=["x", "{0[no]}"], literal=False, inputs="single", hooks={"stage_in": ["x"]},
    )  # fmt: skip
    good = dataclasses.replace(bad, id="t00002", command=["x", "{0[state]}"])
    add(store, bad, good)
    assert not waits_for(store)
    assert task(store, "t00001").state is S.FAILED
    assert task(store, "t00002").argv == ["x", "JOB_FINISHED"]
    assert waits_for(store) == [("t00002", "stage_in")]


def test_each_step_is_sent_once(store: Store) -> None:
    add(store, hooked("t00001", hooks={"stage_in": ["x"], "preprocess": ["p"]}))
    outstanding = hooks.Outstanding()
    [one] = outstanding.unsent(advance(store), 1.0)
    outstanding.sent[one.key] = 1.0
    assert not outstanding.unsent(advance(store), 2.0)
    tell(store, done("t00001", "stage_in"))
    assert [two.step for two in outstanding.unsent(advance(store), 3.0)] == ["preprocess"]
    assert not outstanding.sent


@pytest.mark.parametrize("step", ["preprocess", "handler"])
def test_a_hook_that_takes_its_worker_along_is_given_up(store: Store, step: str) -> None:
    add_pilot(store)
    add(store, hooked("t00001", hooks={step: ["x"]}))
    advance(store)
    if step == "handler":
        start(store)
        tell(store, ended("t00001", code=1))
    attempt = task(store, "t00001").attempt
    said = RetrySettings(max_cuts=3)

    def cut(step: str, begun: float = store.clock()) -> str:
        def write(conn: Connection) -> str:
            one = Batch(conn, store.clock(), "service", retry=said)
            one.load(["t00001"])
            return transitions.cut(one, "t00001", attempt, step, "its worker died", begun)

        return store.run(write)

    assert cut("stage_out") == "", "nobody waits for that"
    assert cut(step, NOW - 1) == "", "that was before it waited"
    assert task(store, "t00001").cuts == 0
    assert [cut(step), cut(step)] == ["", ""]
    reason = cut(step)
    assert reason.startswith("cut short 3 times before it was done, and [retry] max_cuts")
    assert task(store, "t00001").cuts == 3
    outstanding, publisher = hooks.Outstanding(), Publisher()
    typed: Any = publisher
    outstanding.lose(("t00001", attempt, step), NOW + 5, reason)
    for _ in range(2):
        unsent = outstanding.unsent(advance(store), NOW + 6)
        hooks.send(typed, unsent, Path("/run"), outstanding, NOW + 6)
    [sent] = publisher.taken
    told = hookrun.run(sent, {}, 10)
    tell(store, told)
    row = task(store, "t00001")
    assert (row.state, row.reason) == (S.FAILED, f"{step}: {reason}")


@pytest.mark.parametrize("step", ["stage_in", "preprocess", "postprocess", "handler"])
def test_a_kill_waits_for_the_end_of_a_step(store: Store, step: str) -> None:
    """Nobody but the transitions worker knows whether a program of it lives (R8)."""
    add_pilot(store)
    add(store, hooked("t00001", hooks={step: ["x"], "stage_out": [{}]}))
    advance(store)
    if step in ("postprocess", "handler"):
        start(store)
        tell(store, ended("t00001", code=int(step == "handler")))
    row = task(store, "t00001")
    outstanding = hooks.Outstanding(copies={(row.id, row.attempt, step): 1.0})
    answer = request_kill(store, ["t00001"], "enough")
    assert (answer.done, answer.requested) == ((), ("t00001",))
    [one] = store.run(lambda conn: hooks.end_killed(batch(store, conn), doomed(store), outstanding))
    assert (one.step, task(store, "t00001").state) == (step, row.state)
    assert hooks.order(one, Path("/run"), 5.0)["killed"]
    tell(store, done("t00001", step, attempt=row.attempt, verdict="restart"))
    row = task(store, "t00001")
    assert (row.state, row.reason, row.result["reason"]) == (S.USER_KILLED, "enough", "enough")


def test_a_kill_of_a_step_that_was_never_sent_waits_for_nobody(store: Store) -> None:
    add(store, hooked("t00001", hooks={"preprocess": ["x"]}), program("c00001", parents=["t00001"]))
    advance(store)
    request_kill(store, ["t00001"], "enough", descendants=False)
    assert task(store, "t00001").state is S.READY
    rows = doomed(store)
    end = hooks.end_killed
    assert not store.run(lambda conn: end(batch(store, conn), rows, hooks.Outstanding()))
    assert task(store, "t00001").state is S.USER_KILLED
    assert task(store, "c00001").state is S.FAILED
    # again is harmless, also with what was read before
    assert not store.run(lambda conn: end(batch(store, conn), rows, hooks.Outstanding()))
    assert not waits_for(store)


@pytest.mark.parametrize("step", ["stage_in", "preprocess", "handler"])
def test_a_kill_that_comes_with_the_end_of_a_step(store: Store, step: str) -> None:
    """In one batch: nothing runs, and the task must not wait for a pilot to be killed."""
    add_pilot(store)
    add(store, hooked("t00001", hooks={step: ["x"]}))
    advance(store)
    if step == "handler":
        start(store)
        tell(store, ended("t00001", code=1))
    over = done("t00001", step, attempt=task(store, "t00001").attempt, verdict="restart")
    tell(store, over, KillAsked(("t00001",), terminate=True, who="flower"))
    assert task(store, "t00001").state is S.USER_KILLED


def test_an_order_to_end_a_step_is_not_for_one_that_was_sent_later() -> None:
    """A task that was killed and is retried has the same steps again."""
    killed = hookrun.Killed()
    killed.add(["t00001.0.preprocess"], 10.0)
    assert killed.has("t00001.0.preprocess", 9.0)
    assert not killed.has("t00001.0.preprocess", 11.0)
    assert not killed.has("t00002.0.preprocess", 9.0)


def test_steps_do_not_wait_behind_what_waits_for_the_transitions_worker(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "WINDOW", 2)
    add(store, *(hooked(f"s{n:05}", hooks={"preprocess": ["x"]}) for n in range(3)))
    add(store, step("step00"))
    advance(store)
    assert task(store, "step00").state is S.DISPATCHED
