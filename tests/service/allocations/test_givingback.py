"""Idle nodes of living pilots on their way back to the scheduler."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import pytest
import redis

from balsam_celery import keys
from balsam_celery.errors import SchedulerError, SchedulerUnavailable
from balsam_celery.packing import Release
from balsam_celery.schedulers.base import Capabilities, Job, JobState, Scheduler
from balsam_celery.service import givingback, idle, place
from balsam_celery.service.decide import foresee
from balsam_celery.service.lostnodes import find
from balsam_celery.service.pack import pack
from balsam_celery.service.record import record
from balsam_celery.site import Site
from balsam_celery.store import allocations
from balsam_celery.store.engine import Store
from balsam_celery.wire import PilotOrder, WorkerLost, decode
from tests.service.allocations.faulty import Told
from tests.service.allocations.making import allocation, dispatched, pilot, running_pilot
from tests.store.conftest import Clock
from tests.store.making import add, program


class Taking(Told):
    """A scheduler that takes nodes, or says why not."""

    capabilities = Capabilities(releases_nodes=True)
    error: Exception | None = None

    def __init__(self, real: Scheduler) -> None:
        super().__init__(real)
        self.taken: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []

    def release(self, native_id: str, nodes: Collection[str], kept: Sequence[str]) -> None:
        self.taken.append((native_id, tuple(nodes), tuple(kept)))
        if self.error is not None:
            raise self.error


@pytest.fixture
def site(site: Site) -> Site:
    """One that gives idle nodes back."""
    packing = replace(site.settings.packing, release_idle_nodes=True)
    return replace(site, settings=replace(site.settings, packing=packing))


@pytest.fixture
def taking(scheduler: Scheduler) -> Taking:
    return Taking(scheduler)


def job(*nodes: str) -> Job:
    return Job("x", "", JobState.RUNNING, nodes=nodes)


def orders(site: Site, client: redis.Redis) -> list[PilotOrder]:
    key = keys.control(site.settings.key_prefix, "p1")
    return [decode(PilotOrder, text) for text in client.lrange(key, 0, -1)]


def go_on(store: Store, site: Site, client: redis.Redis, taking: Taking, **running: Job) -> None:
    givingback.carry_on(store, taking, client, site.settings.key_prefix, running, {})


def state(store: Store) -> dict[str, object]:
    return dict((pilot(store, "p1").giving_back or {})["n1"])


@pytest.fixture
def begun(
    store: Store, site: Site, taking: Taking, client: redis.Redis, clock: Clock
) -> dict[str, Job]:
    """A pilot with a task on its head, whose other node is to be given back; its job."""
    id = running_pilot(store, site)
    dispatched(store, "task01", "p1", running=True)
    assert pack(store, taking, site, client).plan.release == ()
    clock.now += site.settings.packing.release_after
    assert pack(store, taking, site, client).plan.release == (Release(id, ("n1",)),)
    return {id: job("n0", "n1")}


def let_go(store: Store, *, confirmed: bool = True) -> None:
    word = WorkerLost("p1", "n1", "given back", False, store.clock(), confirmed)
    store.run(lambda conn: record(conn, [word], now=store.clock()))


def test_a_node_goes_back_step_by_step(
    store: Store,
    site: Site,
    taking: Taking,
    client: redis.Redis,
    clock: Clock,
    begun: dict[str, Job],
) -> None:
    lost = {node["name"]: node["lost"] for node in pilot(store, "p1").nodes}
    assert lost == {"n0": False, "n1": True}
    for _ in range(2):
        go_on(store, site, client, taking, **begun)
    assert [(one.action, one.node) for one in orders(site, client)] == [("release", "n1")]
    assert taking.taken == [], "the pilot has not let go of it"
    let_go(store, confirmed=False)
    go_on(store, site, client, taking, **begun)
    assert taking.taken == [], "nobody knows what lives there"
    let_go(store)
    clock.now += 7
    go_on(store, site, client, taking, **begun)
    assert taking.taken == [("x", ("n1",), ("n0",))]
    [id] = begun
    row = allocation(store, id)
    assert row.nodes_back == 1
    assert row.charged_back == clock.now - (row.started or 0.0)
    go_on(store, site, client, taking, **begun)
    assert len(taking.taken) == 1, "once"
    assert find(store, taking, {id: job("n0")}) == [], "the scheduler's word is no news"
    with store.read() as conn:
        assert allocations.charged(conn) == row.charged_back + row.wall_time


def test_what_was_given_before_a_crash_is_only_noted(
    store: Store, site: Site, taking: Taking, client: redis.Redis, begun: dict[str, Job]
) -> None:
    let_go(store)
    go_on(store, site, client, taking, **dict.fromkeys(begun, job("n0")))
    assert taking.taken == []
    assert state(store)["back"] is not None
    assert allocation(store, *begun).nodes_back == 1


def test_the_scheduler_is_asked_by_its_own_names(
    store: Store, site: Site, taking: Taking, client: redis.Redis, begun: dict[str, Job]
) -> None:
    """PBS has short names in ``exec_host`` and, on many sites, full ones in its node file."""
    let_go(store)
    go_on(store, site, client, taking, **dict.fromkeys(begun, job("n0.site.org", "n1.site.org")))
    assert taking.taken == [("x", ("n1.site.org",), ("n0.site.org",))]
    assert state(store)["back"] is not None


def test_a_scheduler_that_is_away_is_asked_again(
    store: Store, site: Site, taking: Taking, client: redis.Redis, begun: dict[str, Job]
) -> None:
    let_go(store)
    taking.error = SchedulerUnavailable("no answer")
    go_on(store, site, client, taking, **begun)
    assert (state(store)["back"], state(store)["refused"]) == (None, "")
    taking.error = None
    go_on(store, site, client, taking, **begun)
    assert len(taking.taken) == 2
    assert state(store)["back"] is not None


def test_a_refusal_is_told_once_and_no_more_nodes_are_counted_on(
    store: Store,
    site: Site,
    taking: Taking,
    client: redis.Redis,
    clock: Clock,
    begun: dict[str, Job],
    caplog: pytest.LogCaptureFixture,
) -> None:
    let_go(store)
    taking.error = SchedulerError("jobs do not shrink here")
    for _ in range(3):
        go_on(store, site, client, taking, **begun)
    assert len(taking.taken) == 1
    assert caplog.text.count("jobs do not shrink here") == 1
    assert allocation(store, *begun).nodes_back == 0
    head, node = pilot(store, "p1").nodes
    assert node["lost"]
    assert node["lost_reason"].endswith("the scheduler refused: jobs do not shrink here")
    assert not head["lost_reason"]

    def told() -> float | None:
        decision = foresee(store, taking, site.settings).told
        assert decision is not None
        return decision.policy.release_after

    assert told() is None
    clock.now += givingback.ASK_AGAIN
    assert told() is not None


def test_a_node_that_was_given_something_meanwhile_stays(
    store: Store, site: Site, clock: Clock
) -> None:
    id = running_pilot(store, site)
    dispatched(store, "task01", "p1", nodes=("n1",), running=True)
    both = [Release(id, ("n0", "n1"))]
    store.run(lambda conn: givingback.begin(conn, both, clock.now))
    assert pilot(store, "p1").giving_back is None, "nor does the head go"


def test_nothing_is_placed_on_a_node_from_the_moment_on(
    store: Store, site: Site, clock: Clock
) -> None:
    id = running_pilot(store, site)
    limits = place.Limits(site.run_dir, 5, 15)
    ledger = store.run(lambda conn: place.rebuild(conn, limits))
    assert ledger.free_cores == 4

    def step(conn: object) -> None:
        idle.hold_pilots(conn)  # type: ignore[arg-type]
        givingback.begin(conn, [Release(id, ("n1",))], clock.now)  # type: ignore[arg-type]

    store.run(step)
    assert store.run(lambda conn: place.sync(conn, ledger, limits)).free_cores == 2
    assert store.run(lambda conn: place.rebuild(conn, limits)).free_cores == 2


def test_nodes_stay_where_the_site_says_so_or_something_waits_for_them(
    store: Store, site: Site, taking: Taking, client: redis.Redis, clock: Clock
) -> None:
    running_pilot(store, site)
    dispatched(store, "task01", "p1", running=True)
    add(store, program("wide01", num_nodes=2), now=clock.now)
    pack(store, taking, site, client)
    clock.now += 40
    assert pack(store, taking, site, client).plan.release == ()
