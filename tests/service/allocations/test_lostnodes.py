"""Nodes that the scheduler gives up under a living pilot (R4)."""

from __future__ import annotations

import pytest
import redis

from balsam_celery import keys
from balsam_celery.resources import NodeCapacity
from balsam_celery.schedulers.base import Job, JobState, Scheduler
from balsam_celery.service.lostnodes import LostNode, find, give_up
from balsam_celery.service.pack import pack
from balsam_celery.service.record import record
from balsam_celery.site import Site
from balsam_celery.states import State
from balsam_celery.store import allocations
from balsam_celery.store.allocations import LIVE_PILOTS
from balsam_celery.store.engine import Store
from balsam_celery.wire import Ended, PilotOrder, Report, WorkerLost, decode, to_plain
from tests.service.allocations.faulty import Told
from tests.service.allocations.making import dispatched, pilot, running_pilot
from tests.store.making import add, program, task

S = State


@pytest.fixture
def told(scheduler: Scheduler) -> Told:
    """A scheduler that says what the test wants."""
    return Told(scheduler)


def job(*nodes: str) -> Job:
    return Job("x", "", JobState.RUNNING, nodes=nodes)


def tell(store: Store, *records: Ended | WorkerLost) -> None:
    store.run(lambda conn: record(conn, records, now=store.clock()))


def gives_up(store: Store, site: Site, client: redis.Redis, *lost: LostNode) -> None:
    """What the service does with them, and then the engine with its inbox."""
    prefix = site.settings.key_prefix
    for one in lost:
        give_up(store, client, prefix, one)
    for text in client.lrange(keys.inbox(prefix), 0, -1):
        tell(
            store, *(one for _, one in decode(Report, text).records if isinstance(one, WorkerLost))
        )
    client.delete(keys.inbox(prefix))


def orders(site: Site, client: redis.Redis) -> list[PilotOrder]:
    key = keys.control(site.settings.key_prefix, "p1")
    return [decode(PilotOrder, text) for text in client.lrange(key, 0, -1)]


def test_a_node_that_the_job_has_no_more_is_lost(
    store: Store, site: Site, told: Told, client: redis.Redis
) -> None:
    """Its processes may live, as on one that an administrator has set down: the pilot knows."""
    id = running_pilot(store, site)
    dispatched(store, "here01", "p1", running=True)
    dispatched(store, "gone01", "p1", nodes=("n1",), running=True)
    [lost] = find(store, told, {id: job("n0")})
    assert (lost.pilot.id, lost.node) == ("p1", "n1")
    gives_up(store, site, client, lost, lost)
    assert [(one.action, one.node) for one in orders(site, client)] == [("lose", "n1")]
    assert [node["lost"] for node in pilot(store, "p1").nodes] == [False, True]
    assert task(store, "gone01").state is S.RUNNING
    tell(store, WorkerLost("p1", "n1", lost.reason, False, 1004.0))
    assert task(store, "gone01").state is S.RESTART_READY
    assert task(store, "here01").state is S.RUNNING
    assert find(store, told, {id: job("n0")}) == [], "known by now"


@pytest.mark.parametrize(
    "nodes", [(), ("n0", "n1"), ("n1",), ("other",)], ids=["untold", "all", "headless", "foreign"]
)
def test_what_is_no_word_about_a_node(
    store: Store, site: Site, told: Told, nodes: tuple[str, ...]
) -> None:
    id = running_pilot(store, site)
    dispatched(store, "task01", "p1", nodes=("n1",), running=True)
    assert find(store, told, {id: job(*nodes)}) == []
    assert find(store, told, {}) == []


def test_a_node_that_is_only_silent_keeps_its_attempts(
    store: Store, site: Site, told: Told, client: redis.Redis
) -> None:
    id = running_pilot(store, site)
    dispatched(store, "task01", "p1", nodes=("n1",), running=True)
    dispatched(store, "other1", "p1", running=True)
    tell(store, WorkerLost("p1", "n1", "no word from it", False, 1003.0, confirmed=False))
    assert [node["lost"] for node in pilot(store, "p1").nodes] == [False, True]
    assert task(store, "task01").state is S.RUNNING
    assert find(store, told, {id: job("n0", "n1")}) == []
    told.down = frozenset({"n0", "n1"})
    told.is_away = True
    assert find(store, told, {id: job()}) == [], "not known is not down"
    told.is_away = False
    [lost] = find(store, told, {id: job()})
    assert lost.node == "n1", "the other one is not lost by its pilot's word"
    gives_up(store, site, client, lost)
    assert task(store, "task01").state is S.RUNNING, "its pilot knows when that is over"
    assert [(one.action, one.node) for one in orders(site, client)] == [("lose", "n1")]
    tell(store, WorkerLost("p1", "n1", lost.reason, False, 1004.0))
    assert task(store, "task01").state is S.RESTART_READY
    assert task(store, "other1").state is S.RUNNING
    assert find(store, told, {id: job()}) == []


def test_the_pilot_may_confirm_later(store: Store, site: Site) -> None:
    running_pilot(store, site)
    dispatched(store, "task01", "p1", nodes=("n1",), running=True)
    tell(store, WorkerLost("p1", "n1", "no word from it", False, 1003.0, confirmed=False))
    assert task(store, "task01").state is S.RUNNING
    tell(store, WorkerLost("p1", "n1", "all has ended there", False, 1004.0))
    assert task(store, "task01").state is S.RESTART_READY


def test_a_gang_attempt_on_a_lost_node_is_left_to_its_pilot(
    store: Store, site: Site, told: Told, client: redis.Redis
) -> None:
    id = running_pilot(store, site)
    dispatched(store, "wide01", "p1", nodes=("n0", "n1"), running=True)
    tell(store, WorkerLost("p1", "n1", "no word from it", False, 1003.0, confirmed=False))
    told.down = frozenset({"n1"})
    [lost] = find(store, told, {id: job()})
    gives_up(store, site, client, lost)
    assert task(store, "wide01").state is S.RUNNING
    assert [(one.action, one.node) for one in orders(site, client)] == [("lose", "n1")]


def test_packing_does_not_count_on_lost_nodes(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis
) -> None:
    running_pilot(store, site)
    add(store, program("wide01", num_nodes=2))
    assert not pack(store, scheduler, site, client).plan.requests
    tell(store, WorkerLost("p1", "n1", "no word from it", False, 1003.0, confirmed=False))
    [request] = pack(store, scheduler, site, client).plan.requests
    assert request.nodes == 2


def test_a_pilot_that_waits_for_a_lost_node_is_told(
    store: Store, site: Site, told: Told, client: redis.Redis
) -> None:
    """Its gang worker, started again, sweeps all nodes before it takes what is sent to the rest."""
    id = running_pilot(store, site)
    store.run(
        lambda conn: allocations.update_pilot(
            conn, "p1", LIVE_PILOTS, nodes=[to_plain(NodeCapacity(f"n{n}", (0, 1))) for n in "012"]
        )
    )
    tell(store, WorkerLost("p1", "n2", "no word from it", False, 1003.0, confirmed=False))
    told.down = frozenset({"n2"})
    assert find(store, told, {id: job()}) == [], "nobody waits for it"
    dispatched(store, "wide01", "p1", nodes=("n0", "n1"))
    [by_nodes] = find(store, told, {id: job("n0", "n1")})
    [by_state] = find(store, told, {id: job()})
    assert {by_nodes.node, by_state.node} == {"n2"}
    gives_up(store, site, client, by_nodes)
    gives_up(store, site, client, by_nodes)
    assert [(one.action, one.node) for one in orders(site, client)] == [("lose", "n2")]
    assert task(store, "wide01").state is S.DISPATCHED
