"""Clocks that differ, or are set: nothing ends early for it."""

from __future__ import annotations

import redis

from balsam_celery.schedulers.base import Job, JobState, Scheduler
from balsam_celery.service.poll import Poller
from balsam_celery.service.verdict import GONE_AFTER, OVERDUE_AFTER
from balsam_celery.site import Site
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationState
from tests.service.allocations.faulty import Told
from tests.service.allocations.making import allocation, requested, running_pilot, set_allocation
from tests.service.allocations.test_lingering import Case, missing
from tests.store.conftest import Clock


def test_a_clock_that_is_set_makes_no_job_gone(
    store: Store, site: Site, scheduler: Scheduler, clock: Clock
) -> None:
    id = running_pilot(store, site)
    told, timer = Told(scheduler), Clock()
    told.answer = {}
    poller = Poller(store, told, site, timer=timer)
    assert poller.poll() == []
    clock.now += 600
    timer.now += 1
    assert poller.poll() == []
    timer.now += GONE_AFTER
    assert poller.poll() == [id]


def test_a_job_keeps_its_wall_time_whatever_the_clock_of_the_scheduler_says(
    store: Store, site: Site, scheduler: Scheduler, clock: Clock
) -> None:
    """The service's own is ten minutes ahead of it, and set even further."""
    id = requested(store, site)
    set_allocation(store, id, AllocationState.QUEUED, native_id="x")
    told, timer = Told(scheduler), Clock()
    told.answer = {"x": Job("x", "", JobState.QUEUED)}
    poller = Poller(store, told, site, timer=timer)
    poller.poll()
    told.answer = {"x": Job("x", "", JobState.RUNNING, started=clock.now - 600)}
    poller.poll()
    timer.now += 300 + OVERDUE_AFTER
    clock.now += 1000
    poller.poll()
    assert not told.cancelled
    assert allocation(store, id).cancel_requested is None
    timer.now += 1
    poller.poll()
    assert told.cancelled == ("x",)


def test_a_clock_that_is_set_is_no_silence(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    running_pilot(store, site)
    timer = Clock()
    gone = missing(store, site, scheduler, client, timer)
    ended = Case(store, site, scheduler, client, timer)
    for case in (gone, ended):
        assert case.poller.poll() == []
        clock.now += 600
        timer.now += 1
        assert case.poller.poll() == []
