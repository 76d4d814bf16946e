"""Beat: one leader sends, another waits and takes over."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery

from balsam_celery import keys
from balsam_celery.beat.schedule import HOUSEKEEP_INTERVAL, schedule
from balsam_celery.beat.scheduler import NAME, LeasedScheduler
from balsam_celery.settings import PackingSettings, SchedulerSettings, Settings
from balsam_celery.site import Site
from balsam_celery.siteinit import init
from balsam_celery.store import lease
from balsam_celery.store.engine import Store
from balsam_celery.store.migrate import upgrade
from tests.redis_server import RedisServer
from tests.waiting import wait_until

TTL = 0.6


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = init(tmp_path / "site")
    fast = dataclasses.replace(
        made.settings,
        packing=PackingSettings(interval=1),
        scheduler=SchedulerSettings(poll_interval=1),
    )
    return dataclasses.replace(made, settings=fast)


@pytest.fixture
def store(site: Site) -> Iterator[Store]:
    upgrade(site.database_url(), None)
    opened = Store.open(site.database_url())
    yield opened
    opened.close()


@pytest.fixture
def app(site: Site, redis_server: RedisServer) -> Iterator[Celery]:
    made = Celery("test", set_as_current=False, broker=redis_server.url)
    made.conf.update(
        broker_transport_options={"global_keyprefix": site.settings.key_prefix},
        result_backend="disabled://",
    )
    yield made
    made.close()


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    made = redis_server.client()
    yield made
    made.close()


def beat(app: Celery, site: Site, store: Store) -> LeasedScheduler:
    return LeasedScheduler(app, site=site, store=store, time_to_live=TTL)


def queued(client: redis.Redis, site: Site) -> int:
    return client.llen(site.settings.key_prefix + keys.SERVICE_QUEUE)


def test_the_schedule_is_the_site_s(site: Site) -> None:
    entries = schedule(site.settings)
    assert {entry["task"] for entry in entries.values()} == {
        "balsam.pack", "balsam.poll", "balsam.housekeep",
    }  # fmt: skip
    assert entries["pack"]["schedule"] == 1
    assert entries["housekeep"]["schedule"] == HOUSEKEEP_INTERVAL
    for entry in schedule(Settings()).values():
        assert entry["options"]["queue"] == keys.SERVICE_QUEUE
        assert entry["options"]["expires"] > entry["schedule"]


def test_the_leader_sends_and_the_second_waits(
    app: Celery, site: Site, store: Store, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "balsam_celery.beat")
    first, second = beat(app, site, store), beat(app, site, store)
    assert not first.leads
    first.tick()
    assert first.leads
    for _ in range(3):
        assert second.tick() == TTL / 3
    assert not second.leads
    said = [r.getMessage() for r in caplog.records if "another beat leads" in r.getMessage()]
    assert len(said) == 1
    assert first._candidate.holder in said[0]

    def first_sends() -> bool:
        assert first.tick() <= TTL / 3
        return queued(client, site) >= 4

    wait_until(first_sends, 20, "due tasks are sent")
    # the lease was renewed all along
    assert second.tick() == TTL / 3
    first.close()
    assert lease.holder(store, NAME) is None
    second.tick()
    assert second.leads
    second.close()


def test_a_dead_leader_is_replaced_and_notices_if_it_was_not_dead(
    app: Celery, site: Site, store: Store, client: redis.Redis
) -> None:
    first, second = beat(app, site, store), beat(app, site, store)
    first.tick()

    def second_leads() -> bool:
        second.tick()
        return second.leads

    wait_until(second_leads, 20, "the lease runs out")
    before = queued(client, site)
    assert not first.leads
    assert first.tick() == TTL / 3
    assert not first.leads
    assert queued(client, site) == before
    first.close()  # gives up nothing that is not its own
    holder = lease.holder(store, NAME)
    assert holder is not None
    assert holder[0] == second._candidate.holder
    second.close()


def test_a_database_that_is_away_stops_the_sending(
    app: Celery, site: Site, store: Store, client: redis.Redis, tmp_path: Path
) -> None:
    one = beat(app, site, store)
    one.tick()
    away = tmp_path / "away.db"
    site.database_path.rename(away)
    store.engine.dispose()
    site.database_path.mkdir()  # cannot be opened

    def stopped() -> bool:
        one.tick()
        return not one.leads

    wait_until(stopped, 20, "the lease runs out")
    before = queued(client, site)
    assert one.tick() == TTL / 3
    assert queued(client, site) == before
    site.database_path.rmdir()
    away.rename(site.database_path)
    one.tick()
    assert one.leads
    one.close()


def test_made_lazily_it_sends_nothing(app: Celery, site: Site, store: Store) -> None:
    lazy = LeasedScheduler(app, site=site, store=store, lazy=True)
    assert lazy.schedule == {}
    lazy.close()
