"""Polling: the scheduler's word and nothing else makes an allocation ENDED (R4)."""

from __future__ import annotations

from balsam_celery.errors import SchedulerUnavailable
from balsam_celery.schedulers.base import Job, JobState, Scheduler
from balsam_celery.service import poll as module
from balsam_celery.service.poll import Poller
from balsam_celery.service.submit import submit
from balsam_celery.site import Site
from balsam_celery.store import allocations
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationState, PilotState
from tests.service.allocations.making import (
    allocation,
    dispatched,
    pilot_in,
    requested,
    running_pilot,
    set_allocation,
)
from tests.service.allocations.test_submit import Faulty
from tests.store.conftest import Clock
from tests.waiting import wait_until


class Told(Faulty):
    """The real scheduler, of which a test may have an answer of its own instead."""

    answer: dict[str, Job] | None = None

    def jobs(self) -> dict[str, Job]:
        return super().jobs() if self.answer is None else self.answer


def ask_to_cancel(store: Store, id: str) -> None:
    states = (AllocationState.QUEUED, AllocationState.RUNNING)
    assert store.run(
        lambda conn: allocations.update_allocation(
            conn, id, states, cancel_requested=store.clock(), reason="enough"
        )
    )


def test_from_queued_to_ended(store: Store, site: Site, scheduler: Scheduler, clock: Clock) -> None:
    id = requested(store, site)
    submit(store, scheduler, site)
    poller = Poller(store, scheduler, site)

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
    poller = Poller(store, faulty, site)
    for _ in range(5):
        clock.now += 1000
        assert poller.poll() == []
    assert allocation(store, id).state is AllocationState.RUNNING


def test_a_job_that_the_scheduler_forgot_is_gone_after_a_while(
    store: Store, site: Site, scheduler: Scheduler, clock: Clock
) -> None:
    id = running_pilot(store, site)
    told = Told(scheduler)
    poller = Poller(store, told, site)
    assert poller.poll() == []
    clock.now += module.GONE_AFTER - 1
    assert poller.poll() == []
    # it is there again: an answer was incomplete
    told.answer = {"x": Job("x", "name", JobState.RUNNING, started=clock.now)}
    assert poller.poll() == []
    told.answer = {}
    clock.now += 2
    assert poller.poll() == []
    clock.now += module.GONE_AFTER
    assert poller.poll() == [id]
    assert "does not know" in allocation(store, id).reason


def test_a_wall_time_that_has_passed_makes_the_service_cancel_and_wait(
    store: Store, site: Site, scheduler: Scheduler, clock: Clock
) -> None:
    id = running_pilot(store, site)
    told = Told(scheduler)
    told.answer = {"x": Job("x", "name", JobState.RUNNING, started=clock.now)}
    cancelled = []

    def cancel(native_id: str) -> None:
        cancelled.append((native_id, clock.now))
        raise SchedulerUnavailable("the controller does not answer")

    told.cancel = cancel  # type: ignore[method-assign]
    poller = Poller(store, told, site)
    clock.now += 300 + module.OVERDUE_AFTER
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
    assert Poller(store, told, site).poll() == []  # no pilot: nothing to reap
    row = allocation(store, id)
    assert (row.state, row.started, row.ended, row.reason) == (
        AllocationState.ENDED, 5.0, 7.0, "exit 1",
    )  # fmt: skip
