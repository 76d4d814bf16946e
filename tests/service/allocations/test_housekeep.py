"""Housekeeping: pilots that drain are told so, heartbeats noted, old keys deleted."""

from __future__ import annotations

import redis

from balsam_celery import keys
from balsam_celery.service.housekeep import note_heartbeats, send_drains, sweep
from balsam_celery.service.orders import LIFE
from balsam_celery.site import Site
from balsam_celery.states import State
from balsam_celery.store import allocations
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import PilotState
from balsam_celery.store.transitions import Move, move
from balsam_celery.wire import Heartbeat, PilotOrder, decode, encode
from tests.service.allocations.making import dispatched, pilot, running_pilot
from tests.store.conftest import Clock


def test_a_pilot_that_drains_is_told_until_it_has_taken_it(
    store: Store, site: Site, client: redis.Redis, clock: Clock
) -> None:
    running_pilot(store, site)
    assert send_drains(store, client, site) == []
    dispatched(store, "task01", "p1", running=True)
    store.run(
        lambda conn: allocations.update_pilot(
            conn, "p1", (PilotState.LIVE,), state=PilotState.DRAINING, reason="idle for 1m"
        )
    )
    # what runs there ends first
    assert send_drains(store, client, site) == []
    with store.write() as conn:
        done = Move("task01", State.RUNNING, State.RUN_DONE)
        assert move(conn, [done], now=store.clock(), who="test")
    assert send_drains(store, client, site) == ["p1"]
    control = keys.control(site.settings.key_prefix, "p1")
    # one order waits at most, and it is sent again once taken without effect
    assert send_drains(store, client, site) == ["p1"]
    [text] = client.lrange(control, 0, -1)
    assert decode(PilotOrder, text) == PilotOrder("drain", "idle for 1m")
    client.delete(control)
    send_drains(store, client, site)
    assert client.llen(control) == 1
    client.delete(control)


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


def test_an_order_that_a_dead_pilot_never_took_is_forgotten(
    store: Store, site: Site, client: redis.Redis, clock: Clock
) -> None:
    """Also when the service was killed before it could say when."""
    running_pilot(store, site)
    store.run(
        lambda conn: allocations.update_pilot(
            conn, "p1", (PilotState.LIVE,), state=PilotState.ENDED, ended=clock.now
        )
    )
    key = keys.control(site.settings.key_prefix, "p1")
    client.rpush(key, "order")
    try:
        sweep(store, client, site)
        assert 0 < client.ttl(key) <= LIFE
    finally:
        client.delete(key)
