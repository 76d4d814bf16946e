"""Ends that are hard to come by: cancellations that fail, jobs that turn up late, pilots unseen."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from balsam_celery.errors import SchedulerUnavailable
from balsam_celery.schedulers.base import Job, JobState, Scheduler
from balsam_celery.service import poll as module
from balsam_celery.service.poll import Poller
from balsam_celery.service.submit import IN_DOUBT, in_doubt_for, job_name, submit
from balsam_celery.service.verdict import GONE_AFTER
from balsam_celery.site import Site
from balsam_celery.store import allocations, lease
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationState
from tests.service.allocations.faulty import Faulty, Told
from tests.service.allocations.making import allocation, requested, set_allocation
from tests.store.conftest import Clock

S = AllocationState


def cancelled(store: Store, site: Site, state: AllocationState, **values: object) -> str:
    """An allocation that somebody has cancelled."""
    id = requested(store, site)
    set_allocation(
        store, id, state, cancel_requested=store.clock(), reason="cancelled by the user", **values
    )
    return id


def test_silence_about_some_jobs_starves_none(
    store: Store, site: Site, scheduler: Scheduler, clock: Clock
) -> None:
    names = ("a", "b", "c", "d", "e")
    for name in names:
        clock.now += 1
        cancelled(store, site, S.QUEUED, native_id=name)
    told = Told(scheduler)
    told.answer = {name: Job(name, "", JobState.QUEUED) for name in names}
    asked: list[str] = []

    def cancel(native_id: str) -> None:
        asked.append(native_id)
        if native_id in ("a", "b", "d"):
            raise SchedulerUnavailable("scancel did not end within 30 s")

    told.cancel = cancel  # type: ignore[method-assign]
    poller = Poller(store, told, site, timer=clock)
    poller.poll()
    assert asked == ["a", "b"], "two silences end the pass"
    clock.now += module.CANCEL_AGAIN
    poller.poll()
    assert asked[2:] == ["c", "d", "e", "a"], "it goes on behind those that failed"
    clock.now += module.CANCEL_AGAIN
    poller.poll()
    assert asked[6] == "b"


def test_a_job_in_doubt_that_turns_up_after_its_cancellation_is_cancelled(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    id = requested(store, site)
    told = Told(scheduler)
    told.lose_answer = True
    assert submit(store, told, site, client) == []
    told.answer = {}  # taken, but not listed yet
    set_allocation(store, id, S.REQUESTED, cancel_requested=clock.now, reason="by the user")
    clock.now += GONE_AFTER - 1
    submit(store, told, site, client)
    assert allocation(store, id).state is S.REQUESTED
    told.answer = {"9": Job("9", job_name(site, id), JobState.QUEUED)}
    submit(store, told, site, client)
    assert allocation(store, id).native_id == "9"
    Poller(store, told, site, timer=clock).poll()
    assert told.cancelled == ("9",)


def test_a_doubt_ends_when_no_job_turns_up(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    id = cancelled(store, site, S.REQUESTED, native_id=IN_DOUBT, submitted=clock.now)
    clock.now += max(GONE_AFTER, in_doubt_for(site))
    submit(store, scheduler, site, client)
    row = allocation(store, id)
    assert (row.state, row.reason, row.ended) == (S.ENDED, "cancelled by the user", clock.now)


@pytest.mark.parametrize("tried", [False, True], ids=["never tried", "put off"])
def test_what_was_never_sent_ends_though_the_scheduler_is_away(
    store: Store,
    site: Site,
    scheduler: Scheduler,
    client: redis.Redis,
    clock: Clock,
    tried: bool,
) -> None:
    faulty = Faulty(scheduler)
    faulty.is_away = True
    id = cancelled(store, site, S.REQUESTED, submitted=clock.now if tried else None)
    other = requested(store, site)
    assert submit(store, faulty, site, client) == []
    row = allocation(store, id)
    assert (row.state, row.reason, row.ended) == (S.ENDED, "cancelled by the user", clock.now)
    assert allocation(store, other).state is S.REQUESTED


def test_who_has_lost_the_turn_marks_nothing_and_sends_nothing(
    store: Store,
    site: Site,
    scheduler: Scheduler,
    client: redis.Redis,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    id = requested(store, site)
    faulty = Faulty(scheduler)
    prepare = submit.__globals__["_prepare"]

    def slow(*args: object) -> object:
        """The script takes so long that another takes the turn."""
        request = prepare(*args)
        clock.now += 1000
        assert lease.acquire(store, "submit", "another", 60) is not None
        return request

    monkeypatch.setitem(submit.__globals__, "_prepare", slow)
    assert submit(store, faulty, site, client) == []
    row = allocation(store, id)
    assert (faulty.submissions, row.state, row.native_id) == (0, S.REQUESTED, None)


@pytest.mark.parametrize(
    "values",
    [{"cancel_requested": 5.0}, {"native_id": IN_DOUBT}, {"submitted": 5.0}],
    ids=["cancelled", "sent", "tried"],
)
def test_a_row_that_changed_since_it_was_read_is_not_sent(
    store: Store,
    site: Site,
    scheduler: Scheduler,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, object],
) -> None:
    id = requested(store, site)
    faulty = Faulty(scheduler)
    prepare = submit.__globals__["_prepare"]

    def meanwhile(*args: object) -> object:
        with store.write() as conn:
            assert allocations.update_allocation(conn, id, (S.REQUESTED,), **values)
        return prepare(*args)

    monkeypatch.setitem(submit.__globals__, "_prepare", meanwhile)
    assert submit(store, faulty, site, client) == []
    assert faulty.submissions == 0


@pytest.mark.parametrize("name", ["job.out", "x.out"], ids=["batch", "local"])
def test_where_the_output_of_an_unused_job_is(
    store: Store, site: Site, scheduler: Scheduler, clock: Clock, name: str
) -> None:
    id = requested(store, site)
    set_allocation(store, id, S.QUEUED, native_id="x")
    output = Path(allocation(store, id).run_dir) / name
    output.parent.mkdir(parents=True)
    output.write_text("python: command not found\n")
    told = Told(scheduler)
    told.answer = {"x": Job("x", "", JobState.ENDED, 1.0, clock.now, "exit status 127")}
    Poller(store, told, site, timer=clock).poll()
    assert allocation(store, id).reason == f"exit status 127; see {output}"
    with store.read() as conn:
        assert [row.id for row in allocations.came_to_nothing(conn, clock.now)] == [id]
        assert allocations.came_to_nothing(conn, clock.now + 1) == []
