"""``balsam.pack`` from rows to jobs."""

from __future__ import annotations

import dataclasses

import redis
from sqlalchemy import update

from balsam_celery.limits import policy_of
from balsam_celery.packing import Request
from balsam_celery.resources import GpuShare, NodeCapacity, NodeShare
from balsam_celery.runtimes import Run, shape_of
from balsam_celery.schedulers.base import Scheduler
from balsam_celery.service.estimates import estimates
from balsam_celery.service.existing import SILENCE, SILENT_MARGINS, existing
from balsam_celery.service.pack import pack
from balsam_celery.service.poll import Poller
from balsam_celery.site import Site
from balsam_celery.states import State
from balsam_celery.store import allocations, runtimes, schema
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationState
from balsam_celery.wire import to_plain
from tests.service.allocations.making import (
    REQUEST,
    dispatched,
    pilot_in,
    requested,
    rows,
    running_pilot,
    set_allocation,
)
from tests.store.conftest import Clock
from tests.store.making import add, history, program, race, task
from tests.waiting import wait_until


def test_no_backlog_asks_for_nothing(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis
) -> None:
    packed = pack(store, scheduler, site, client)
    assert not packed.plan.requests
    assert not packed.submitted
    assert rows(store) == []


def test_the_backlog_becomes_a_job_once(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis
) -> None:
    add(store, *(program(f"task{n:02}") for n in range(8)))
    packed = pack(store, scheduler, site, client)
    [row] = rows(store)
    assert packed.submitted == (row.id,)
    assert row.nodes == 4
    assert len(scheduler.jobs()) == 1
    again = pack(store, scheduler, site, client)
    assert not again.plan.requests
    assert not again.plan.cancel


def test_run_at_once_it_asks_once(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis
) -> None:
    add(store, program("task01"))
    race(3, lambda _: pack(store, scheduler, site, client))
    assert len(rows(store)) == 1
    assert len(scheduler.jobs()) <= 1
    pack(store, scheduler, site, client)
    assert len(scheduler.jobs()) == 1


def test_queued_ones_that_nothing_needs_are_cancelled(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    id = requested(store, site)
    assert pack(store, scheduler, site, client).plan.cancel == (id,)
    [row] = rows(store, AllocationState.ENDED)
    assert (row.id, row.reason) == (id, "given up: no waiting task needs it any more")
    assert scheduler.jobs() == {}


def test_a_cancelled_one_takes_room_until_it_is_gone(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    site = dataclasses.replace(
        site,
        settings=dataclasses.replace(
            site.settings, packing=dataclasses.replace(site.settings.packing, max_allocations=1)
        ),
    )
    id = running_pilot(store, site)
    store.run(
        lambda conn: allocations.update_allocation(
            conn, id, (AllocationState.RUNNING,), cancel_requested=clock.now
        )
    )
    add(store, program("task01"))
    packed = pack(store, scheduler, site, client)
    assert not packed.plan.requests
    assert "max_allocations" in packed.plan.waiting[0][1]


def test_a_running_pilot_takes_what_it_can(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    running_pilot(store, site)  # two nodes of two cores for 300 s
    dispatched(store, "runs01", "p1", running=True)
    add(store, program("task01"))
    assert not pack(store, scheduler, site, client).plan.requests
    add(store, program("wide01", num_nodes=4))
    [request] = pack(store, scheduler, site, client).plan.requests
    assert request.nodes == 4
    assert not pack(store, scheduler, site, client).plan.cancel


def test_a_pilot_near_its_end_takes_nothing(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    running_pilot(store, site)
    add(store, program("task01"))
    clock.now += 230  # it would take 60 s, and the pilot ends in 70, less the drain margin
    assert len(pack(store, scheduler, site, client).plan.requests) == 1


def test_a_pilot_that_starts_up_is_counted_on(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    id = requested(store, site)
    set_allocation(store, id, AllocationState.RUNNING, native_id="x", started=clock.now)
    add(store, program("task01"))
    assert not pack(store, scheduler, site, client).plan.requests
    clock.now += 290
    assert pack(store, scheduler, site, client).plan.requests


def test_a_pilot_that_never_comes_is_not_waited_for(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    long = requested(store, site, Request("local", 2, 36_000, "a test"))
    set_allocation(store, long, AllocationState.RUNNING, native_id="x", started=clock.now)
    add(store, program("task01"))
    silence = max(SILENCE, SILENT_MARGINS * policy_of(site.settings).startup_margin)
    clock.now += silence - 1
    assert not pack(store, scheduler, site, client).plan.requests
    clock.now += 2
    assert pack(store, scheduler, site, client).plan.requests


def test_pilots_of_allocations_that_ended_are_not_read(
    store: Store, site: Site, clock: Clock
) -> None:
    ended, live = running_pilot(store, site, "p0"), running_pilot(store, site, "p1")
    set_allocation(store, ended, AllocationState.ENDED, ended=clock.now)
    # in no known state, it fails whoever reads it
    broken = schema.pilot.update().where(schema.pilot.c.id == "p0").values(state="BROKEN")
    store.run(lambda conn: conn.execute(broken))
    with store.read() as conn:
        there = allocations.list_allocations(conn, allocations.LIVE_ALLOCATIONS)
        [one] = existing(conn, site.settings, there, estimates(conn, clock.now), clock.now)
    assert (one.id, len(one.lanes)) == (live, 2)


def test_a_lane_tells_what_its_task_holds(store: Store, site: Site, clock: Clock) -> None:
    running_pilot(store, site)
    nodes = [NodeCapacity(name, (0, 1), (0, 1), 100) for name in ("n0", "n1")]
    share = NodeShare("n0", (0,), (GpuShare(1, 0.5),), 60)
    dispatched(store, "task01", "p1", running=True)
    store.run(
        lambda conn: (
            conn.execute(update(schema.task).values(shares=[to_plain(share)])),
            conn.execute(update(schema.pilot).values(nodes=[to_plain(one) for one in nodes])),
        )
    )
    with store.read() as conn:
        live = allocations.list_allocations(conn)
        [one] = existing(conn, site.settings, live, estimates(conn, clock.now), clock.now)
    [busy, idle] = one.lanes
    assert (busy.free_cores, busy.gpus, busy.memory) == (1, (500_000, 1_000_000), 40)
    assert (idle.free_cores, idle.gpus, idle.memory) == (2, None, None)


def test_what_nothing_can_hold_fails_with_the_reason(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis
) -> None:
    """Submission refuses such a task; a change of ``site.toml`` may still make one."""
    add(
        store,
        program("wide01", num_nodes=9),
        program("child1", parents=("wide01",)),
        program("task01"),
    )
    packed = pack(store, scheduler, site, client)
    assert {change.row.id for change in packed.changes} == {"wide01", "child1"}
    assert task(store, "wide01").state is State.FAILED
    assert "num_nodes is 9" in task(store, "wide01").reason
    assert task(store, "child1").state is State.FAILED
    assert history(store, "task01")[-1] is State.PREPROCESSED
    assert len(packed.plan.requests) == 1


def test_allocations_that_come_to_nothing_slow_down(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    add(store, program("task01"))
    times = []
    for _ in range(150):
        for row in rows(store, AllocationState.REQUESTED, AllocationState.QUEUED):
            times.append(clock.now)
            set_allocation(store, row.id, AllocationState.FAILED, ended=clock.now, reason="no")
        pack(store, scheduler, site, client)
        clock.now += 2
    assert 5 <= len(times) <= 8
    # one that had a pilot ends the series
    id = requested(store, site, REQUEST)
    set_allocation(store, id, AllocationState.RUNNING, native_id="x", started=clock.now)
    pilot_in(store, id)
    set_allocation(store, id, AllocationState.ENDED, ended=clock.now)
    assert pack(store, scheduler, site, client).plan.requests


def test_a_job_that_ended_unused_is_asked_for_again(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    add(store, program("task01"))
    [first] = pack(store, scheduler, site, client).submitted
    [native_id] = scheduler.jobs()
    scheduler.cancel(native_id)
    poller = Poller(store, scheduler, site)

    def ended() -> bool:
        poller.poll()
        return [row.id for row in rows(store, AllocationState.ENDED)] == [first]

    wait_until(ended, 30, "the job has ended")
    # the scheduler's times are real ones, the store's are the test's
    clock.now = max(clock.now, rows(store)[0].ended or 0.0)
    assert not pack(store, scheduler, site, client).plan.requests
    clock.now += 3
    [second] = pack(store, scheduler, site, client).submitted
    assert second != first
    assert len(scheduler.jobs()) == 2


def learn(store: Store, application: str, *seconds: float) -> None:
    runs = [Run(application, shape_of(1, 1, 1, 0.0), one) for one in seconds]
    store.run(lambda conn: runtimes.add(conn, runs))


def test_amounts_are_planned_by_what_earlier_runs_took(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    add(store, *(program(f"task{n:02}", application="relax") for n in range(24)))
    [limit] = pack(store, scheduler, site, client).plan.requests
    set_allocation(store, rows(store)[0].id, AllocationState.FAILED)
    learn(store, "relax", *[6.0] * 20)
    clock.now += 100
    [learned] = pack(store, scheduler, site, client).plan.requests
    # three rounds; of the last one the limit must fit all the same
    assert (limit.nodes, learned.nodes) == (4, 4)
    assert limit.wall_time - learned.wall_time >= 1.5 * (60 - 6)
    assert learned.wall_time >= 60


def test_a_lane_is_free_when_earlier_runs_would_have_ended(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    # where nodes are given back, others that are idle are asked for at once
    packing = dataclasses.replace(site.settings.packing, release_idle_nodes=False)
    site = dataclasses.replace(site, settings=dataclasses.replace(site.settings, packing=packing))
    running_pilot(store, site)  # two nodes for 300 s
    for node in ("n0", "n1"):
        dispatched(store, f"runs-{node}", "p1", nodes=(node,), running=True)
    busy = {"wall_time": 270, "application": "relax"}
    store.run(lambda conn: conn.execute(update(schema.task).values(busy)))
    add(store, program("wide01", num_nodes=2))
    learn(store, "relax", *[60.0] * 20)
    assert not pack(store, scheduler, site, client).plan.requests
    # they outlive that: now they are taken to run as long again, and the pilot ends too soon
    clock.now += 150
    [request] = pack(store, scheduler, site, client).plan.requests
    assert request.nodes >= 2
    assert task(store, "runs-n0").state is State.RUNNING


def test_where_nothing_is_known_a_lane_is_busy_for_its_limit(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis
) -> None:
    running_pilot(store, site)
    for node in ("n0", "n1"):
        dispatched(store, f"runs-{node}", "p1", nodes=(node,), running=True)
    store.run(lambda conn: conn.execute(update(schema.task).values(wall_time=270)))
    add(store, program("wide01", num_nodes=2))
    assert pack(store, scheduler, site, client).plan.requests
