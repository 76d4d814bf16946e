"""A service that runs: engine and courier on real Redis and SQL; tests play the pilot."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from balsam_celery.celeryapp import SiteLoader, redis_client
from balsam_celery.service.engine import Engine
from balsam_celery.service.journal import Journal
from balsam_celery.site import SITE_VARIABLE, Site, find
from balsam_celery.store.engine import Store
from tests.pilot.service import make_site
from tests.redis_server import RedisServer
from tests.service.running.player import Player

MakeEngine = Callable[[], Engine]


@pytest.fixture
def clock() -> Callable[[], float]:
    """Engines keep real time."""
    return time.time


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that the test may stop."""
    directory = tmp_path / "redis"
    directory.mkdir()
    server = RedisServer(directory)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def site(
    tmp_path: Path, url: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Site:
    """A site with the database of ``store``, on the shared Redis or on one of the test's own."""
    name = "own_redis" if "own_redis" in request.fixturenames else "redis_server"
    directory = make_site(tmp_path / "site", request.getfixturevalue(name)).directory
    database = f'path = "{url.removeprefix("sqlite:///")}"'
    if not url.startswith("sqlite"):
        secret = directory / "database-url"
        secret.touch(mode=0o600)
        secret.write_text(url)
        database = 'url_file = "database-url"'
    with (directory / "site.toml").open("a") as file:
        file.write(f"\n[database]\n{database}\n")
    monkeypatch.setenv(SITE_VARIABLE, str(directory))
    return find(directory)


@pytest.fixture
def app(site: Site) -> Iterator[Celery[Any]]:
    """The site's Celery application, with its real result backend."""
    made: Celery[Any] = Celery(
        "balsam_celery.test",
        loader=SiteLoader,
        task_cls="balsam_celery.tasks.base:BalsamTask",
        set_as_current=False,
    )
    yield made
    made.close()


@pytest.fixture
def make_engine(site: Site, app: Celery[Any], store: Store) -> Iterator[MakeEngine]:
    """Starts engines; they are stopped at the end."""
    engines: list[Engine] = []

    def make() -> Engine:
        backend: Any = app.backend
        engine = Engine(site, app, store, redis_client(site, timeout=2.0), backend, Journal(site))
        engine.start()
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.ask_to_stop()
    for engine in engines:
        engine.join(30)
        assert not engine.is_alive()


@pytest.fixture
def player(site: Site, app: Celery[Any], store: Store) -> Iterator[Player]:
    """Plays pilots."""
    made = Player(site, app, store)
    yield made
    made.close()
