"""Explanations from what is in SQL, on both databases, with the real local scheduler and Redis."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import redis
from sqlalchemy import select

from balsam_celery.errors import InvalidInput, NotFound
from balsam_celery.packing import Request
from balsam_celery.resources import NodeShare
from balsam_celery.schedulers.base import JobState, Scheduler
from balsam_celery.service.explain import explain_task
from balsam_celery.service.explain_allocations import explain_allocations
from balsam_celery.service.explained import plain_allocations, plain_task
from balsam_celery.service.pack import pack
from balsam_celery.service.poll import Poller
from balsam_celery.settings import PackingSettings, QueueSettings
from balsam_celery.site import Site
from balsam_celery.states import State
from balsam_celery.store import lease, schema
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationState
from balsam_celery.wire import to_plain
from tests.api.conftest import use_redis
from tests.redis_server import RedisServer, free_port
from tests.service.acting import ended, tell
from tests.service.allocations.making import (
    dispatched,
    pilot_in,
    requested,
    running_pilot,
    set_allocation,
)
from tests.store.conftest import Clock
from tests.store.making import add, program, walk
from tests.waiting import wait_until

S, A = State, AllocationState


@pytest.fixture
def site(site: Site, redis_server: RedisServer) -> Site:
    """The same, on the tests' Redis."""
    settings = use_redis(site, redis_server.url).settings
    return dataclasses.replace(
        site, settings=dataclasses.replace(site.settings, redis=settings.redis)
    )


@pytest.fixture(autouse=True)
def leaders(store: Store) -> None:
    """A service and a beat are up."""
    for name in ("service", "beat"):
        assert lease.acquire(store, name, "test", 1e6)


def explain(store: Store, site: Site, id: str) -> dict[str, Any]:
    """The explanation of a task; nothing is written by it."""
    before = everything(store)
    plain = plain_task(*explain_task(store, site, id))
    assert everything(store) == before
    return plain


def everything(store: Store) -> list[Any]:
    """All rows of what an explanation reads."""
    with store.read() as conn:
        tables = (schema.task, schema.allocation, schema.pilot, schema.event, schema.lease)
        return [conn.execute(select(table)).all() for table in tables]


def before(**counts: int) -> dict[str, int]:
    """What an explanation says of those that go before."""
    each = dict.fromkeys(("higher_priority", "wider", "larger", "older"), 0) | counts
    same_shape = each.pop("same_shape", 0)
    return {"total": sum(each.values()), **each, "same_shape": same_shape}


def test_unknown_and_ambiguous_ids(store: Store, site: Site) -> None:
    add(store, program("abcdef-1"), program("abcdef-2"))
    with pytest.raises(NotFound, match="there is no task 'zzzzzz'"):
        explain_task(store, site, "zzzzzz")
    with pytest.raises(InvalidInput, match="fits several"):
        explain_task(store, site, "abcdef")
    assert explain(store, site, "abcdef-1")["id"] == "abcdef-1"


def test_a_parent(store: Store, site: Site) -> None:
    add(store, program("parent"), program("child1", parents=("parent",)))
    found = explain(store, site, "child1")
    assert found["code"] == "parents"
    assert found["parents"] == [{"id": "parent", "name": "parent", "state": "PREPROCESSED"}]
    assert found["ahead"] is None


def test_what_is_asked_for_next_and_what_was(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis
) -> None:
    add(store, *(program(f"task{n:02}") for n in range(3)))
    found = explain(store, site, "task02")
    assert found["code"] == "to-request"
    assert found["ahead"] == before(older=2, same_shape=2)
    pack(store, scheduler, site, client)
    found = explain(store, site, "task00")
    with store.read() as conn:
        [made] = conn.execute(select(schema.allocation.c.id)).scalars()
    assert (found["code"], found["allocation"]) == ("queued", made)


def test_a_queued_allocation_and_when_its_scheduler_expects_it(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    """The first takes the machine; what is asked for afterwards has to wait for its end."""
    add(store, program("wide01", num_nodes=4))
    [first] = pack(store, scheduler, site, client).submitted
    wait_until(
        lambda: [job.state for job in scheduler.jobs().values()] == [JobState.RUNNING], 30, "start"
    )
    Poller(store, scheduler, site).poll()
    pilot_in(store, first, ends_in=25)  # too short for anything more
    clock.now += 1
    add(store, program("wide02", num_nodes=4, priority=1), program("task01", wall_time=5))
    later = pack(store, scheduler, site, client).submitted
    Poller(store, scheduler, site).poll()
    found = explain(store, site, "task01")
    assert found["code"] == "queued"
    assert found["allocation"] in later
    assert found["expected_start"] is not None
    assert found["ahead"] == before(higher_priority=1, wider=1)
    told = plain_allocations(explain_allocations(store, site))
    by_id = {one["id"]: one for one in told["allocations"]}
    assert next(iter(by_id)) == first
    assert by_id.keys() == {first, *later}
    assert by_id[first]["code"] == "draining", "too short for what waits"
    own = by_id[found["allocation"]]
    assert own["expected_start"] == found["expected_start"]
    assert own["asked_for"]
    assert f": {own['asked_for']}. " in own["text"], "kept, whatever the scheduler says since"
    assert f"{own['planned']} waiting task" in own["text"]
    assert sum(one["planned"] for one in by_id.values()) == 3
    assert sum(one["tasks"] for one in told["backlog"]) == 3
    assert sum(one["unplanned"] for one in told["backlog"]) == 0
    assert {part["allocation"] for one in told["backlog"] for part in one["planned"]} <= set(later)
    assert told["note"] == ""


def test_max_running_is_why_another_one_waits(store: Store, site: Site) -> None:
    for number in range(3):  # as many as the queue lets run; all end soon
        running_pilot(store, site, f"p{number}")
    add(store, program("wide01", num_nodes=4))
    full = "max_running of queue local is 3, and as many run"
    found = explain(store, site, "wide01")
    assert found["code"] == "to-request"
    assert f"it has to wait, since {full}." in found["text"]
    queued = requested(store, site, Request("local", 4, 600, "a test"))
    set_allocation(store, queued, A.QUEUED, native_id="none")
    found = explain(store, site, "wide01")
    assert (found["code"], found["allocation"]) == ("queued", queued)
    assert full in found["text"]
    told = plain_allocations(explain_allocations(store, site))["allocations"]
    assert [one["id"] for one in told if full in one["text"]] == [queued]


def test_in_a_pilot(store: Store, site: Site, clock: Clock) -> None:
    allocation = running_pilot(store, site)  # two nodes of two cores for 300 s
    for number in range(4):
        dispatched(
            store, f"runs{number:02}", "p1", nodes=(f"n{number // 2}",), core=number % 2,
            running=True,
        )  # fmt: skip
    clock.now += 5
    add(store, program("wide01", num_nodes=2, priority=2), *(program(f"task0{n}") for n in "ab"))
    found = explain(store, site, "wide01")
    assert (found["code"], found["pilot"], found["nodes"]) == ("reserved", "p1", ["n0", "n1"])
    assert found["expected_start"] is not None
    found = explain(store, site, "task0b")
    assert (found["code"], found["pilot"], found["allocation"]) == ("behind", "p1", allocation)
    assert found["ahead"] == before(higher_priority=1, older=1, same_shape=1)
    found = explain(store, site, "runs00")
    assert (found["code"], found["nodes"]) == ("running", ["n0"])
    assert found["latest_end"] is not None
    tell(store, ended("runs00"))
    add(store, program("urgent", priority=9))
    assert explain(store, site, "urgent")["code"] == "starting"


def test_age_is_told_as_priority(store: Store, site: Site, clock: Clock) -> None:
    ageing = site.settings.placement.ageing
    add(store, program("old001"))
    clock.now += 2 * ageing
    new = program("urgent", priority=1), program("wide01", priority=2, num_nodes=3)
    add(store, *new, now=clock.now)
    clock.now += 1

    def ahead(id: str) -> dict[str, int]:
        found: dict[str, int] = explain(store, site, id)["ahead"]
        return found

    assert ahead("urgent") == before(higher_priority=2)
    assert ahead("old001") == before(wider=1), "as high by now, and over fewer nodes"
    assert ahead("wide01") == before()


def test_what_no_allocation_can_hold(store: Store, site: Site) -> None:
    add(store, program("wide01", num_nodes=9))
    found = explain(store, site, "wide01")
    assert found["code"] == "impossible"
    assert "num_nodes is 9" in found["text"]
    told = plain_allocations(explain_allocations(store, site))
    assert [(one["code"], one["tasks"]) for one in told["backlog"]] == [("impossible", 1)]


def test_a_limit_and_a_pause(store: Store, site: Site, clock: Clock) -> None:
    add(store, program("task01"))
    id = requested(store, site)
    set_allocation(store, id, A.FAILED, ended=clock.now, reason="Invalid account")
    found = explain(store, site, "task01")
    assert found["code"] == "paused"
    assert "Invalid account" in found["text"]
    told = plain_allocations(explain_allocations(store, site))
    assert [one["code"] for one in told["allocations"]] == ["failed"]
    assert [one["code"] for one in told["backlog"]] == ["paused"]
    clock.now += 1000
    none = dataclasses.replace(
        site,
        settings=dataclasses.replace(site.settings, packing=PackingSettings(max_allocations=0)),
    )
    found = explain(store, none, "task01")
    assert "max_allocations (0)" in found["text"]
    told = plain_allocations(explain_allocations(store, none))
    assert told["backlog"][0]["unplanned"] == 1


def test_a_pause_is_told_only_of_what_it_holds(store: Store, site: Site, clock: Clock) -> None:
    """A queue pauses that could hold one of two tasks; the other's is full."""
    queues = {
        "narrow": QueueSettings(max_nodes=1, max_wall_time=600),
        "wide": QueueSettings(max_nodes=4, max_wall_time=120, max_queued=1),
    }
    site = dataclasses.replace(site, settings=dataclasses.replace(site.settings, queues=queues))
    full = requested(store, site, Request("wide", 2, 120, "a test"))
    set_allocation(store, full, A.QUEUED, native_id="x", cancel_requested=clock.now)
    failed = requested(store, site, Request("narrow", 1, 400, "a test"))
    set_allocation(store, failed, A.FAILED, ended=clock.now, reason="Invalid account")
    add(store, program("long01", wall_time=300), program("wide01", num_nodes=2))

    found = explain(store, site, "long01")
    assert (found["code"], "Queue narrow" in found["text"]) == ("paused", True)
    found = explain(store, site, "wide01")
    assert (found["code"], "narrow" in found["text"]) == ("max-queued", False)
    told = plain_allocations(explain_allocations(store, site))["backlog"]
    assert {(one["num_nodes"], one["code"]) for one in told} == {(1, "paused"), (2, "max-queued")}


def test_an_end(store: Store, site: Site) -> None:
    running_pilot(store, site)
    add(store, program("task01", max_retries=0))
    share = to_plain(NodeShare("n0", (0,)))
    path = (S.PREPROCESSED, S.DISPATCHED)
    walk(store, "task01", path, attempt=1, pilot="p1", shares=[share])
    with store.write() as conn:
        conn.execute(
            schema.attempt.insert(),
            [{"task": "task01", "number": 1, "nodes": [], "argv": [], "dispatched": 1.0}],
        )
    tell(store, ended("task01", code=3, stderr_tail="ValueError: no grid\n"))
    found = explain(store, site, "task01")
    assert found["code"] == "exit-code"
    assert "exit code 3" in found["text"]
    assert "ValueError: no grid" in found["text"]


def test_nobody_is_there(store: Store, site: Site, redis_server: RedisServer) -> None:
    add(store, program("task01"))
    secret = site.secrets_dir / "redis_url"
    secret.write_text(f"redis://:secret@127.0.0.1:{free_port()}/0\n", encoding="utf-8")
    found = explain(store, site, "task01")
    assert found["code"] == "redis-down"
    assert "secret" not in found["text"]
    secret.write_text(redis_server.url, encoding="utf-8")
    lease.release(store, "beat", "test", 1)
    assert explain(store, site, "task01")["code"] == "beat-down"
    assert "Beat is not up" in plain_allocations(explain_allocations(store, site))["note"]
    lease.release(store, "service", "test", 1)
    assert explain(store, site, "task01")["code"] == "service-down"
