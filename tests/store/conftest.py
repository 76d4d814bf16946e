"""Every test with the fixture ``store`` runs on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import delete

from balsam_celery.store.engine import Store
from balsam_celery.store.migrate import upgrade
from balsam_celery.store.schema import metadata
from tests.postgres import PostgresServer, postgres_server

__all__ = ["postgres_server"]


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with the schema, to copy: faster than migrating for each test."""
    path = tmp_path_factory.mktemp("template") / "site.sqlite"
    upgrade(f"sqlite:///{path}", None)
    return path


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: PostgresServer) -> str:
    """A PostgreSQL database with the schema, emptied for each test."""
    url = postgres_server.url(postgres_server.new_database())
    upgrade(url, None)
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Address of a database without a schema, which the test may change as it likes."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/empty.sqlite"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = server.new_database()
    yield server.url(name)
    server.drop_database(name)


@pytest.fixture
def own_url(empty_url: str) -> str:
    """Address of a database with the schema, which the test may change as it likes."""
    upgrade(empty_url, None)
    return empty_url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Address of a database with the schema and no rows; the test leaves the schema alone."""
    if request.param == "sqlite":
        path = tmp_path / "site.sqlite"
        shutil.copy(request.getfixturevalue("migrated_sqlite"), path)
        return f"sqlite:///{path}"
    address: str = request.getfixturevalue("migrated_postgres")
    with closing(Store.open(address)) as opened, opened.write() as conn:
        for table in reversed(metadata.sorted_tables):
            conn.execute(delete(table))
    return address


@pytest.fixture
def clock() -> Clock:
    """What the store takes for the time."""
    return Clock()


@pytest.fixture
def store(url: str, clock: Callable[[], float]) -> Iterator[Store]:
    """A fresh store."""
    opened = Store.open(url, clock=clock)
    yield opened
    opened.close()
