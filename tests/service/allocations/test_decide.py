"""What ``balsam.pack`` decides by the policy of the site, and what it foresees."""

from __future__ import annotations

import dataclasses

import pytest
import redis
from sqlalchemy import update

from balsam_celery.errors import SchedulerUnavailable
from balsam_celery.packing import Lane, Window
from balsam_celery.resources import NodeCapacity
from balsam_celery.schedulers.base import IdleWindow, Scheduler
from balsam_celery.schedulers.local import LocalScheduler
from balsam_celery.service import pack as service_pack
from balsam_celery.service.decide import Decision, decide, foresee
from balsam_celery.service.estimates import estimates
from balsam_celery.service.existing import existing
from balsam_celery.service.pack import pack
from balsam_celery.settings import QueueSettings
from balsam_celery.site import Site
from balsam_celery.states import State
from balsam_celery.store import allocations, scans, schema
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationState, PilotState
from balsam_celery.wire import to_plain
from tests.service.allocations.making import (
    dispatched,
    requested,
    rows,
    running_pilot,
    set_allocation,
)
from tests.store.conftest import Clock
from tests.store.making import add, program, task


def with_packing(site: Site, kind: str = "slurm", **packing: object) -> Site:
    """The site on a machine whose node-hours are charged, with 16 nodes of two cores."""
    queue = QueueSettings(max_nodes=16, max_wall_time=36_000, cores_per_node=2)
    settings = dataclasses.replace(
        site.settings,
        scheduler=dataclasses.replace(site.settings.scheduler, kind=kind),
        queues={"local": queue},
        packing=dataclasses.replace(site.settings.packing, **packing),
    )
    return dataclasses.replace(site, settings=settings)


def decided(store: Store, site: Site, *windows: Window) -> Decision:
    with store.read() as conn:
        return decide(conn, site.settings, store.clock(), windows)


def test_what_was_charged_is_taken_from_the_budget(store: Store, site: Site, clock: Clock) -> None:
    site = with_packing(site, budget=1.0)
    assert decided(store, site).budget == 3600
    used = requested(store, site)  # two nodes
    set_allocation(store, used, AllocationState.RUNNING, native_id="x", started=clock.now)
    set_allocation(store, used, AllocationState.ENDED, ended=clock.now + 100)
    never = requested(store, site)
    set_allocation(store, never, AllocationState.ENDED, ended=clock.now)
    assert decided(store, site).budget == 3400
    waits = requested(store, site)  # 300 s
    assert decided(store, site).budget == 2800
    set_allocation(store, waits, AllocationState.RUNNING, native_id="y", started=clock.now)
    assert decided(store, site).budget == 2800
    assert decided(store, with_packing(site, budget=0.0)).budget is None


def test_a_pilot_whose_nodes_cannot_be_read_counts_for_nothing(
    store: Store, site: Site, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows that nothing of ours has written keep nothing from being asked for."""
    bad, good = (running_pilot(store, site, name) for name in ("p1", "p2"))
    dispatched(store, "task01", "p1", running=True)
    with store.write() as conn:
        broken = update(schema.pilot).where(schema.pilot.c.id == "p1")
        conn.execute(broken.values(nodes=[{"nonsense": 1}]))
    decided(store, site)
    with store.read() as conn:
        live = allocations.list_allocations(conn)
        seen = existing(conn, site.settings, live, estimates(conn, clock.now), clock.now)
    assert {one.id: one.nodes for one in seen} == {bad: 0, good: 2}
    assert "pilot p1 counts for nothing: its nodes cannot be read" in caplog.text


def test_without_a_budget_left_the_backlog_waits(store: Store, site: Site, clock: Clock) -> None:
    add(store, program("task01"))
    plan = decided(store, with_packing(site, budget=0.01)).plan
    assert plan.requests == ()
    assert plan.waiting[0].code == "budget"


def test_shapes_hold_priority_expected_time_and_restartable(
    store: Store, site: Site, clock: Clock
) -> None:
    add(
        store,
        *(program(f"quick{n}", application="sim", expected_time=10 + n / 10) for n in range(5)),
        program("slow01", expected_time=50.0),
        program("first1", priority=3),
        program("again1", restartable=True),
        now=clock.now,
    )
    clock.now += 7
    with store.read() as conn:
        shapes = scans.backlog(conn, now=clock.now)
    told = {
        (s.priority, s.restartable, s.expected_time and round(s.expected_time, 6), s.count)
        for s in shapes
    }
    assert told == {
        (0, False, 10.2, 5),
        (0, False, 50.0, 1),
        (3, False, None, 1),
        (0, True, None, 1),
    }
    assert all(round(clock.now - shape.oldest, 3) == 7 for shape in shapes)


def test_lanes_are_free_when_their_tasks_are_likely_to_end(
    store: Store, site: Site, clock: Clock
) -> None:
    running_pilot(store, site)
    dispatched(store, "task01", "p1", running=True)
    store.run(lambda conn: conn.execute(update(schema.task).values(expected_time=20.0)))
    clock.now += 5
    with store.read() as conn:
        live = allocations.list_allocations(conn)
        [one] = existing(conn, site.settings, live, estimates(conn, clock.now), clock.now)
    assert one.lanes == (Lane(1, 60.0, 15.0, name="n0"), Lane(2, 0.0, 0.0, name="n1", idle_for=0.0))
    clock.now += 20
    with store.read() as conn:
        [one] = existing(conn, site.settings, live, estimates(conn, clock.now), clock.now)
    assert one.lanes[0] == Lane(1, 40.0, 25.0, name="n0")


def test_nodes_of_a_pilot_that_differ_are_told_apart(store: Store, site: Site) -> None:
    running_pilot(store, site)
    nodes = [
        NodeCapacity("n0", (0, 1)),
        NodeCapacity("n1", (0, 1), (0,)),
        NodeCapacity("n2", (2, 3)),
    ]
    store.run(
        lambda conn: allocations.update_pilot(
            conn, "p1", (PilotState.LIVE,), nodes=[to_plain(node) for node in nodes]
        )
    )
    now = store.clock()
    with store.read() as conn:
        live = allocations.list_allocations(conn)
        [one] = existing(conn, site.settings, live, estimates(conn, now), now)
    assert one.node == nodes[0]
    assert [lane.node for lane in one.lanes] == [None, dataclasses.replace(nodes[1], name=""), None]


def test_idle_nodes_are_asked_for_first(store: Store, site: Site, clock: Clock) -> None:
    site = with_packing(site)
    add(store, *(program(f"task{n:04}") for n in range(4000)), now=clock.now)
    assert {r.code for r in decided(store, site).plan.requests} == {"backlog"}
    first, *_ = decided(store, site, Window("local", 2, 36_000.0)).plan.requests
    assert (first.code, first.nodes) == ("window", 2)


class Forgetful(LocalScheduler):
    """One that does not say what is idle."""

    asked = 0

    def idle(self) -> tuple[IdleWindow, ...]:
        self.asked += 1
        raise SchedulerUnavailable("the controller is down")


def test_a_scheduler_that_does_not_tell_what_is_idle_is_asked_for_jobs_all_the_same(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    assert isinstance(scheduler, LocalScheduler)
    silent = Forgetful(scheduler.directory, scheduler.options)
    assert not pack(store, silent, site, client).plan.requests
    assert silent.asked == 0
    add(store, program("task01"))
    assert len(pack(store, silent, site, client).submitted) == 1
    assert silent.asked == 1
    pack(store, silent, site, client)
    assert silent.asked == 1


def test_idle_nodes_are_looked_for_beside_what_is_queued(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    assert isinstance(scheduler, LocalScheduler)
    silent = Forgetful(scheduler.directory, scheduler.options)
    add(store, program("task01"))
    pack(store, silent, site, client)
    pack(store, silent, site, client, look_beside=True)
    assert silent.asked == 2
    # nothing is queued any more
    set_allocation(store, rows(store)[0].id, AllocationState.RUNNING, started=clock.now)
    pack(store, silent, site, client, look_beside=True)
    assert silent.asked == 2


def test_what_was_decided_of_other_allocations_is_not_done(
    store: Store,
    site: Site,
    scheduler: Scheduler,
    client: redis.Redis,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add(store, program("task01"))

    def decide_late(*told: object, **named: object) -> Decision:
        decision = decide(*told, **named)  # type: ignore[arg-type]
        requested(store, site)  # another one, in the meantime
        return decision

    monkeypatch.setattr(service_pack, "decide", decide_late)
    assert not pack(store, scheduler, site, client).plan.requests
    assert {row.asked_for for row in rows(store)} == {"a test"}


def test_what_is_foreseen_is_what_is_done(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    add(store, *(program(f"task{n:02}") for n in range(5)), program("wide01", num_nodes=9))
    foreseen = foresee(store, scheduler, site.settings)
    assert rows(store) == []
    assert task(store, "wide01").state is State.PREPROCESSED
    packed = pack(store, scheduler, site, client)
    assert packed.plan == foreseen.plan
    assert len(foreseen.hopeless) == 1
    assert [(row.nodes, row.wall_time) for row in rows(store)] == [
        (request.nodes, request.wall_time) for request in foreseen.plan.requests
    ]
