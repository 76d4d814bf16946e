"""A job that is over by the scheduler's word, and a pilot of which nobody knows whether it is."""

from __future__ import annotations

from dataclasses import replace

import redis

from balsam_celery import keys
from balsam_celery.resources import NodeCapacity
from balsam_celery.schedulers.base import Capabilities, Job, JobState, Scheduler
from balsam_celery.service.housekeep import sweep
from balsam_celery.service.lingering import Lingering
from balsam_celery.service.poll import Poller
from balsam_celery.service.record import record
from balsam_celery.service.verdict import GONE_AFTER
from balsam_celery.site import Site
from balsam_celery.store import allocations
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationState, PilotState
from balsam_celery.wire import Heartbeat, PilotEnded, PilotOrder, decode, encode, to_plain
from tests.service.allocations.faulty import Told
from tests.service.allocations.making import (
    allocation,
    dispatched,
    pilot,
    requested,
    running_pilot,
    set_allocation,
)
from tests.store.conftest import Clock

ENDED = Job("x", "", JobState.ENDED, ended=1000.0, reason="its first node was lost")


class NoProof(Told):
    """Its word is not more than that."""

    capabilities = Capabilities(end_is_proof=False)


class Case:
    """A running allocation whose job PBS calls finished."""

    def __init__(
        self,
        store: Store,
        site: Site,
        scheduler: Scheduler,
        client: redis.Redis,
        clock: Clock,
    ) -> None:
        told = NoProof(scheduler)
        told.answer = {"x": ENDED}
        self.prefix = site.settings.key_prefix
        self.patience = site.settings.over_after
        self.store, self.client = store, client
        self.poller = Poller(store, told, site, Lingering(store, client, site, clock), timer=clock)

    def beat(self, node: str, time: float, state: str = "running") -> None:
        key = keys.heartbeats(self.prefix, "p1")
        self.client.hset(key, node, encode(Heartbeat(time, 1, state)))

    def orders(self) -> list[PilotOrder]:
        found = self.client.lrange(keys.control(self.prefix, "p1"), 0, -1)
        return [decode(PilotOrder, one) for one in found]


def test_it_is_told_to_end_and_waited_for_while_it_is_heard(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    id = running_pilot(store, site)
    dispatched(store, "task01", "p1", running=True)
    case = Case(store, site, scheduler, client, clock)
    for _ in range(5):
        case.beat("n0", clock.now)
        assert case.poller.poll() == []
        row = allocation(store, id)
        assert row.state is AllocationState.RUNNING
        assert "its pilot p1 has not said so" in row.reason
        clock.now += case.patience - 1
    assert pilot(store, "p1").state is PilotState.DRAINING
    assert [one.action for one in case.orders()] == ["drain"]
    assert client.ttl(keys.control(case.prefix, "p1")) > 0
    assert case.poller.poll() == []
    clock.now += 1
    assert case.poller.poll() == [id]
    row = allocation(store, id)
    assert (row.state, row.reason, row.ended) == (
        AllocationState.ENDED, "its first node was lost", 1000.0,
    )  # fmt: skip


def test_a_farewell_is_enough(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    id = running_pilot(store, site)
    case = Case(store, site, scheduler, client, clock)
    case.beat("n0", clock.now)
    last = PilotEnded("p1", "SIGTERM received", clock.now)
    store.run(lambda conn: record(conn, [last], now=clock.now))
    assert case.poller.poll() == [id]
    assert not case.orders()


def test_the_one_worker_of_a_node_knows_of_every_program(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    id = requested(store, site)
    set_allocation(store, id, AllocationState.RUNNING, native_id="x", started=clock.now)
    store.run(
        lambda conn: allocations.insert_pilot(
            conn,
            id="p1",
            allocation=id,
            host="here",
            pid=1,
            nodes=[to_plain(NodeCapacity("n0", (0, 1)))],
            end_time=clock.now + 300,
            now=clock.now,
        )
    )
    case = Case(store, site, scheduler, client, clock)
    case.beat("pilot", clock.now, "draining")
    case.beat("n0", clock.now)
    assert case.poller.poll() == []
    case.beat("n0", clock.now, "draining")
    assert case.poller.poll() == [id]


def test_silence_counts_only_while_redis_answers(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    id = running_pilot(store, site)
    case = Case(store, site, scheduler, client, clock)
    assert case.poller.poll() == []
    dead = redis.Redis(port=1)
    working = case.poller._lingering
    assert working is not None
    working._client = dead
    clock.now += case.patience
    assert case.poller.poll() == []
    assert "whether its pilot lives is not known" in allocation(store, id).reason
    working._client = client
    assert case.poller.poll() == [], "begins anew"
    clock.now += case.patience
    assert case.poller.poll() == [id]
    dead.close()


def test_where_the_word_is_proof_nothing_waits(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    id = running_pilot(store, site)
    told = Told(scheduler)
    told.answer = {"x": replace(ENDED, reason="its node was lost")}
    case = Case(store, site, scheduler, client, clock)
    case.beat("n0", clock.now)
    assert Poller(store, told, site, Lingering(store, client, site, clock), timer=clock).poll() == [
        id
    ]


def test_an_ended_pilot_that_is_heard_again_is_told_to_end(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    running_pilot(store, site)
    case = Case(store, site, scheduler, client, clock)
    store.run(
        lambda conn: allocations.update_pilot(
            conn, "p1", (PilotState.LIVE,), state=PilotState.ENDED, ended=clock.now, reason="lost"
        )
    )
    sweep(store, client, site)
    assert not case.orders()
    case.beat("pilot", clock.now)
    sweep(store, client, site)
    assert case.orders() == [PilotOrder("drain", "its allocation ended: lost")]
    assert client.ttl(keys.control(case.prefix, "p1")) > 0
    sweep(store, client, site)
    assert len(case.orders()) == 1, "its order stays until it is taken"
    client.delete(keys.control(case.prefix, "p1"))


def missing(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> Case:
    """A case whose job the scheduler does not tell of, though its word would be proof."""
    case = Case(store, site, scheduler, client, clock)
    told = Told(scheduler)
    told.answer = {}
    case.poller = Poller(store, told, site, Lingering(store, client, site, clock), timer=clock)
    return case


def test_a_pilot_that_is_heard_outlives_answers_without_its_job(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    id = running_pilot(store, site)
    case = missing(store, site, scheduler, client, clock)
    for _ in range(5):
        case.beat("n0", clock.now)
        assert case.poller.poll() == []
        clock.now += GONE_AFTER - 1
    row = allocation(store, id)
    assert row.state is AllocationState.RUNNING
    assert "its pilot p1 is heard" in row.reason
    assert not case.orders(), "it goes on"
    assert pilot(store, "p1").state is PilotState.LIVE
    clock.now += 1
    assert case.poller.poll() == [id]


def test_a_dead_pilot_whose_job_is_missing_is_not_waited_for(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    id = running_pilot(store, site)
    case = missing(store, site, scheduler, client, clock)
    case.beat("n0", clock.now)
    assert case.poller.poll() == []
    clock.now += GONE_AFTER
    assert case.poller.poll() == [id]
