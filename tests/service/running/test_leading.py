"""Who leads again after another led starts afresh from SQL."""

from __future__ import annotations

import time
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import Connection, text

from balsam_celery import keys
from balsam_celery.service.engine import Engine
from balsam_celery.service.inbox import push
from balsam_celery.service.journal import Journal
from balsam_celery.service.leading import NotLeading
from balsam_celery.service.place import Sent
from balsam_celery.site import Site
from balsam_celery.states import State
from balsam_celery.store.engine import Store
from balsam_celery.store.insert import insert_tasks
from balsam_celery.wire import Wake
from tests.service.acting import start_in, step
from tests.service.running.conftest import MakeEngine
from tests.service.running.player import Player
from tests.store.making import add, program, task
from tests.waiting import wait_until

S = State


def test_slots_that_another_leader_gave_are_not_given_again(
    make_engine: MakeEngine, store: Store, player: Player
) -> None:
    engine = make_engine()
    player.register("p1", (1,))
    add(store, program("t00001"), now=time.time())
    [spec] = player.wait_specs(1, "p1")
    player.run("p1", "n0", spec)
    wait_until(lambda: task(store, "t00001").state is S.JOB_FINISHED, 20, "the slot is free")
    # another one led for a moment, used the slot, and is gone before this one looks at its lease
    term = engine.leadership.term
    stolen = text("UPDATE lease SET holder = 'other', term = term + 1, expires = 0")

    def lead_for_a_moment(conn: Connection) -> list[Sent]:
        conn.execute(stolen)
        insert_tasks(conn, [program("t00002")], now=time.time(), who="test")
        return start_in(conn, time.time())

    assert [sent.spec.id for sent in store.run(lead_for_a_moment)] == ["t00002"]
    wait_until(lambda: engine.leadership.term not in (None, term), 20, "it leads again")
    add(store, program("t00003"), step("s00001"), now=time.time())
    wait_until(lambda: task(store, "s00001").state is S.DISPATCHED, 20, "it looked")
    assert task(store, "t00003").state is S.PREPROCESSED


def test_one_whose_lease_has_run_out_takes_nothing_away(
    site: Site, app: Celery[Any], store: Store, player: Player
) -> None:
    """It may have been held up since it read, and hints look alike."""
    backend: Any = app.backend
    engine = Engine(site, app, store, player.client, backend, Journal(site))
    push(player.client, player.prefix, Wake())
    letters = engine._inbox.read(0)
    with pytest.raises(NotLeading):
        engine._receive(letters)
    assert player.client.llen(keys.inbox(player.prefix)) == 1
    engine._term = engine.leadership.term  # as it leads from the turn's beginning
    engine._receive(letters)
    assert not player.client.llen(keys.inbox(player.prefix))
