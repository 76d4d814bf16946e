"""A site in SQL and Redis with no process running; tests play the pilot's part."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from balsam_celery import site as sites
from balsam_celery.celeryapp import SiteLoader, redis_client
from balsam_celery.service.effects import Performer
from balsam_celery.service.inbox import Inbox
from balsam_celery.service.publish import Publisher
from balsam_celery.service.record import record
from balsam_celery.settings import LocalSettings
from balsam_celery.site import Site
from balsam_celery.siteinit import init
from balsam_celery.states import State
from balsam_celery.store import queries, schema
from balsam_celery.store.engine import Store
from balsam_celery.store.queries import TaskFilter
from balsam_celery.store.rows import TaskRow
from balsam_celery.store.transitions import Move, move
from balsam_celery.tasks.connect import close
from balsam_celery.tasks.program import Program, program
from balsam_celery.wire import Ended, Record
from tests.redis_server import RedisServer, free_port
from tests.store.conftest import migrated_sqlite

__all__ = ["migrated_sqlite"]

S = State


def use_redis(site: Site, url: str) -> Site:
    """``site`` with the Redis at ``url`` for its own."""
    secret = site.secrets_dir / "redis_url"
    secret.write_text(url + "\n", encoding="utf-8")
    secret.chmod(0o600)
    path = site.directory / sites.SITE_FILE
    before, found, after = path.read_text(encoding="utf-8").partition("[redis]\n")
    head, key, tail = after.partition('url_file = ""')
    assert found and key, "site.example.toml has changed"
    path.write_text(f'{before}{found}{head}url_file = "secrets/redis_url"{tail}', encoding="utf-8")
    return sites.find(site.directory)


@pytest.fixture
def bare_site(tmp_path: Path, migrated_sqlite: Path) -> Site:
    """A site of 4 virtual nodes with 8 cores, its database made."""
    made = init(tmp_path / "site", local=LocalSettings(nodes=4, cores_per_node=8))
    shutil.copy(migrated_sqlite, made.database_path)
    return made


@pytest.fixture
def site(bare_site: Site, redis_server: RedisServer) -> Site:
    """The same on the tests' Redis."""
    return use_redis(bare_site, redis_server.url)


@pytest.fixture
def deaf_site(bare_site: Site) -> Site:
    """The same with nobody listening where its Redis should be."""
    return use_redis(bare_site, f"redis://:secret@127.0.0.1:{free_port()}/0")


def make_app(site: Site, monkeypatch: pytest.MonkeyPatch) -> Celery[Any]:
    """A Celery application like ``balsam_celery.app``, of its own: tests have many sites."""
    monkeypatch.setenv("BALSAM_SITE", str(site.directory))
    app: Celery[Any] = Celery(
        "balsam_celery",
        loader=SiteLoader,
        task_cls="balsam_celery.tasks.base:BalsamTask",
        set_as_current=False,
    )

    def add(x: int, y: int = 0) -> int:
        return x + y

    def total(values: list[int]) -> int:
        return sum(values)

    for function in (add, total):
        app.task(name=f"user.{function.__name__}", shared=False)(function)
    return app


@dataclass
class Played:
    """The site, its application, and the service's and pilots' parts, played by the test."""

    site: Site
    app: Celery[Any]
    store: Store

    def program(self, name: str, command: Sequence[str] | None = None, **options: Any) -> Program:
        """Declare a program of this application."""
        return program(name, command, app=self.app, **options)

    def task(self, id: str) -> TaskRow:
        """The row of a task."""
        with self.store.read() as conn:
            return queries.get_task(conn, id)

    def rows(self) -> list[TaskRow]:
        """All rows, oldest first."""
        with self.store.read() as conn:
            return queries.select_tasks(conn, TaskFilter(), limit=1000)

    def parents(self, id: str) -> list[str]:
        """Ids of a task's parents, in order."""
        with self.store.read() as conn:
            return [row.id for row in queries.parents(conn, id)]

    def record(self, *records: Record) -> None:
        """What the service does with reports."""
        now = self.store.clock()
        self.store.run(lambda conn: record(conn, records, now=now))

    def start(self, id: str) -> int:
        """Place and start a program; returns the attempt's number."""
        row = self.task(id)
        number = row.attempt + 1
        targets = [row.state, S.DISPATCHED, S.RUNNING]
        placed = {"attempt": number, "pilot": "p1", "work_dir": f"/work/{id}/{number}"}
        moves = [
            Move(id, source, target, values=placed if target is S.DISPATCHED else {})
            for source, target in itertools.pairwise(targets)
        ]
        attempt = {
            "task": id, "number": number, "pilot": "p1", "nodes": [], "argv": row.argv or [],
            "work_dir": placed["work_dir"], "dispatched": time.time(), "reason": "",
        }  # fmt: skip

        def write(conn: Any) -> None:
            assert len(move(conn, moves, now=self.store.clock(), who="test")) == 2
            conn.execute(schema.attempt.insert(), [attempt])

        self.store.run(write)
        return number

    def end(self, id: str, attempt: int = 1, *, code: int = 0, out: str = "") -> None:
        """The program's exit."""
        now = time.time()
        self.record(
            Ended(
                id=id, attempt=attempt, outcome="exit", reason="", started=now - 1, ended=now,
                exit_code=code, stdout_tail=out,
            )
        )  # fmt: skip

    def run(self, id: str, *, code: int = 0, out: str = "") -> None:
        """Start and end a program."""
        self.end(id, self.start(id), code=code, out=out)

    def perform(self) -> None:
        """Perform all effects that are due."""
        publisher = Publisher(self.app)
        performer = Performer(self.store, self.app, publisher, self.app.backend)
        try:
            while performer.perform():
                pass
        finally:
            publisher.close()

    def inbox(self) -> list[Record]:
        """Reports in the service's inbox, taken out."""
        with redis_client(self.site) as client:
            inbox = Inbox(client, self.site.settings.key_prefix)
            letters = inbox.read(0.0)
            inbox.drop(letters)
            return [one.record for one in letters.told]


def played(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    store = sites.connect_store(site)
    app = make_app(site, monkeypatch)
    yield Played(site, app, store)
    app.backend.client.close()
    app.close()
    close(app)
    store.close()


@pytest.fixture
def play(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    """A site whose Redis answers."""
    yield from played(site, monkeypatch)


@pytest.fixture
def deaf(deaf_site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    """A site whose Redis is down."""
    yield from played(deaf_site, monkeypatch)
