"""Polling: the scheduler's word and nothing else makes an allocation ENDED (R4)."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from pathlib import Path

import redis

from balsam_celery.errors import SchedulerError, SchedulerUnavailable
from balsam_celery.schedulers.base import Job, JobState, Scheduler
from balsam_celery.service import poll as module
from balsam_celery.service.patience import Patient
from balsam_celery.service.poll import Poller
from balsam_celery.service.submit import job_name, submit
from balsam_celery.service.verdict import ERROR_FILE, GONE_AFTER, OVERDUE_AFTER
from balsam_celery.site import Site
from balsam_celery.store import allocations
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationState, PilotState
from tests.service.allocations.faulty import Faulty, Told
from tests.service.allocations.making import (
    allocation,
    dispatched,
    pilot_in,
    requested,
    running_pilot,
    set_allocation,
)
from tests.store.conftest import Clock
from tests.waiting import wait_until


def ask_to_cancel(store: Store, id: str) -> None:
    states = (AllocationState.QUEUED, AllocationState.RUNNING)
    assert store.run(
        lambda conn: allocations.update_allocation(
            conn, id, states, cancel_requested=store.clock(), reason="enough"
        )
    )


def test_from_queued_to_ended(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    id = requested(store, site)
    submit(store, scheduler, site, client)
    poller = Poller(store, scheduler, site, timer=clock)

    def polled_to(state: AllocationState) -> bool:
        clock.now += module.CANCEL_AGAIN
        poller.poll()
        return allocation(store, id).state is state

    wait_until(lambda: polled_to(AllocationState.RUNNING), 20, "it runs")
    pilot_in(store, id)
    assert poller.poll() == []
    ask_to_cancel(store, id)
    wait_until(lambda: polled_to(AllocationState.ENDED), 30, "it has ended")
    row = allocation(store, id)
    assert row.reason == "enough"
    assert row.started is not None
    assert row.ended is not None
    # to be reaped until that is done
    assert poller.poll() == [id]
    assert poller.poll() == [id]
    store.run(
        lambda conn: allocations.update_pilot(
            conn, "p1", (PilotState.LIVE,), state=PilotState.ENDED
        )
    )
    assert poller.poll() == []


def test_a_task_on_an_ended_pilot_calls_for_another_reaping(store: Store, site: Site) -> None:
    id = running_pilot(store, site)
    dispatched(store, "task01", "p1")
    store.run(
        lambda conn: allocations.update_pilot(
            conn, "p1", (PilotState.LIVE,), state=PilotState.ENDED
        )
    )
    set_allocation(store, id, AllocationState.ENDED)
    with store.read() as conn:
        assert module.to_reap(conn) == [id]


def test_not_known_is_never_ended(
    store: Store, site: Site, scheduler: Scheduler, clock: Clock
) -> None:
    id = running_pilot(store, site)
    faulty = Faulty(scheduler)
    faulty.is_away = True
    poller = Poller(store, faulty, site, timer=clock)
    for _ in range(5):
        clock.now += 1000
        assert poller.poll() == []
    assert allocation(store, id).state is AllocationState.RUNNING


def test_a_job_that_the_scheduler_forgot_is_gone_after_a_while(
    store: Store, site: Site, scheduler: Scheduler, clock: Clock
) -> None:
    id = running_pilot(store, site)
    told = Told(scheduler)
    poller = Poller(store, told, site, timer=clock)
    assert poller.poll() == []
    clock.now += GONE_AFTER - 1
    assert poller.poll() == []
    # it is there again: an answer was incomplete
    told.answer = {"x": Job("x", "", JobState.RUNNING, started=clock.now)}
    assert poller.poll() == []
    told.answer = {}
    clock.now += 2
    assert poller.poll() == []
    clock.now += GONE_AFTER
    assert poller.poll() == [id]
    assert "does not know" in allocation(store, id).reason


def test_a_wall_time_that_has_passed_makes_the_service_cancel_and_wait(
    store: Store, site: Site, scheduler: Scheduler, clock: Clock
) -> None:
    id = running_pilot(store, site)
    told = Told(scheduler)
    told.answer = {"x": Job("x", "", JobState.RUNNING, started=clock.now)}
    cancelled = []

    def cancel(native_id: str) -> None:
        cancelled.append((native_id, clock.now))
        raise SchedulerUnavailable("the controller does not answer")

    told.cancel = cancel  # type: ignore[method-assign]
    poller = Poller(store, told, site, timer=clock)
    poller.poll()
    clock.now += 300 + OVERDUE_AFTER
    poller.poll()
    assert not cancelled
    clock.now += 1
    first = clock.now
    poller.poll()
    assert allocation(store, id).state is AllocationState.RUNNING
    poller.poll()
    clock.now += module.CANCEL_AGAIN
    poller.poll()
    assert cancelled == [("x", first), ("x", first + module.CANCEL_AGAIN)]
    told.answer = {"x": Job("x", "name", JobState.ENDED, ended=clock.now, reason="TIMEOUT")}
    assert poller.poll() == [id]
    assert allocation(store, id).reason == "its wall time is over"


def test_a_job_may_end_before_it_was_seen_running(
    store: Store, site: Site, scheduler: Scheduler, clock: Clock
) -> None:
    id = requested(store, site)
    set_allocation(store, id, AllocationState.QUEUED, native_id="x")
    told = Told(scheduler)
    told.answer = {"x": Job("x", "n", JobState.ENDED, started=5.0, ended=7.0, reason="exit 1")}
    assert Poller(store, told, site, timer=clock).poll() == []  # no pilot: nothing to reap
    row = allocation(store, id)
    assert (row.state, row.started, row.ended, row.reason) == (
        AllocationState.ENDED, 5.0, 7.0, "exit 1",
    )  # fmt: skip


def queued(store: Store, site: Site, native_id: str = "x") -> str:
    id = requested(store, site)
    set_allocation(store, id, AllocationState.QUEUED, native_id=native_id)
    return id


def test_why_a_job_waits_is_told(store: Store, site: Site, scheduler: Scheduler) -> None:
    id = queued(store, site)
    told = Told(scheduler)
    poller = Poller(store, told, site)
    told.answer = {"x": Job("x", "", JobState.QUEUED, reason="held by the user")}
    poller.poll()
    assert allocation(store, id).reason == "held by the user"
    told.answer = {"x": Job("x", "", JobState.RUNNING, started=store.clock())}
    poller.poll()
    assert allocation(store, id).reason == ""
    assert poller.running == {id: told.answer["x"]}


def test_a_scheduler_that_does_not_answer_is_told(
    store: Store, site: Site, scheduler: Scheduler, clock: Clock
) -> None:
    ids = [queued(store, site), running_pilot(store, site, "p1")]
    told = Told(scheduler)
    told.is_away = True
    poller = Poller(store, told, site, timer=clock)
    poller.poll()
    reasons = [allocation(store, id).reason for id in ids]
    for reason in reasons:
        assert reason.startswith(module.NOT_KNOWN)
        assert "the controller does not answer" in reason
    clock.now += 100
    poller.poll()
    assert [allocation(store, id).reason for id in ids] == reasons, "since when, not until when"
    told.is_away = False
    told.answer = {"x": Job("x", "", JobState.RUNNING, started=clock.now)}
    poller.poll()
    assert [allocation(store, id).reason for id in ids] == ["", ""]


def test_what_is_missing_must_be_missing_from_answers(
    store: Store, site: Site, scheduler: Scheduler, clock: Clock
) -> None:
    id = running_pilot(store, site)
    told = Told(scheduler)
    told.answer = {}
    poller = Poller(store, told, site, timer=clock)
    poller.poll()
    told.is_away = True
    clock.now += GONE_AFTER
    poller.poll()
    told.is_away = False
    assert poller.poll() == [], "the first answer after a silence"
    clock.now += GONE_AFTER
    assert poller.poll() == [id]


def test_a_job_that_can_never_run_is_cancelled_and_fails(
    store: Store, site: Site, scheduler: Scheduler, clock: Clock
) -> None:
    id = queued(store, site)
    told = Told(scheduler)
    poller = Poller(store, told, site, timer=clock)
    reason = "PartitionNodeLimit"
    told.answer = {"x": Job("x", "", JobState.QUEUED, reason=reason, impossible=True)}
    poller.poll()
    row = allocation(store, id)
    assert (row.state, row.reason) == (AllocationState.QUEUED, f"can never start: {reason}")
    assert told.cancelled == ("x",)
    poller = Poller(store, told, site, timer=clock)  # another life of the service
    told.answer = {"x": Job("x", "", JobState.ENDED, ended=clock.now, reason="cancelled")}
    poller.poll()
    row = allocation(store, id)
    assert (row.state, row.reason) == (AllocationState.FAILED, f"can never start: {reason}")


def test_what_a_pilot_could_not_do_is_the_reason(
    store: Store, site: Site, scheduler: Scheduler, clock: Clock
) -> None:
    silent, served = queued(store, site), running_pilot(store, site)
    for id in (silent, served):
        directory = Path(allocation(store, id).run_dir)
        directory.mkdir(parents=True)
        (directory / ERROR_FILE).write_bytes(b"\n the launcher is \xff missing \nmore\n" * 200)
    told = Told(scheduler)
    told.answer = {"x": Job("x", "", JobState.ENDED, ended=clock.now, reason="exit status 1")}
    Poller(store, told, site, timer=clock).poll()
    reason = allocation(store, silent).reason
    assert reason == "its pilot did not start: the launcher is \N{REPLACEMENT CHARACTER} missing"
    assert allocation(store, served).reason == "exit status 1"


def test_what_a_pilot_left_on_a_file_system_that_hangs_delays_nothing_else(
    store: Store, site: Site, scheduler: Scheduler, clock: Clock
) -> None:
    """A pipe that nobody writes to hangs as it does; one that comes back tells all."""
    hanging, other = queued(store, site, "h"), running_pilot(store, site)
    pipe = Path(allocation(store, hanging).run_dir) / ERROR_FILE
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    told = Told(scheduler)
    told.answer = {
        id: Job(id, "", JobState.ENDED, ended=clock.now, reason="exit status 1") for id in "hx"
    }
    poller = Poller(store, told, site, patient=Patient(wait=0.05, patience=60), timer=clock)
    body = threading.Thread(target=poller.poll, daemon=True)
    body.start()
    body.join(30)
    assert not body.is_alive()
    assert allocation(store, other).state is AllocationState.ENDED
    row = allocation(store, hanging)
    assert row.state is AllocationState.QUEUED
    assert row.reason.startswith("its job has ended, and its pilot never came: the file system")
    assert str(pipe.parent) in row.reason
    assert told.cancelled == ()
    pipe.write_bytes(b"no launcher\n")

    def over() -> bool:
        poller.poll()
        return allocation(store, hanging).state is AllocationState.ENDED

    wait_until(over, 20, "it answers")
    assert allocation(store, hanging).reason == "its pilot did not start: no launcher"


def test_what_a_pilot_left_is_not_waited_for_for_ever(
    store: Store, site: Site, scheduler: Scheduler, clock: Clock
) -> None:
    id = queued(store, site, "h")
    pipe = Path(allocation(store, id).run_dir) / ERROR_FILE
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    told = Told(scheduler)
    told.answer = {"h": Job("h", "", JobState.ENDED, ended=clock.now, reason="exit status 1")}
    Poller(store, told, site, patient=Patient(wait=0.05, patience=0.0), timer=clock).poll()
    assert allocation(store, id).reason == "exit status 1"
    pipe.write_bytes(b"")  # lets the thread go


def test_of_two_jobs_of_one_name_the_one_that_runs_counts(
    store: Store, site: Site, scheduler: Scheduler, clock: Clock
) -> None:
    id = queued(store, site, "late")
    name = job_name(site, id)
    told = Told(scheduler)
    running = Job("first", name, JobState.RUNNING, started=clock.now)
    told.answer = {"late": Job("late", name, JobState.QUEUED), "first": running}
    poller = Poller(store, told, site, timer=clock)
    poller.poll()
    row = allocation(store, id)
    assert (row.state, row.native_id) == (AllocationState.RUNNING, "first")
    assert told.cancelled == ("late",)
    # both ran, and the pilot of the one that counted found the allocation claimed
    told.answer = {
        "first": Job("first", name, JobState.ENDED, ended=clock.now),
        "late": Job("late", name, JobState.RUNNING, started=clock.now),
    }
    poller.poll()
    row = allocation(store, id)
    assert (row.state, row.native_id) == (AllocationState.RUNNING, "late")


def test_a_job_of_an_allocation_that_is_over_is_cancelled(
    store: Store, site: Site, scheduler: Scheduler, clock: Clock
) -> None:
    over, live, asked = queued(store, site, "o"), queued(store, site, "x"), requested(store, site)
    set_allocation(store, over, AllocationState.ENDED)
    told = Told(scheduler)
    told.answer = {
        "x": Job("x", job_name(site, live), JobState.QUEUED),
        "late": Job("late", job_name(site, over), JobState.QUEUED),
        "new": Job("new", job_name(site, asked), JobState.QUEUED),
        "old": Job("old", job_name(site, over), JobState.ENDED),
        "his": Job("his", "another name", JobState.RUNNING),
    }
    poller = Poller(store, told, site, timer=clock)
    poller.poll()
    poller.poll()
    assert told.cancelled == ("late",)
    clock.now += module.CANCEL_AGAIN
    poller.poll()
    assert told.cancelled == ("late", "late")


def test_a_cancellation_that_is_refused_does_not_stop_the_others(
    store: Store, site: Site, scheduler: Scheduler
) -> None:
    for native_id in ("a", "b"):
        ask_to_cancel(store, queued(store, site, native_id))
    told = Told(scheduler)
    told.answer = {id: Job(id, "", JobState.QUEUED) for id in ("a", "b")}
    asked = []

    def cancel(native_id: str) -> None:
        asked.append(native_id)
        raise SchedulerError("not yours")

    told.cancel = cancel  # type: ignore[method-assign]
    Poller(store, told, site).poll()
    assert sorted(asked) == ["a", "b"]


def test_who_cancels_while_the_scheduler_is_asked_is_not_forgotten(
    store: Store, site: Site, scheduler: Scheduler
) -> None:
    id = queued(store, site)
    told = Told(scheduler)

    def jobs(ids: Collection[str] = ()) -> dict[str, Job]:
        ask_to_cancel(store, id)
        return {"x": Job("x", "", JobState.QUEUED, reason="Priority")}

    told.jobs = jobs  # type: ignore[method-assign]
    Poller(store, told, site).poll()
    assert allocation(store, id).reason == "enough"
