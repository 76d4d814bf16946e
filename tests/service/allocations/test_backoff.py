"""A queue in which nothing comes to anything is asked less and less; the others are not."""

from __future__ import annotations

import dataclasses
import time

import pytest
import redis

from balsam_celery.schedulers.base import Scheduler
from balsam_celery.service.backoff import LONGEST_PAUSE, Announcer, pauses
from balsam_celery.service.pack import pack
from balsam_celery.service.submit import submit
from balsam_celery.settings import QueueSettings
from balsam_celery.site import Site
from balsam_celery.store.allocations import list_allocations
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationState
from tests.service.allocations.faulty import Told
from tests.service.allocations.making import REQUEST, pilot_in, requested, set_allocation
from tests.store.conftest import Clock
from tests.store.making import add, program

S = AllocationState


@pytest.fixture
def site(site: Site) -> Site:
    """A second queue, for which packing has less liking: its jobs are longer."""
    other = QueueSettings(max_nodes=4, min_wall_time=500, max_wall_time=600)
    queues = {**site.settings.queues, "other": other}
    return dataclasses.replace(site, settings=dataclasses.replace(site.settings, queues=queues))


def queues_now(store: Store, now: float) -> set[str]:
    with store.read() as conn:
        return {queue for queue in ("local", "other", "none") if pauses(conn, queue, now)}


def came_to_nothing(store: Store, site: Site, queue: str, clock: Clock, **values: object) -> None:
    clock.now += 1
    id = requested(store, site, dataclasses.replace(REQUEST, queue=queue))
    set_allocation(store, id, S.FAILED, ended=clock.now, reason="no", **values)


def test_pauses_grow_queue_by_queue(store: Store, site: Site, clock: Clock) -> None:
    came_to_nothing(store, site, "local", clock)
    assert queues_now(store, clock.now) == {"local"}
    for _ in range(20):
        came_to_nothing(store, site, "local", clock)
    came_to_nothing(store, site, "other", clock)
    assert queues_now(store, clock.now) == {"local", "other"}
    assert queues_now(store, clock.now + 3) == {"local"}
    assert queues_now(store, clock.now + LONGEST_PAUSE - 2) == {"local"}
    assert queues_now(store, clock.now + LONGEST_PAUSE) == set()


def test_what_was_used_or_given_up_is_no_failure(store: Store, site: Site, clock: Clock) -> None:
    came_to_nothing(store, site, "other", clock, cancel_requested=clock.now)
    assert queues_now(store, clock.now) == set()
    came_to_nothing(store, site, "local", clock)
    clock.now += 1
    id = requested(store, site)
    set_allocation(store, id, S.RUNNING, native_id="x", started=clock.now)
    pilot_in(store, id)
    set_allocation(store, id, S.ENDED, ended=clock.now)
    assert queues_now(store, clock.now) == set()


def test_another_queue_serves_what_one_refuses(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    add(store, program("task01"))
    told = Told(scheduler)
    told.refused = frozenset({"local"})
    packed = pack(store, told, site, client)
    assert [request.queue for request in packed.plan.requests] == ["local"]
    assert not packed.submitted
    clock.now += 1
    packed = pack(store, told, site, client)
    assert [request.queue for request in packed.plan.requests] == ["other"]
    assert len(packed.submitted) == 1
    with store.read() as conn:
        [failed] = list_allocations(conn, (S.FAILED,))
    assert "local is closed" in failed.reason


def test_a_refusal_does_not_stop_the_other_rows(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis
) -> None:
    told = Told(scheduler)
    told.refused = frozenset({"local"})
    for queue in ("local", "other", "local"):
        requested(store, site, dataclasses.replace(REQUEST, queue=queue, wall_time=500))
    assert len(submit(store, told, site, client)) == 1
    with store.read() as conn:
        states = [(row.queue, row.state) for row in list_allocations(conn)]
    assert sorted(states) == [("local", S.FAILED), ("local", S.FAILED), ("other", S.QUEUED)]


def test_those_that_were_cancelled_count_neither_way(
    store: Store, site: Site, clock: Clock
) -> None:
    for _ in range(4):
        came_to_nothing(store, site, "local", clock)
    for _ in range(20):
        came_to_nothing(store, site, "local", clock, cancel_requested=clock.now)
    clock.now -= 20
    with store.read() as conn:
        pause = pauses(conn, "local", clock.now)
    assert pause is not None
    assert (pause.failures, pause.until) == (4, clock.now + 16)


def test_one_that_has_not_ended_yet_counts_neither_way(
    store: Store, site: Site, clock: Clock
) -> None:
    """Or two that are asked for by turns, each of which fails, would never be a reason to wait."""
    for _ in range(4):
        came_to_nothing(store, site, "local", clock)
    clock.now += 1
    id = requested(store, site, dataclasses.replace(REQUEST, queue="local"))
    for state in (S.REQUESTED, S.QUEUED, S.RUNNING):
        set_allocation(store, id, state, native_id="x")
        with store.read() as conn:
            pause = pauses(conn, "local", clock.now)
        assert pause is not None
        assert (pause.failures, pause.until) == (4, clock.now + 15)
    pilot_in(store, id)
    assert queues_now(store, clock.now) == set(), "this one came to something"


def test_a_pause_is_logged_once(
    store: Store,
    site: Site,
    scheduler: Scheduler,
    client: redis.Redis,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for queue in ("other", "local"):
        came_to_nothing(store, site, queue, clock)
    add(store, program("task01"))
    announcer = Announcer()
    for _ in range(2):
        packed = pack(store, scheduler, site, client)
        assert not packed.plan.requests
        announcer.tell(packed.paused)
    said = [record.getMessage() for record in caplog.records if "asked for" in record.getMessage()]
    again = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(clock.now + 2))
    assert len(said) == 2
    assert (
        f"queue local is asked for nothing until {again}: "
        "1 in a row came to nothing, the last: no" in said
    )
    clock.now += 2
    came_to_nothing(store, site, "local", clock)
    announcer.tell(pack(store, scheduler, site, client).paused)
    assert "2 in a row" in caplog.records[-1].getMessage()
