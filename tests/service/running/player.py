"""The pilot's part, played by tests: registers, takes bundles and kill orders, reports ends."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import redis
from celery import Celery

from balsam_celery import keys
from balsam_celery.celeryapp import redis_client
from balsam_celery.resources import NodeCapacity
from balsam_celery.site import Site
from balsam_celery.states import State
from balsam_celery.store import allocations
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationState
from balsam_celery.wire import (
    Ended,
    KillOrder,
    Record,
    Registered,
    Report,
    Started,
    TaskSpec,
    encode,
    from_plain,
)
from tests.store.making import task
from tests.waiting import wait_until


class Player:
    """Plays any number of pilots of one site."""

    def __init__(self, site: Site, app: Celery[Any], store: Store) -> None:
        self.prefix = site.settings.key_prefix
        self.client: redis.Redis = redis_client(site, timeout=2.0)
        self._app = app
        self._store = store
        self._number = 0

    def register(self, id: str, cores: Sequence[int] = (2,), lasts: float = 3600.0) -> None:
        """A pilot whose nodes n0… have so many cores, in an allocation of its own."""
        now = time.time()

        def allocate(conn: Any) -> None:
            allocations.insert_allocation(
                conn, id=f"a-{id}", queue="q", nodes=len(cores), wall_time=3600, run_dir="/r",
                now=now,
            )  # fmt: skip
            allocations.update_allocation(
                conn, f"a-{id}", (AllocationState.REQUESTED,), state=AllocationState.QUEUED
            )

        self._store.run(allocate)
        nodes = tuple(NodeCapacity(f"n{i}", tuple(range(count))) for i, count in enumerate(cores))
        self.tell(id, "pilot", Registered(id, f"a-{id}", "h", 1, now + lasts, nodes, now))

    def tell(self, pilot: str, node: str, *records: Record) -> list[int]:
        """Report numbered records; returns their numbers."""
        first = self._number + 1
        self._number += len(records)
        numbers = list(range(first, self._number + 1))
        report = Report(pilot, node, tuple(zip(numbers, records, strict=True)))
        self.client.rpush(keys.inbox(self.prefix), encode(report))
        return numbers

    def acknowledged(self, pilot: str, node: str) -> list[int]:
        """Numbers that the service has acknowledged to a worker so far."""
        key = keys.acks(self.prefix, pilot, node)
        return sorted({n for text in self.client.lrange(key, 0, -1) for n in json.loads(text)})

    def take(self, pilot: str, node: str = "n0") -> tuple[list[TaskSpec], list[KillOrder]]:
        """All that waits in a worker's queue."""
        specs: list[TaskSpec] = []
        orders: list[KillOrder] = []
        for name, plains in self.messages(keys.pilot_queue(pilot, node)):
            if name == keys.RUN:
                specs += [from_plain(TaskSpec, plain) for plain in plains]
            else:
                assert name == keys.KILL
                orders += [from_plain(KillOrder, plain) for plain in plains]
        return specs, orders

    def messages(self, queue: str) -> list[tuple[str, Any]]:
        """Name and last argument of each Celery message in a queue; takes them."""
        return [(message.headers["task"], message.payload[0][-1]) for message in self.raw(queue)]

    def raw(self, queue: str) -> list[Any]:
        """Messages of a queue, as a Celery worker gets them; takes them."""
        found = []
        with self._app.connection_for_read() as connection:
            channel = connection.default_channel
            while (message := channel.basic_get(queue, no_ack=True)) is not None:
                found.append(message)
        return found

    def wait_specs(self, count: int, pilot: str, node: str = "n0") -> list[TaskSpec]:
        """That many attempts for a worker."""
        found: list[TaskSpec] = []

        def enough() -> bool:
            found.extend(self.take(pilot, node)[0])
            return len(found) >= count

        wait_until(enough, 20, f"{count} attempts for {pilot}/{node}")
        assert len(found) == count
        return found

    def run(self, pilot: str, node: str, spec: TaskSpec, code: int = 0) -> list[int]:
        """Report start and end of an attempt."""
        now = time.time()
        self.tell(pilot, node, Started(spec.id, spec.attempt, now, 1))
        return self.tell(pilot, node, over(spec, code, now))

    def close(self) -> None:
        """Let go of Redis."""
        self.client.close()


def over(spec: TaskSpec, code: int = 0, now: float | None = None) -> Ended:
    """The program of an attempt ended by itself just now."""
    now = time.time() if now is None else now
    return Ended(
        spec.id, spec.attempt, "exit", "", now, started=now, exit_code=code, argv=spec.argv
    )


def wait_state(store: Store, id: str, state: State, timeout: float = 40.0) -> None:
    """Wait until a task has come to that state."""
    wait_until(lambda: task(store, id).state is state, timeout, f"{id} is {state}")
