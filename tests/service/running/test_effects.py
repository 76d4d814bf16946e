"""Effects that fail: by themselves, or because Redis takes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from balsam_celery.service import effects
from balsam_celery.service.effects import Performer
from balsam_celery.service.publish import Publisher
from balsam_celery.states import State
from balsam_celery.store.engine import Store
from balsam_celery.store.insert import NewTask
from tests.redis_server import RedisServer
from tests.service.acting import advance, effects_of, step
from tests.service.running.player import Player
from tests.store.making import add, task

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
    monkeypatch.setattr(effects, "_LONGEST", 0.0)
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
