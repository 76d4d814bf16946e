"""Housekeeping: idle pilots end, busy and needed ones do not."""

from __future__ import annotations

import pytest
import redis

from balsam_celery import keys
from balsam_celery.service.housekeep import drain_idle, note_heartbeats, sweep
from balsam_celery.site import Site
from balsam_celery.store import allocations
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import PilotState
from balsam_celery.wire import Heartbeat, PilotOrder, decode, encode
from tests.service.allocations.making import dispatched, pilot, running_pilot
from tests.store.conftest import Clock
from tests.store.making import add, program


def test_an_idle_pilot_drains_after_its_time(
    store: Store, site: Site, client: redis.Redis, clock: Clock
) -> None:
    running_pilot(store, site)
    timeout = site.settings.pilot.idle_timeout
    assert drain_idle(store, client, site) == []
    assert pilot(store, "p1").idle_since == clock.now
    clock.now += timeout - 1
    assert drain_idle(store, client, site) == []
    clock.now += 1
    assert drain_idle(store, client, site) == ["p1"]
    assert pilot(store, "p1").state is PilotState.DRAINING
    control = keys.control(site.settings.key_prefix, "p1")
    # one order waits at most, and it is sent again once taken without effect
    assert drain_idle(store, client, site) == ["p1"]
    [text] = client.lrange(control, 0, -1)
    assert decode(PilotOrder, text) == PilotOrder("drain", "idle for 1m")
    client.delete(control)
    drain_idle(store, client, site)
    assert client.llen(control) == 1
    client.delete(control)


def test_a_busy_pilot_stays(store: Store, site: Site, clock: Clock) -> None:
    running_pilot(store, site)
    drain_idle(store, None, site)
    dispatched(store, "task01", "p1", running=True)
    clock.now += 1000
    assert drain_idle(store, None, site) == []
    assert pilot(store, "p1").idle_since is None


@pytest.mark.parametrize(
    ("asked", "stays"),
    [
        ({}, True),
        ({"num_nodes": 2}, True),
        ({"num_nodes": 3}, False),
        ({"ranks_per_node": 3}, False),
        ({"not_before": 1e9}, False),
    ],
)
def test_a_pilot_stays_while_something_waits_that_it_could_hold(
    store: Store, site: Site, clock: Clock, asked: dict[str, float], stays: bool
) -> None:
    running_pilot(store, site)
    drain_idle(store, None, site)
    add(store, program("task01", **asked))
    clock.now += site.settings.pilot.idle_timeout
    assert drain_idle(store, None, site) == ([] if stays else ["p1"])


def test_a_task_that_cannot_end_in_time_keeps_no_pilot(
    store: Store, site: Site, clock: Clock
) -> None:
    running_pilot(store, site)  # ends in 300 s; the task takes 60
    drain_idle(store, None, site)
    add(store, program("task01"))
    clock.now += 230
    assert drain_idle(store, None, site) == ["p1"]


def test_heartbeats_are_noted_and_silence_ends_nothing(
    store: Store, site: Site, client: redis.Redis, clock: Clock
) -> None:
    running_pilot(store, site)
    began = clock.now
    clock.now += 20
    key = keys.heartbeats(site.settings.key_prefix, "p1")
    client.hset(key, "n0", encode(Heartbeat(began + 15, 1, "LIVE")))
    client.hset(key, "pilot", encode(Heartbeat(began + 12, 1, "LIVE")))
    assert note_heartbeats(store, client, site) == {"p1": 5.0}
    assert pilot(store, "p1").heartbeat == began + 15
    client.delete(key)
    clock.now += 10_000
    assert note_heartbeats(store, client, site) == {"p1": 10_005.0}
    assert pilot(store, "p1").state is PilotState.LIVE


def test_keys_that_came_late_are_swept(
    store: Store, site: Site, client: redis.Redis, clock: Clock
) -> None:
    running_pilot(store, site)
    key = keys.heartbeats(site.settings.key_prefix, "p1")
    client.hset(key, "n0", "late")
    sweep(store, client, site)
    assert client.exists(key)
    store.run(
        lambda conn: allocations.update_pilot(
            conn, "p1", (PilotState.LIVE,), state=PilotState.ENDED, ended=clock.now
        )
    )
    sweep(store, client, site)
    assert not client.exists(key)
