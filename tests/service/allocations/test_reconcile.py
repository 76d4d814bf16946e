"""Reconciling: what no worker holds is fenced, everything else left alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import redis

from balsam_celery import keys
from balsam_celery.service.reconcile import LEAST_MARGIN, Reconciler, heartbeats
from balsam_celery.site import Site
from balsam_celery.store.engine import Store
from balsam_celery.wire import Heartbeat, KillOrder, encode
from tests.service.allocations.making import dispatched, running_pilot
from tests.store.conftest import Clock


class Sent:
    """Where orders go in these tests."""

    def __init__(self) -> None:
        self.orders: list[tuple[str, str, str, int]] = []

    def __call__(self, pilot: str, node: str, orders: Sequence[KillOrder]) -> None:
        self.orders += [(pilot, node, order.id, order.attempt) for order in orders]


def beat(client: redis.Redis, site: Site, node: str, time: float, *held: tuple[str, int]) -> None:
    text = encode(Heartbeat(time, 1, "LIVE", held))
    client.hset(keys.heartbeats(site.settings.key_prefix, "p1"), node, text)


@pytest.mark.parametrize("wrong", [0.0, 1800.0, -1800.0])
def test_what_no_worker_holds_is_fenced(
    store: Store, site: Site, client: redis.Redis, clock: Clock, wrong: float
) -> None:
    """However wrong the pilot's clock is."""
    running_pilot(store, site)
    dispatched(store, "held01", "p1", running=True)
    dispatched(store, "lost01", "p1")
    dispatched(store, "lost02", "p1", nodes=("n0", "n1"), running=True)
    dispatched(store, "other1", "p1", nodes=("n1",))
    sent = Sent()
    reconciler = Reconciler(store, client, site, sent)
    margin = max(LEAST_MARGIN, 2.5 * site.settings.pilot.heartbeat_interval)

    def beats(*held: tuple[str, int]) -> None:
        beat(client, site, "n0", clock.now + wrong, *held)
        beat(client, site, keys.GANG, clock.now + wrong)

    # no worker has said anything yet
    assert reconciler.look() == []
    # too early to tell
    clock.now += margin
    beats(("held01", 1))
    assert reconciler.look() == []
    clock.now += 1
    beats(("held01", 1))
    assert reconciler.look() == []
    # one that was written before the last look tells nothing of what came since
    assert reconciler.look() == []
    clock.now += 1
    beats(("held01", 1), ("lost01", 2))
    # its message may still be in the queue
    queue = site.settings.key_prefix + keys.pilot_queue("p1", "n0")
    client.rpush(queue, "message")
    assert reconciler.look() == [("lost02", 1)]
    client.delete(queue)
    sent.orders.clear()
    assert set(reconciler.look()) == {("lost01", 1), ("lost02", 1)}
    assert set(sent.orders) == {("p1", "n0", "lost01", 1), ("p1", keys.GANG, "lost02", 1)}


def test_a_new_service_first_looks_twice(
    store: Store, site: Site, client: redis.Redis, clock: Clock
) -> None:
    """It cannot know how old the heartbeat is that it finds."""
    running_pilot(store, site)
    beat(client, site, "n0", clock.now)
    dispatched(store, "task01", "p1")
    clock.now += 1000
    reconciler = Reconciler(store, client, site, Sent())
    assert reconciler.look() == []
    assert reconciler.look() == []
    beat(client, site, "n0", clock.now)
    assert reconciler.look() == [("task01", 1)]


def test_foreign_heartbeats_are_passed_over(store: Store, site: Site, client: redis.Redis) -> None:
    running_pilot(store, site)
    beat(client, site, "n0", 5.0)
    key = keys.heartbeats(site.settings.key_prefix, "p1")
    client.hset(key, "n1", "not JSON")
    client.hset(key, b"\xff", '{"time": "late"}')
    assert set(heartbeats(client, site.settings.key_prefix, "p1")) == {"n0"}


def test_without_redis_nothing_is_concluded(
    store: Store, site: Site, tmp_path: object, clock: Clock
) -> None:
    running_pilot(store, site)
    dispatched(store, "task01", "p1")
    clock.now += 1000
    away = redis.Redis(host="127.0.0.1", port=1)
    sent = Sent()
    with pytest.raises(redis.exceptions.ConnectionError):
        Reconciler(store, away, site, sent).look()
    assert not sent.orders
