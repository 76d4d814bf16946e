"""Effects that fail: by themselves, or because Redis takes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy import update

from balsam_celery.service import effects, largest
from balsam_celery.service.effects import Performer
from balsam_celery.service.publish import Publisher
from balsam_celery.states import State
from balsam_celery.store import schema
from balsam_celery.store.effects import NewEffect
from balsam_celery.store.effects import add as add_effects
from balsam_celery.store.engine import Store
from balsam_celery.store.insert import NewTask
from balsam_celery.store.rows import EffectKind, TaskRow
from tests.redis_server import RedisServer
from tests.service.acting import advance, effects_of, step, step_ended, tell
from tests.service.running.player import Player
from tests.store.making import add, program, task, walk

pytestmark = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
S = State


@pytest.fixture
def performer(store: Store, app: Celery[Any]) -> Iterator[Performer]:
    """It has a connection of its own."""
    publisher, backend = Publisher(app), app.backend
    typed: Any = backend
    yield Performer(store, app, publisher, typed)
    publisher.close()
    app.backend.client.close()


def sent_with(id: str, **options: Any) -> NewTask:
    made = step(id)
    made.celery["options"].update(options)
    return made


@pytest.mark.parametrize(
    ("options", "why"),
    [({"queue": "odd"}, "WRONGTYPE Operation against a key"), ({"expires": -1e12}, "out of range")],
)
def test_what_can_never_be_sent_holds_up_nobody_and_fails(
    store: Store,
    player: Player,
    performer: Performer,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    why: str,
) -> None:
    monkeypatch.setattr(effects, "_PAUSE", 0.0)
    player.client.set(f"{player.prefix}odd", "no list")
    add(store, sent_with("s00001", **options), now=1.0)
    add(store, step("s00002"), step("c00001", parents=["s00001"]), now=2.0)
    advance(store)
    assert performer.perform() == 1
    assert [one.headers["id"] for one in player.raw("tasks")] == ["s00002"]
    for _ in range(5):
        assert performer.perform() == 0
        assert task(store, "s00001").state is S.DISPATCHED
    performer.perform()
    row = task(store, "s00001")
    assert row.state is S.FAILED
    assert row.reason.startswith("its message cannot be sent: ")
    assert why in row.reason
    assert task(store, "c00001").state is S.FAILED
    performer.perform()
    assert not effects_of(store, "s00001")


#: Bytes that a Redis of the test's own takes in one value: the least that can be set.
_REDIS_TAKES = 2**20


def test_what_no_message_holds_fails_and_holds_up_nobody(
    own_redis: RedisServer,
    store: Store,
    player: Player,
    performer: Performer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Redis closes the connection at such a message, as if it were away."""
    monkeypatch.setattr(largest, "LARGEST", _REDIS_TAKES // 2)
    player.client.config_set("proto-max-bulk-len", _REDIS_TAKES)
    header = [step(f"s{number:05}") for number in range(8)]
    body = step("b00001", parents=[one.id for one in header], inputs="list")
    after = step("a00001", parents=["b00001"])
    add(store, *header, body, after, now=1.0)
    advance(store)
    performer.perform()
    player.raw("tasks")
    tell(store, *(step_ended(one.id, "SUCCESS", "x" * 150_000) for one in header))
    add(store, step("s99999"), now=2.0)
    advance(store)
    performer.perform()
    assert [one.headers["id"] for one in player.raw("tasks")] == ["s99999"]
    row = task(store, "b00001")
    assert row.state is S.FAILED
    for said in ("1.14MiB", "512KiB", "output_tail", "fewer parents", "files"):
        assert said in row.reason
    assert task(store, "a00001").state is S.FAILED
    performer.perform()
    assert not effects_of(store, "b00001")


def test_a_result_that_redis_does_not_hold_is_read_from_sql(
    own_redis: RedisServer,
    store: Store,
    player: Player,
    performer: Performer,
    app: Celery[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(largest, "LARGEST", _REDIS_TAKES // 2)
    player.client.config_set("proto-max-bulk-len", _REDIS_TAKES)
    add(store, step("s00001"), step("s00002"))
    advance(store)
    performer.perform()
    tell(store, step_ended("s00001", "SUCCESS", "x" * 1_100_000))
    tell(store, step_ended("s00002", "SUCCESS", "x"))
    performer.perform()
    assert not effects_of(store, "s00001") + effects_of(store, "s00002")
    assert [len(app.AsyncResult(id).result) for id in ("s00001", "s00002")] == [1_100_000, 1]
    row = task(store, "s00001")
    assert row.state is S.JOB_FINISHED
    assert row.reason == "its result cannot be put into Redis, only read from SQL: it takes 1.04MiB"


def test_a_redis_that_is_full_is_no_fault_of_an_effect(
    own_redis: RedisServer, store: Store, player: Player, performer: Performer
) -> None:
    add(store, step("s00001"))
    advance(store)
    player.client.config_set("maxmemory", "1")
    with pytest.raises(OperationalError):
        performer.perform()
    [effect] = effects_of(store, "s00001")
    assert effect.tries == 0
    player.client.config_set("maxmemory", "0")
    assert performer.perform() == 1
    assert len(player.raw("tasks")) == 1


def test_a_result_that_can_never_be_stored_is_given_up_and_told_of(
    store: Store, performer: Performer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as an exception that is none: Celery refuses to make it."""
    monkeypatch.setattr(effects, "_PAUSE", 0.0)
    fail(store, "p00001", {"exc_type": "system", "exc_module": "os", "exc_message": ["x"]})
    fail(store, "p00002", {"exc_type": "ValueError", "exc_module": "builtins", "exc_message": []})
    assert performer.perform() == 1
    [left] = effects_of(store, "p00001")
    assert left.tries == 1
    for _ in range(5):
        assert performer.perform() == 0
        assert task(store, "p00001").reason == "it failed"
    performer.perform()
    assert not effects_of(store, "p00001")
    row = task(store, "p00001")
    assert row.state is S.FAILED
    assert row.reason.startswith("it failed; its result cannot be put into Redis, only read from")
    assert task(store, "p00002").reason == "it failed"


def test_an_error_without_words_is_told_of_by_its_name(
    store: Store, performer: Performer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(row: TaskRow) -> None:
        raise KeyError

    monkeypatch.setattr(effects, "_TRIES", 1)
    monkeypatch.setattr(performer, "_encoded", refuse)
    fail(store, "p00001", {})
    performer.perform()
    assert task(store, "p00001").reason.endswith(" from SQL: KeyError")


def test_the_results_of_many_go_to_redis_together(
    own_redis: RedisServer, store: Store, player: Player, performer: Performer, app: Celery[Any]
) -> None:
    """In one exchange; while Redis takes none of them, all wait, and none counts a try."""
    error = {"exc_type": "ValueError", "exc_module": "builtins", "exc_message": ["no"]}
    ids = [f"p{number:05}" for number in range(5)]
    for id in ids:
        fail(store, id, error)
    player.client.config_set("maxmemory", "1")
    with pytest.raises(redis.exceptions.ResponseError):
        performer.perform()
    assert [effect.tries for id in ids for effect in effects_of(store, id)] == [0] * 5
    player.client.config_set("maxmemory", "0")
    connection: Any = app.backend.client.connection_pool.get_connection()
    app.backend.client.connection_pool.release(connection)
    sent: list[object] = []
    send = connection.send_packed_command
    connection.send_packed_command = lambda *args, **kwargs: (
        sent.append(args) or send(*args, **kwargs)
    )
    assert performer.perform() == 5
    assert len(sent) == 1
    for id in ids:
        assert app.backend.get_state(id) == "FAILURE"


def test_an_errback_that_can_never_be_called_is_given_up_and_told_of(
    store: Store, performer: Performer, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = {"id": "e00001", "rows": [{"id": "e00001", "odd": 1, "receives": "nothing"}]}
    greedy = {"id": "e00002", "name": "tell", "command": ["tell", "{9}"], "literal": False}
    wrong = {"id": "e00002", "rows": [{**greedy, "kind": "program", "receives": "nothing"}]}
    fail(store, "p00001", {}, odd)
    fail(store, "p00002", {}, wrong)
    before = time.time()
    performer.perform()
    # what the user asks for wrongly stays so
    assert not effects_of(store, "p00002")
    said = task(store, "p00002").reason
    assert said.startswith("it failed; an error callback of it cannot be called: ")
    assert "{9}" in said
    # each try waits longer than the one before
    [left] = effects_of(store, "p00001")
    assert left.not_before >= before + 1
    monkeypatch.setattr(effects, "_PAUSE", 0.0)
    due_now(store)
    for _ in range(5):
        performer.perform()
    assert task(store, "p00001").reason == "it failed"
    performer.perform()
    assert not effects_of(store, "p00001")
    assert "cannot be called" in task(store, "p00001").reason


def fail(store: Store, id: str, result: dict[str, Any], *errbacks: dict[str, Any]) -> None:
    """A program that FAILED, with the effects of that."""
    add(store, program(id))
    path = [S.PREPROCESSED, S.DISPATCHED, S.RUN_ERROR, S.FAILED]
    walk(store, id, path, reason="it failed", result=result)
    asked = [NewEffect(id, EffectKind.RESULT, True)] if not errbacks else []
    asked += [NewEffect(id, EffectKind.ERRBACK, one) for one in errbacks]
    store.run(lambda conn: add_effects(conn, asked, now=0.0))


def due_now(store: Store) -> None:
    """Let no effect wait."""
    with store.write() as conn:
        conn.execute(update(schema.effect).values(not_before=0.0))
