"""The service's part, played by tests: starts pilots, sends bundles, reads and acknowledges."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from kombu import pools

from balsam_celery import keys, procs, wire
from balsam_celery.celeryapp import make_site_app
from balsam_celery.resources import NodeCapacity, NodeShare
from balsam_celery.schedulers.base import JobNodes
from balsam_celery.schedulers.local_state import NODES
from balsam_celery.site import Site, find
from balsam_celery.wire import Ended, KillOrder, PilotEnded, Registered, Report, TaskSpec
from tests.redis_server import RedisServer
from tests.waiting import wait_until

SITE_TOML = """\
[site]
name = "test"
id = "{id}"
local_dir = "{directory}/local"
kill_grace = "1s"

[redis]
url_file = "redis-url"

[pilot]
heartbeat_interval = "1s"
drain_margin = "{drain_margin}s"
output_tail = 2000
"""


def make_site(directory: Path, server: RedisServer, drain_margin: int = 2) -> Site:
    """A site that uses ``server``."""
    directory.mkdir(mode=0o700)
    site_id = secrets.token_hex(4)
    text = SITE_TOML.format(id=site_id, directory=directory, drain_margin=drain_margin)
    (directory / "site.toml").write_text(text)
    secret = directory / "redis-url"
    secret.touch(mode=0o600)
    secret.write_text(server.url)
    return find(directory)


class Service:
    """The service of one site, as a pilot sees it."""

    def __init__(self, site: Site, server: RedisServer) -> None:
        self.site = site
        self.server = server
        self.prefix = site.settings.key_prefix
        self.client: redis.Redis = server.client()
        self.app: Celery[Any] = make_site_app(site)
        self.records: list[tuple[str, str, int, wire.Record]] = []
        self.acknowledge = True
        self.pilots: list[Pilot] = []

    def start(
        self, cores: Iterable[int] = (2,), lasts: float = 600.0, *, virtual: bool = True
    ) -> Pilot:
        """Start a pilot whose nodes have so many cores, and wait until it has registered."""
        pilot = self.begin(cores, lasts, virtual=virtual)
        pilot.wait_registered()
        return pilot

    def begin(
        self,
        cores: Iterable[int] = (2,),
        lasts: float = 600.0,
        *,
        virtual: bool = True,
        native_id: str = "",
        allocation: str = "",
    ) -> Pilot:
        """Start a pilot; its nodes are parts of this machine or, for all it knows, hosts."""
        pilot = Pilot(
            self, list(cores), lasts, virtual=virtual, native_id=native_id, allocation=allocation
        )
        self.pilots.append(pilot)
        return pilot

    def look(self) -> None:
        """Take what is in the inbox, and acknowledge it."""
        try:
            while text := self.client.lpop(keys.inbox(self.prefix)):
                report = wire.decode(Report, text)
                self.records += [
                    (report.pilot, report.node, number, record) for number, record in report.records
                ]
                numbers = [number for number, _ in report.records if number]
                if numbers and self.acknowledge:
                    key = keys.acks(self.prefix, report.pilot, report.node)
                    self.client.rpush(key, json.dumps(numbers))
        except redis.exceptions.ConnectionError:
            self.client.connection_pool.disconnect()

    def all(self, kind: type[Any]) -> list[Any]:
        """Every record of that kind so far."""
        self.look()
        return [record for _, _, _, record in self.records if isinstance(record, kind)]

    def ended(self, task: str, attempt: int = 1, timeout: float = 30.0) -> Ended:
        """The first outcome of an attempt; waits for it."""

        def first() -> Ended | None:
            found = [e for e in self.all(Ended) if (e.id, e.attempt) == (task, attempt)]
            return found[0] if found else None

        outcome = wait_until(first, timeout, f"outcome of {task}/{attempt}")
        assert outcome is not None
        return outcome

    def connect_again(self) -> None:
        """Let go of connections to a Redis that was restarted."""
        pools.reset()
        self.app.close()
        self.app = make_site_app(self.site)

    def close(self) -> None:
        """End every pilot, the hard way if it must be."""
        for pilot in self.pilots:
            pilot.close()
        self.app.close()
        self.client.close()


class Pilot:
    """One pilot process and how to reach it."""

    def __init__(
        self,
        service: Service,
        cores: list[int],
        lasts: float,
        *,
        virtual: bool,
        native_id: str,
        allocation: str,
    ) -> None:
        self.service = service
        self.allocation = allocation or f"alloc{secrets.token_hex(2)}"
        self.id = ""
        self.nodes = [f"n{index}" for index in range(len(cores))]
        first = [sum(cores[:index]) for index in range(len(cores))]
        capacities = tuple(
            NodeCapacity(name, tuple(range(start, start + count)), gpus=(0, 1))
            for name, start, count in zip(self.nodes, first, cores, strict=True)
        )
        self.capacities = {capacity.name: capacity for capacity in capacities}
        directory = service.site.directory
        nodes = directory / f"{self.allocation}.nodes"
        nodes.write_text(wire.encode(JobNodes(capacities, time.time() + lasts, native_id, virtual)))
        environment = {**os.environ, NODES: str(nodes), "SECRET_OF_SITE": "x", "PMI_RANK": "7"}
        self.log = directory / f"{self.allocation}.log"
        with self.log.open("wb") as log:
            options = ["--site", str(directory), "--allocation", self.allocation]
            self.process = subprocess.Popen(
                [sys.executable, "-m", "balsam_celery.pilot", *options],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_registered(self, timeout: float = 60.0) -> Registered:
        """Wait until all its workers consume."""

        def registered() -> Registered | None:
            assert self.process.poll() is None, self.log.read_text()
            found = [r for r in self.service.all(Registered) if r.allocation == self.allocation]
            return found[0] if found else None

        record = wait_until(registered, timeout, "the pilot registers")
        assert record is not None
        self.id = record.pilot
        self.capacities.update((node.name, node) for node in record.nodes)
        return record

    def identity_of(self, name: str) -> procs.Identity:
        """The process whose pid file that is: a worker, ``pilot``, or ``NODE.keeper``."""
        content = json.loads((self.directory / f"{name}.pid").read_text())
        return procs.Identity(content["pid"], content["start_time"], content["boot_id"])

    @property
    def directory(self) -> Path:
        return self.service.site.run_dir / "allocations" / self.allocation / self.id

    def pid_of(self, node: str) -> int:
        """Pid of a worker."""
        # a moment before it is written the file is empty
        text = wait_until((self.directory / f"{node}.pid").read_text, 10, "a pid")
        pid: int = json.loads(text)["pid"]
        return pid

    def spec(self, task: str, *argv: str, **fields: Any) -> TaskSpec:
        """A task on the first core of the first node unless told otherwise."""
        values: dict[str, Any] = {
            "id": task,
            "attempt": 1,
            "name": f"name of {task}",
            "application": "app",
            "argv": argv,
            "environment": {},
            "work_dir": str(self.directory / "work" / task),
            "shares": (self.share(),),
            "ranks_per_node": 1,
            "threads_per_rank": 1,
            "wall_time": 60,
            "kill_grace": 1,
        }
        return TaskSpec(**{**values, **fields})

    def share(self, node: str = "n0", *cores: int) -> NodeShare:
        """Some cores of a node, by position; the first one unless told otherwise."""
        own = self.capacities[node].cores
        return NodeShare(node, tuple(own[core] for core in cores or (0,)))

    def whole(self, node: str) -> NodeShare:
        """A whole node."""
        return NodeShare(node, self.capacities[node].cores)

    def run(self, *specs: TaskSpec, node: str = "n0") -> None:
        """Send a bundle."""
        self._send(keys.RUN, [wire.to_plain(spec) for spec in specs], node)

    def kill(self, *orders: KillOrder, node: str = "n0") -> None:
        """Send kill orders."""
        self._send(keys.KILL, [wire.to_plain(order) for order in orders], node)

    def _send(self, name: str, plains: list[Any], node: str) -> None:
        queue = keys.pilot_queue(self.id, node)
        self.service.app.send_task(name, args=[queue, plains], queue=queue, ignore_result=True)

    def inspect(self, command: str, node: str = "n0") -> Any:
        """Answer of one worker to ``celery inspect``."""
        name = keys.worker_name(self.id, node)
        inspect = self.service.app.control.inspect([name], timeout=3.0)
        answers = getattr(inspect, command)()
        return (answers or {}).get(name)

    def wait_ended(self, timeout: float = 30.0) -> int:
        """Wait for the process's end; returns its exit status."""

        def status() -> tuple[int] | None:
            self.service.look()
            code = self.process.poll()
            return None if code is None else (code,)

        found = wait_until(status, timeout, "the pilot ends")
        assert found is not None
        self.service.look()
        return found[0]

    def has_ended(self) -> bool:
        """Its last word has come."""
        return any(record.pilot == self.id for record in self.service.all(PilotEnded))

    def close(self) -> None:
        """End it and whatever it has left."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.wait_ended()
            except AssertionError:
                self.process.kill()
                self.process.wait()
        marks = {f"BALSAM_PILOT_NODE={self.id}/{node}" for node in [*self.nodes, keys.GANG]}
        procs.end(procs.Quarry(marks=frozenset(marks)), grace=0)
