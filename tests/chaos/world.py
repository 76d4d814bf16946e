"""What a run breaks: the site, its processes and pilots, and the servers that it stands on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import redis
from sqlalchemy import Connection, select

from balsam_celery import procs
from balsam_celery.celeryapp import redis_client
from balsam_celery.errors import StoreError
from balsam_celery.procs import Identity
from balsam_celery.store import schema
from balsam_celery.supervisor import down, records
from balsam_celery.supervisor.children import NAMES, SUPERVISOR
from tests.acceptance.live import LiveSite
from tests.chaos.house import House
from tests.postgres import PostgresServer
from tests.slurm_cluster import SlurmCluster


@dataclass(frozen=True, slots=True)
class Pilot:
    """A pilot that is at work: its id, main process and directory."""

    id: str
    process: Identity
    directory: Path


@dataclass
class World:
    """One run's.

    Attributes:
        directory: holds the site and all else of the run.
        live: the site.
        house: where its pilots live.
        postgres, cluster: servers that it stands on.
        notes: what is worth telling.
    """

    directory: Path
    live: LiveSite
    house: House
    postgres: PostgresServer | None = None
    cluster: SlurmCluster | None = None
    notes: list[str] = field(default_factory=list)
    _is_down: bool = False

    def process(self, name: str) -> Identity | None:
        """The site's process of this name, if it lives."""
        record = records.read(self.live.site, name)
        if record is None or record.process is None or not record.is_alive:
            return None
        return record.process

    def services(self) -> list[int]:
        """Pids of the site's own processes on the login node."""
        found = [self.process(name) for name in (SUPERVISOR, *NAMES)]
        return [process.pid for process in found if process is not None]

    @property
    def is_sql_paused(self) -> bool:
        """PostgreSQL is stopped and would let everybody wait until it goes on."""
        return self.postgres is not None and self.postgres.is_paused

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """Read SQL while a fault may last, without waiting for what the caller itself must lift.

        Raises:
            StoreError: the database does not answer.
        """
        if self.is_sql_paused:
            raise StoreError("PostgreSQL is stopped")
        with self.live.store.read() as conn:
            yield conn

    def down(self) -> None:
        """Bring the site down, once."""
        if not self._is_down:
            self._is_down = True
            self.live.store.close()
            down(self.live.site, cancel=True)

    def pilots(self) -> list[Pilot]:
        """Pilots that live and have registered, by id; none while SQL is away."""
        pilot = schema.pilot.c
        query = select(pilot.id, pilot.pid, pilot.allocation).where(pilot.state == "LIVE")
        try:
            with self.read() as conn:
                rows = conn.execute(query.order_by(pilot.id)).all()
        except StoreError:
            return []
        found = []
        for row in rows:
            process = procs.identity(row.pid)
            directory = self.live.site.run_dir / "allocations" / row.allocation / row.id
            if process is not None and directory.is_dir():
                found.append(Pilot(row.id, process, directory))
        return found

    def workers(self) -> list[Identity]:
        """Node workers and gang workers of the pilots, by the pid files that they write."""
        found = []
        for pilot in self.pilots():
            for path in sorted(pilot.directory.glob("*.pid")):
                with contextlib.suppress(OSError, ValueError, KeyError):  # it is being written
                    pid = json.loads(path.read_text(encoding="utf-8"))["pid"]
                    if (process := procs.identity(pid)) is not None:
                        found.append(process)
        return found

    @contextlib.contextmanager
    def redis(self) -> Iterator[redis.Redis]:
        """A client that does not wait for long."""
        with redis_client(self.live.site, timeout=3.0) as client:
            yield client
