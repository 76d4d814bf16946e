"""The engine beside a Redis that takes no more: what it reads makes room again."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from balsam_celery import keys
from balsam_celery.service.engine import Engine
from balsam_celery.states import State
from balsam_celery.store.engine import Store
from balsam_celery.wire import (
    KillAsked,
    PilotOrder,
    Registered,
    Report,
    decode,
    encode,
)
from tests.redis_server import RedisServer
from tests.service.running.player import Player, wait_state
from tests.store.making import add, program
from tests.waiting import wait_until

S = State
MakeEngine = Callable[[], Engine]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_redis_that_takes_no_more_is_read(
    own_redis: RedisServer, make_engine: MakeEngine, store: Store, player: Player
) -> None:
    """What lies in the inbox may be what fills it; nobody else takes that away."""
    engine = make_engine()
    player.register("p1")
    asked = Report(records=((0, KillAsked(("t00002", "no-row"), terminate=True, who="a test")),))
    player.client.rpush("spare", encode(asked))
    player.client.config_set("maxmemory", 1)
    add(store, program("t00001"), program("t00002", ranks_per_node=64), now=time.time())
    wait_until(lambda: engine._out._waiting, 20, "a bundle that cannot be sent waits")
    player.client.rename("spare", keys.inbox(player.prefix))
    wait_state(store, "t00002", S.USER_KILLED)
    wait_until(lambda: not player.client.exists(keys.inbox(player.prefix)), 20, "it is taken away")
    player.client.config_set("maxmemory", 0)
    [spec] = player.wait_specs(1, "p1")
    assert (spec.id, spec.attempt) == ("t00001", 1)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_an_order_that_a_full_redis_refuses_keeps_nothing_in_it(
    own_redis: RedisServer, make_engine: MakeEngine, store: Store, player: Player
) -> None:
    """The report that asks for it is taken away, and comes again: it was not acknowledged."""
    engine = make_engine()
    wait_until(lambda: engine.leadership.is_leader, 20, "it leads")
    now = time.time()
    one = Registered("px", "nobody", "h", 1, now + 99, (), now)
    player.client.rpush("spare", encode(Report("px", "pilot", ((7, one),))))
    player.client.config_set("maxmemory", 1)
    inbox = keys.inbox(player.prefix)
    player.client.rename("spare", inbox)
    wait_until(lambda: not player.client.exists(inbox), 20, "it is taken away")
    player.client.config_set("maxmemory", 0)
    [again] = player.tell("px", "pilot", one)
    wait_until(lambda: again in player.acknowledged("px", "pilot"), 20, "the acknowledgement")
    assert player.acknowledged("px", "pilot") == [again]
    [text] = player.client.lrange(keys.control(player.prefix, "px"), 0, -1)
    assert decode(PilotOrder, text).action == "drain"
