"""The loop: from a row to its result, and what survives."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import redis
from celery import Celery
from sqlalchemy import text

from balsam_celery import keys
from balsam_celery.errors import StoreError
from balsam_celery.service import engine as engine_module
from balsam_celery.service.aside import put_aside
from balsam_celery.service.cases import Batch
from balsam_celery.service.engine import Engine
from balsam_celery.service.inbox import Inbox
from balsam_celery.service.requests import request_kill
from balsam_celery.states import FINAL, State
from balsam_celery.store.engine import Store
from balsam_celery.suspects import Suspect
from balsam_celery.wire import (
    Ended,
    KillAsked,
    Registered,
    Report,
    StepEnded,
    encode,
)
from tests.postgres import PostgresServer
from tests.redis_server import RedisServer
from tests.service.acting import attempts_of, effects_of, step
from tests.service.running.player import Player, over, wait_state
from tests.store.making import add, history, program, task
from tests.waiting import wait_until

S = State
MakeEngine = Callable[[], Engine]


def taken(found: list[Any], player: Player) -> bool:
    """Take what waits for the tasks worker into ``found``; tell whether there is anything."""
    found.extend(player.raw(keys.TASKS_QUEUE))
    return bool(found)


def wait_acknowledged(player: Player, node: str, numbers: set[int]) -> None:
    wait_until(lambda: set(player.acknowledged("p1", node)) >= numbers, 10, "acknowledgements")


def test_from_rows_to_results(
    make_engine: MakeEngine, store: Store, player: Player, app: Celery[Any]
) -> None:
    ids = [f"t{number:05}" for number in range(40)]
    add(store, *(program(id, max_retries=1, retry_delay=0.0) for id in ids), now=time.time())
    make_engine()
    player.register("p1", (2, 2))
    taken: dict[tuple[str, int], str] = {}
    seen: set[tuple[str, int]] = set()
    reported: set[str] = set()
    numbers: dict[str, list[int]] = {"n0": [], "n1": []}

    def all_done() -> bool:
        for node in ("n0", "n1"):
            for spec in player.take("p1", node)[0]:
                [share] = spec.shares
                assert share.node == node
                assert (spec.id, spec.attempt) not in seen
                seen.add((spec.id, spec.attempt))
                [core] = share.cores
                # no slot is given out before the one that had it has been reported over
                if (node, core) in taken:
                    assert taken.pop((node, core)) in reported
                taken[node, core] = spec.id
                fails = spec.id.endswith("7") and spec.attempt == 1
                reported.add(spec.id)
                numbers[node] += player.run("p1", node, spec, code=int(fails))
        return all(task(store, id).state in FINAL for id in ids)

    wait_until(all_done, 60, "all tasks are done")
    assert {task(store, id).state for id in ids} == {S.JOB_FINISHED}
    assert len(seen) == 44
    for node in ("n0", "n1"):
        wait_acknowledged(player, node, set(numbers[node]))
    wait_until(lambda: not effects_of(store, ids[-1]), 20, "results are stored")
    meta = app.backend.get_task_meta(ids[7])
    assert meta["status"] == "SUCCESS"
    assert meta["result"]["attempts"] == 2
    assert not player.client.llen(keys.inbox(player.prefix))


def test_gang_tasks_and_limits(make_engine: MakeEngine, store: Store, player: Player) -> None:
    make_engine()
    player.register("p1", (2, 2))
    limits = keys.limits(player.prefix, "p1")
    wait_until(lambda: player.client.hget(limits, keys.GANG) == b"2", 20, "limits are told")
    add(store, program("wide01", num_nodes=2), now=time.time())
    [spec] = player.wait_specs(1, "p1", keys.GANG)
    assert [share.node for share in spec.shares] == ["n0", "n1"]
    wait_until(lambda: player.client.hget(limits, "n0") == b"0", 20, "the gang task's nodes")
    player.run("p1", keys.GANG, spec)
    wait_state(store, "wide01", S.JOB_FINISHED)
    wait_until(lambda: player.client.hget(limits, "n0") == b"2", 20, "the nodes are free again")


def test_a_kill_is_ordered_until_it_is_confirmed(
    make_engine: MakeEngine, store: Store, player: Player
) -> None:
    make_engine()
    player.register("p1")
    add(store, program("t00001"), now=time.time())
    [spec] = player.wait_specs(1, "p1")
    player.tell("", "", KillAsked(("t00001",), terminate=True, who="flower"))
    for _ in range(2):
        wait_until(lambda: player.take("p1")[1], 20, "a kill order")
    player.tell("p1", "n0", Ended(spec.id, 1, "killed", "killed", time.time(), time.time()))
    wait_state(store, "t00001", S.USER_KILLED)
    assert attempts_of(store, "t00001")[0].outcome == "killed"


def test_redis_away(
    own_redis: RedisServer, make_engine: MakeEngine, store: Store, player: Player, app: Celery[Any]
) -> None:
    engine = make_engine()
    player.register("p1")
    add(store, program("t00001"), program("t00002"), program("t00003"), now=time.time())
    first, second = player.wait_specs(2, "p1")
    player.run("p1", "n0", first)
    wait_state(store, "t00001", S.JOB_FINISHED)
    [third] = player.wait_specs(1, "p1")
    own_redis.stop(kill=True)
    # a row that is placed, or killed, while nobody can be told
    request_kill(store, ["t00003"], "x")
    add(store, program("t00004"), now=time.time())
    wait_until(lambda: not engine.leadership.is_leader or engine.is_alive(), 5, "it lives")
    own_redis.start()
    player.client.connection_pool.disconnect()
    player.run("p1", "n0", second)
    [fourth] = player.wait_specs(1, "p1")
    if fourth.id == third.id:  # Redis has forgotten, with its last second, that it was taken
        [fourth] = player.wait_specs(1, "p1")
    assert fourth.id == "t00004"
    player.run("p1", "n0", fourth)
    player.tell("p1", "n0", Ended(third.id, 1, "killed", "killed", time.time(), time.time()))
    for id, state in (("t00002", S.JOB_FINISHED), ("t00004", S.JOB_FINISHED)):
        wait_state(store, id, state, 30)
    wait_state(store, "t00003", S.USER_KILLED, 30)
    wait_until(lambda: app.backend.get_task_meta("t00003")["status"] == "REVOKED", 30, "result")


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_database_locked(make_engine: MakeEngine, store: Store, player: Player) -> None:
    engine = make_engine()
    player.register("p1")
    add(store, program("t00001"), now=time.time())
    [spec] = player.wait_specs(1, "p1")
    blocker = sqlite3.connect(store.engine.url.database or "", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    [number] = player.run("p1", "n0", spec)
    wait_until(lambda: player.client.llen(keys.inbox(player.prefix)) >= 2, 5, "it waits")
    assert engine.is_alive()
    assert number not in player.acknowledged("p1", "n0")
    blocker.execute("ROLLBACK")
    blocker.close()
    wait_state(store, "t00001", S.JOB_FINISHED, 40)
    wait_until(lambda: number in player.acknowledged("p1", "n0"), 10, "the acknowledgement")


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_kill_9_of_the_database(
    make_engine: MakeEngine,
    store: Store,
    player: Player,
    postgres_server: PostgresServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Outcomes stay where they are until SQL is back."""
    engine = make_engine()
    player.register("p1", (1,))
    add(store, program("t00001"), program("t00002"), now=time.time())
    [first] = player.wait_specs(1, "p1")
    postgres_server.halt(signal.SIGKILL)
    try:
        numbers = player.run("p1", "n0", first)
        wait_until(lambda: "the service waits" in caplog.text, 20, "it says so")
        assert engine.is_alive()
        assert not player.acknowledged("p1", "n0")
    finally:
        postgres_server.resume()
    [second] = player.wait_specs(1, "p1")
    assert {first.id, second.id} == {"t00001", "t00002"}
    wait_acknowledged(player, "n0", set(numbers))
    player.run("p1", "n0", second)
    for id in ("t00001", "t00002"):
        wait_state(store, id, S.JOB_FINISHED)
    assert [one.outcome for one in attempts_of(store, first.id)] == ["exit"]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_node_is_put_aside_though_sql_was_away(
    make_engine: MakeEngine, store: Store, player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    def away_at_first(batch: Batch, pilot: str, one: Suspect) -> None:
        tries.append(one.node)
        if len(tries) == 1:
            raise StoreError("it did not answer")
        put_aside(batch, pilot, one)

    monkeypatch.setattr(engine_module, "put_aside", away_at_first)
    make_engine()
    player.register("p1", (8, 8))
    add(store, *(program(f"t{number:05}") for number in range(16)), now=time.time())
    broken, sound = player.wait_specs(8, "p1", "n0"), player.wait_specs(8, "p1", "n1")
    for spec in sound[:7]:
        player.run("p1", "n1", spec)
    for spec in broken:
        player.run("p1", "n0", spec, code=9)
    # its failures are not its tasks': they run once more, elsewhere
    again = wait_until(lambda: player.take("p1", "n1")[0], 20, "they come to the sound one")
    assert {spec.id for spec in again} <= {spec.id for spec in broken}
    assert tries == ["n0", "n0"]


def test_one_leads_and_the_next_takes_over(
    make_engine: MakeEngine, store: Store, player: Player
) -> None:
    first = make_engine()
    wait_until(lambda: first.leadership.is_leader, 20, "the first leads")
    second = make_engine()
    player.register("p1", (2,))
    add(store, *(program(f"t0000{i}") for i in range(3)), now=time.time())
    specs = player.wait_specs(2, "p1")
    assert not second.leadership.is_leader
    first.ask_to_stop()
    wait_until(lambda: second.leadership.is_leader, 20, "the second leads")
    player.run("p1", "n0", specs[0])
    # the second knows from SQL what the other one has given out
    [third] = player.wait_specs(1, "p1")
    assert third.shares == specs[0].shares
    player.run("p1", "n0", specs[1])
    player.run("p1", "n0", third)
    for number in range(3):
        wait_state(store, f"t0000{number}", S.JOB_FINISHED)


def test_a_leader_that_lost_its_lease_writes_nothing(
    make_engine: MakeEngine, store: Store, player: Player
) -> None:
    engine = make_engine()
    wait_until(lambda: engine.leadership.is_leader, 20, "it leads")
    stolen = text("UPDATE lease SET holder = 'other', term = term + 1, expires = :far")
    store.run(lambda conn: conn.execute(stolen, {"far": time.time() + 4}))
    add(store, step("s00001"), now=time.time())
    wait_until(lambda: not engine.leadership.is_leader, 20, "it notices")
    assert task(store, "s00001").state is S.READY
    # the other one falls silent
    wait_state(store, "s00001", S.DISPATCHED)


def test_what_is_not_ours_in_the_inbox(
    make_engine: MakeEngine, store: Store, player: Player
) -> None:
    make_engine()
    player.client.rpush(keys.inbox(player.prefix), b"\xff\x00", b"{}", b'{"records": [[1, {}]]}')
    player.register("p1")
    add(store, program("t00001"), program("t00002"), now=time.time())
    first, second = player.wait_specs(2, "p1")
    # a value that no database column holds must not stop the others
    report = Report("p1", "n0", ((900, over(first, code=10**30)), (901, over(second))))
    player.client.rpush(keys.inbox(player.prefix), encode(report))
    wait_state(store, second.id, S.JOB_FINISHED)
    assert task(store, first.id).state is S.DISPATCHED
    player.run("p1", "n0", first)
    wait_state(store, first.id, S.JOB_FINISHED)


def test_steps_are_sent_and_their_ends_go_on(
    make_engine: MakeEngine, store: Store, player: Player, app: Celery[Any]
) -> None:
    make_engine()
    add(
        store,
        step("s00001", arguments={"args": [1], "kwargs": {"k": 2}}),
        step("s00002", parents=["s00001"], inputs="single"),
        now=time.time(),
    )
    found: list[Any] = []
    wait_until(lambda: taken(found, player), 20, "the message")
    [message] = found
    assert message.headers["task"] == "mod.add"
    assert (message.headers["id"], message.headers["balsam_attempt"]) == ("s00001", 1)
    assert message.payload[:2] == [[1], {"k": 2}]
    assert not any(message.payload[2].values())
    player.tell("", "", StepEnded("s00001", 1, "SUCCESS", [1, 2], None, time.time()))
    found.clear()
    wait_until(lambda: taken(found, player), 20, "the next one")
    assert found[0].payload[0] == [[1, 2]]
    encoded = {"exc_type": "ValueError", "exc_message": ["bad"], "exc_module": "builtins"}
    player.tell("", "", StepEnded("s00002", 1, "FAILURE", encoded, "Traceback…", time.time()))
    wait_state(store, "s00002", S.FAILED)
    wait_until(lambda: app.AsyncResult("s00002").state == "FAILURE", 20, "its result")
    assert isinstance(app.AsyncResult("s00002").result, ValueError)
    assert history(store, "s00002")[-1] is S.FAILED


def test_errbacks_are_rows(make_engine: MakeEngine, store: Store, player: Player) -> None:
    make_engine()
    player.register("p1")
    rows = [
        {
            "id": "e00001", "name": "tell", "command": ["tell", "{0[reason]}"], "wall_time": 60,
            "receives": "failure",
        }
    ]  # fmt: skip
    add(store, program("t00001", errbacks=[{"id": "e00001", "rows": rows}]), now=time.time())
    [spec] = player.wait_specs(1, "p1")
    player.run("p1", "n0", spec, code=3)
    [errback] = player.wait_specs(1, "p1")
    assert errback.argv == ("tell", "exit code 3")


def test_a_pilot_of_a_strange_allocation_gets_nothing(
    make_engine: MakeEngine, store: Store, player: Player
) -> None:
    make_engine()
    now = time.time()
    [number] = player.tell("px", "pilot", Registered("px", "nobody", "h", 1, now + 99, (), now))
    wait_until(lambda: number in player.acknowledged("px", "pilot"), 20, "the acknowledgement")
    with store.read() as conn:
        assert not conn.execute(text("SELECT id FROM pilot")).all()


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_what_cannot_be_acknowledged_is_not_read_for_ever(
    make_engine: MakeEngine, store: Store, player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis is lost between the two, or one sender can be told nothing: others get their turn."""

    def lost(self: Inbox, reports: Sequence[Report]) -> None:
        raise redis.exceptions.ConnectionError("Connection closed by server.")

    monkeypatch.setattr(Inbox, "acknowledge", lost)
    make_engine()
    player.register("p1", (1,))
    inbox = keys.inbox(player.prefix)
    wait_until(lambda: not player.client.llen(inbox), 20, "it is taken out of the inbox")
    assert player.acknowledged("p1", "pilot") == []
    add(store, program("t00001"), now=time.time())
    [spec] = player.wait_specs(1, "p1")
    player.run("p1", "n0", spec)
    wait_state(store, "t00001", S.JOB_FINISHED)
    wait_until(lambda: not player.client.llen(inbox), 20, "so is its end")
