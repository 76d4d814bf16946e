"""Idle pilots are drained."""

from __future__ import annotations

import pytest
import redis

from balsam_celery.schedulers.base import Scheduler
from balsam_celery.service.pack import pack
from balsam_celery.site import Site
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import PilotState
from tests.service.allocations.making import (
    dispatched,
    pilot,
    running_pilot,
)
from tests.store.conftest import Clock
from tests.store.making import add, program


def test_an_idle_pilot_drains_after_its_time(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    id = running_pilot(store, site)
    timeout = site.settings.pilot.idle_timeout
    assert pack(store, scheduler, site, client).plan.drain == ()
    assert pilot(store, "p1").idle_since == clock.now
    clock.now += timeout - 1
    assert pack(store, scheduler, site, client).plan.drain == ()
    clock.now += 1
    assert pack(store, scheduler, site, client).plan.drain == (id,)
    assert pilot(store, "p1").state is PilotState.DRAINING
    assert pilot(store, "p1").reason == "idle for 1m"
    assert pack(store, scheduler, site, client).plan.drain == ()


def test_a_busy_pilot_stays(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    running_pilot(store, site)
    pack(store, scheduler, site, client)
    dispatched(store, "task01", "p1", running=True)
    clock.now += 1000
    assert pack(store, scheduler, site, client).plan.drain == ()
    assert pilot(store, "p1").idle_since is None


@pytest.mark.parametrize(
    ("asked", "stays"),
    [
        ({}, True),
        ({"num_nodes": 2}, True),
        ({"num_nodes": 3}, False),
        ({"not_before": 1e9}, False),
    ],
)
def test_a_pilot_stays_while_something_waits_that_it_could_hold(
    store: Store,
    site: Site,
    scheduler: Scheduler,
    client: redis.Redis,
    clock: Clock,
    asked: dict[str, float],
    stays: bool,
) -> None:
    running_pilot(store, site)
    pack(store, scheduler, site, client)
    add(store, program("task01", **asked))
    clock.now += site.settings.pilot.idle_timeout
    assert bool(pack(store, scheduler, site, client).plan.drain) is not stays


def test_a_task_that_cannot_end_in_time_keeps_no_pilot(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    running_pilot(store, site)  # ends in 300 s; the task takes 60
    add(store, program("task01"))
    clock.now += 230
    plan = pack(store, scheduler, site, client).plan
    assert len(plan.drain) == 1
    assert len(plan.requests) == 1
