"""A scheduler or a file system that hangs: tasks are placed and recorded all the same."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import update

from balsam_celery import keys
from balsam_celery.errors import SchedulerUnavailable
from balsam_celery.outbox import Outbox
from balsam_celery.schedulers.base import Job, JobNodes, JobRequest, Scheduler
from balsam_celery.service.leading import TIME_TO_LIVE
from balsam_celery.service.runtime import Service
from balsam_celery.site import Site, connect_store
from balsam_celery.states import State
from balsam_celery.store import allocations, schema
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationState, PilotState
from balsam_celery.wire import Ended, PilotOrder, Registered, decode
from tests.service.allocations.making import (
    allocation,
    dispatched,
    pilot,
    requested,
    running_pilot,
    set_allocation,
)
from tests.service.running.player import Player
from tests.store.making import add, history, program, task
from tests.waiting import wait_until


class Hanging(Scheduler):
    """Each command hangs until the test lets go, and then has no answer."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.hanging = 0

    def _hang(self) -> SchedulerUnavailable:
        self.hanging += 1
        self.go.wait(120)
        return SchedulerUnavailable("the command did not end in time")

    def submit(self, request: JobRequest) -> str:
        """Hang."""
        raise self._hang()

    def jobs(self, ids: Collection[str] = ()) -> dict[str, Job]:
        """Hang."""
        raise self._hang()

    def cancel(self, native_id: str) -> None:
        """Hang."""
        raise self._hang()

    def inside(self, environment: object) -> JobNodes:
        """Never called."""
        raise NotImplementedError


@pytest.fixture
def hanging() -> Hanging:
    """The site's scheduler."""
    return Hanging()


@pytest.fixture
def service(site: Site, app: Celery[Any], hanging: Hanging, store: Store) -> Iterator[Service]:
    """The whole service; the test calls its bodies as beat does, in threads."""
    backend: Any = app.backend
    made = Service(site, app, connect_store(site), hanging, backend)
    made.start()
    wait_until(lambda: made.engine.leadership.is_leader, 20, "it leads")
    yield made
    hanging.go.set()
    made.stop()


def test_a_hung_command_delays_nothing_else(
    service: Service, hanging: Hanging, site: Site, store: Store, player: Player
) -> None:
    waits, runs = requested(store, site), requested(store, site)
    # one whose submission has not been answered: the scheduler is asked for it by name
    set_allocation(store, waits, AllocationState.REQUESTED, native_id="", submitted=0.0)
    set_allocation(store, runs, AllocationState.RUNNING, native_id="x", started=time.time())
    bodies = [threading.Thread(target=body) for body in (service.pack, service.poll)]
    for thread in bodies:
        thread.start()
    wait_until(lambda: hanging.hanging == 2, 20, "both hang")
    player.register("p1", (1,))
    leads_until = time.monotonic() + 1.5 * TIME_TO_LIVE
    number = 0
    while time.monotonic() < leads_until:
        number += 1
        id = f"t{number:05}"
        add(store, program(id), now=time.time())
        [spec] = player.wait_specs(1, "p1")
        player.run("p1", "n0", spec)
        wait_until(lambda id=id: task(store, id).state is State.JOB_FINISHED, 20, "recorded")
        # beat goes on asking: those return at once
        service.pack()
        service.poll()
        service.housekeep()
        assert service.engine.leadership.is_leader
    assert hanging.hanging == 2
    assert all(thread.is_alive() for thread in bodies)
    hanging.go.set()
    for thread in bodies:
        thread.join(20)
    assert allocation(store, waits).submitted is not None, "it was tried"
    assert allocation(store, waits).state is AllocationState.REQUESTED
    assert "did not end in time" in allocation(store, runs).reason


def test_a_pilot_that_is_not_wanted_is_told_to_end(
    service: Service, site: Site, player: Player
) -> None:
    now = time.time()
    player.tell("px", "pilot", Registered("px", "nobody", "h", 1, now + 99, (), now, "j1"))
    key = keys.control(site.settings.key_prefix, "px")
    wait_until(lambda: player.client.llen(key) == 1, 20, "an order")
    [text] = player.client.lrange(key, 0, -1)
    assert decode(PilotOrder, text).action == "drain"
    assert player.client.ttl(key) > 0


def test_a_fault_in_one_ended_allocation_does_not_delay_others(
    service: Service, site: Site, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows that nothing of ours has written: the first to be reaped cannot be."""
    first, second = sorted(running_pilot(store, site, name) for name in ("p1", "p2"))
    with store.read() as conn:
        names = {one.allocation: one.id for one in allocations.list_pilots(conn)}
    for id in (first, second):
        set_allocation(store, id, AllocationState.ENDED, ended=time.time(), reason="the test")
    broken = update(schema.pilot).where(schema.pilot.c.id == names[first])
    with store.write() as conn:
        conn.execute(broken.values(nodes=[{"nonsense": 1}]))
    service.poll()
    assert pilot(store, names[second]).state is PilotState.ENDED
    assert f"reaping allocation {first} has a fault" in caplog.text


def test_an_outbox_on_a_file_system_that_hangs_delays_nothing_else(
    service: Service, site: Site, store: Store
) -> None:
    """A pipe that nobody writes to hangs as it does."""
    first, second = sorted(running_pilot(store, site, name) for name in ("p1", "p2"))
    with store.read() as conn:
        names = {one.allocation: one.id for one in allocations.list_pilots(conn)}
    dispatched(store, "task01", names[first], running=True)
    for id in (first, second):
        set_allocation(store, id, AllocationState.ENDED, ended=time.time(), reason="the test")
    pipe = Path(allocation(store, first).run_dir) / names[first] / "n0.outbox"
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    body = threading.Thread(target=service.poll, daemon=True)
    body.start()
    body.join(60)
    hangs = body.is_alive()
    assert task(store, "task01").state is State.RUNNING
    # it answers: there is nothing
    gone = pipe.rename(pipe.with_suffix(".gone"))
    with suppress(OSError):  # nobody reads it
        os.close(os.open(gone, os.O_WRONLY | os.O_NONBLOCK))
    body.join(60)
    assert not hangs
    assert pilot(store, names[second]).state is PilotState.ENDED

    def reaped() -> bool:
        service.poll()
        return task(store, "task01").state is not State.RUNNING

    wait_until(reaped, 30, "it is taken back")


def test_an_outcome_that_sql_refuses_keeps_no_allocation_from_its_end(
    service: Service, site: Site, store: Store
) -> None:
    id = running_pilot(store, site)
    for name in ("sound1", "faulty"):
        dispatched(store, name, "p1", running=True)
    set_allocation(store, id, AllocationState.ENDED, ended=time.time(), reason="the test")
    directory = Path(allocation(store, id).run_dir) / "p1"
    directory.mkdir(parents=True)
    outbox = Outbox(directory / "n0.outbox")
    outbox.receive([("faulty", 1), ("sound1", 1)])
    now = time.time()
    outbox.end(
        [
            Ended("faulty", 1, "exit", "", now, now, exit_code=10**30),
            Ended("sound1", 1, "exit", "", now, now, exit_code=0),
        ]
    )
    outbox.close()

    def ended() -> bool:
        service.poll()
        return pilot(store, "p1").state is PilotState.ENDED

    wait_until(ended, 30, "the allocation is over for the service too")
    assert task(store, "sound1").state is State.JOB_FINISHED
    assert State.RESTART_READY in history(store, "faulty")
