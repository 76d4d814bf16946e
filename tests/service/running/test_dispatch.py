"""What the leader sends, and sends again."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from celery import Celery

from balsam_celery import keys
from balsam_celery.service import largest
from balsam_celery.service.dispatch import Dispatcher
from balsam_celery.service.engine import Engine
from balsam_celery.service.hooks import Outstanding, Pending
from balsam_celery.service.kill import REPEAT
from balsam_celery.site import Site
from balsam_celery.states import State
from balsam_celery.store.engine import Store
from balsam_celery.store.insert import NewTask
from balsam_celery.wire import StepEnded
from tests.redis_server import RedisServer
from tests.service.acting import step
from tests.service.rows import task_row
from tests.service.running.player import Player
from tests.store.making import add, program, task
from tests.waiting import wait_until


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_an_order_to_take_back_what_still_waits_is_sent_again(
    site: Site, app: Celery[Any], player: Player
) -> None:
    """The first may be lost with Redis; the task would wait behind another for as long as that."""
    out = Dispatcher(app, player.client, site)
    one, other = ("p1", "n0", "t1", 1), ("p1", "n0", "t2", 1)

    def sent(recalled: set[tuple[str, str, str, int]], now: float) -> list[str]:
        out.recall(recalled, now)
        orders = player.take("p1")[1]
        assert all(order.waiting_only for order in orders)
        return [order.id for order in orders]

    assert sent({one}, 100.0) == ["t1"]
    assert sent({one, other}, 101.0) == ["t2"]
    assert sent({one, other}, 100.0 + REPEAT) == ["t1"]
    assert sent(set(), 110.0) == []
    assert sent({other}, 110.5) == ["t2"]
    out.close()


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_what_no_message_holds_fails_and_others_are_sent(
    own_redis: RedisServer,
    make_engine: Callable[[], Engine],
    store: Store,
    player: Player,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Redis closes the connection at such a message, as if it were away."""
    takes = 2**20
    monkeypatch.setattr(largest, "LARGEST", takes // 2)
    player.client.config_set("proto-max-bulk-len", takes)

    def given(id: str, count: int, **values: Any) -> NewTask:
        made = program(id, arguments={"args": ["x" * count], "kwargs": {}}, **values)
        return replace(made, command=["/bin/true"], literal=False)

    header = [step(f"s{number:05}") for number in range(8)]
    parents = [one.id for one in header]
    body = given("b00001", 1, parents=parents, inputs="list")
    add(
        store,
        given("t00001", takes),
        *(given(f"u{number:05}", 300_000) for number in range(3)),
        *header,
        body,
        given("a00001", 1, parents=["b00001"], on_parent_failure="ignore"),
        now=time.time(),
    )
    make_engine()
    player.register("p1", (4,))
    ends = [StepEnded(id, 1, "SUCCESS", "x" * 150_000, None, time.time()) for id in parents]
    wait_until(lambda: player.raw(keys.TASKS_QUEUE), 20, "the header's messages")
    for one in ends:
        player.tell("", "", one)
    sent = player.wait_specs(4, "p1")
    assert {spec.id for spec in sent} == {"u00000", "u00001", "u00002", "a00001"}
    for id, size in (("t00001", "1MiB"), ("b00001", "1.14MiB")):
        row = task(store, id)
        assert (row.state, row.attempt) == (State.FAILED, 0)
        for said in (size, "512KiB", "output_tail", "fewer parents", "files"):
            assert said in row.reason
    # nor does what the refused ones were given hold cores
    for spec in sent:
        player.run("p1", "n0", spec)
    add(store, *(program(f"v{number:05}") for number in range(4)), now=time.time())
    player.wait_specs(4, "p1")


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_the_end_of_a_hook_is_meant_for_its_message_whatever_the_clock(
    site: Site, app: Celery[Any], player: Player
) -> None:
    """A worker passes over what was sent after the order, which a clock that went back makes."""
    out = Dispatcher(app, player.client, site)
    one, other = (Pending(task_row(State.RUN_ERROR, id=id), "handler") for id in ("t1", "t2"))
    outstanding = Outstanding(copies={one.key: 500.0, other.key: 50.0})
    with player.client.pubsub() as heard:
        heard.psubscribe("*celery.pidbox*")
        wait_until(lambda: heard.get_message() is not None, 10, "it listens")
        out.end_hooks([one, other], outstanding, 100.0)
        bodies: list[dict[str, Any]] = []

        def both() -> bool:
            if message := heard.get_message():
                body = base64.b64decode(json.loads(message["data"])["body"])
                bodies.append(json.loads(body)["arguments"])
            return len(bodies) == 2

        wait_until(both, 10, "the orders")
    out.close()
    assert {body["ids"][0]: body["now"] for body in bodies} == {
        one.message_id: 500.0,
        other.message_id: 100.0,
    }
