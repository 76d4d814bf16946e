"""Steps on a real tasks worker: lost with it, given out again, killed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from balsam_celery import keys
from balsam_celery.celeryapp import redis_client
from balsam_celery.service import checks
from balsam_celery.service.engine import Engine
from balsam_celery.service.requests import request_kill
from balsam_celery.site import Site
from balsam_celery.states import State
from balsam_celery.store.engine import Store
from tests.service.acting import attempts_of, step
from tests.service.running.player import Player, wait_state
from tests.service.running.test_workers import checked
from tests.service.running.workers import Workers, read_lines, workers, write_module
from tests.store.making import add, task
from tests.waiting import wait_until

__all__ = ["workers"]
S = State

pytestmark = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
MODULE = """\
import os, threading
from balsam_celery import app

HERE = os.path.dirname(os.path.abspath(__file__))

@app.task(name="mine.hold")
def hold(number):
    with open(os.path.join(HERE, "held"), "a") as file:
        file.write(f"{number}\\n")
    while not os.path.exists(os.path.join(HERE, "go")):
        threading.Event().wait(0.05)
    return number + 1
"""


def test_a_message_of_a_step_that_redis_gives_out_again_runs_nothing(
    make_engine: Callable[[], Engine], workers: Workers, store: Store, site: Site, player: Player
) -> None:
    """A Redis that was killed has forgotten that it was taken, and that it has begun."""
    write_module(site, "mine", MODULE)
    make_engine()
    hold = dataclasses.replace(step("s00001"), application="mine.hold")
    add(store, dataclasses.replace(hold, arguments={"args": [1], "kwargs": {}}), now=time.time())
    queue = f"{player.prefix}{keys.TASKS_QUEUE}"
    [message] = wait_until(lambda: player.client.lrange(queue, 0, -1), 20, "it is sent")
    worker = workers.start("tasks", "one", "-c", "2")
    wait_state(store, "s00001", S.RUNNING)

    def again(times: int) -> None:
        player.client.delete(keys.begun(player.prefix, keys.step_message("s00001")))
        player.client.lpush(queue, message)
        dropped = "dropped a message of step s00001"
        wait_until(lambda: worker.log.read_text().count(dropped) == times, 20, "it is dropped")

    again(1)
    assert worker.inspect("query_task", "s00001")["s00001"][0] == "active"
    (site.directory / "go").touch()
    wait_state(store, "s00001", S.JOB_FINISHED)
    again(2)
    assert len(read_lines(site.directory / "held")) == 1
    assert len(attempts_of(store, "s00001")) == 1


def test_steps_whose_worker_dies_start_again(
    make_engine: Callable[[], Engine],
    workers: Workers,
    store: Store,
    site: Site,
    app: Celery[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks, "PAUSE", 1.0)
    write_module(site, "mine", MODULE)
    engine = make_engine()
    check = checks.Checks(
        store, app, redis_client(site), site.settings.key_prefix, engine.leadership,
        engine.outstanding, site.settings.retry,
    )  # fmt: skip
    first = workers.start("tasks", "one", "-c", "1")
    hold = dataclasses.replace(step("s00001"), application="mine.hold")
    after = dataclasses.replace(
        step("s00002", parents=["s00001"], inputs="single"), application="mine.hold"
    )
    waiting = dataclasses.replace(hold, id="s00003", arguments={"args": [5], "kwargs": {}})
    hold = dataclasses.replace(hold, arguments={"args": [1], "kwargs": {}})
    add(store, hold, after, now=time.time())
    wait_state(store, "s00001", S.RUNNING)
    add(store, waiting, now=time.time())
    wait_state(store, "s00003", S.DISPATCHED)

    # a living worker has them, so nothing happens
    checked(check, 3)
    assert task(store, "s00001").attempt == 1
    first.kill()
    # while no worker answers nothing is known
    checked(check, 1)
    assert task(store, "s00001").attempt == 1
    # as the supervisor does it, by the same name
    workers.start("tasks", "one", "-c", "1")
    wait_until(lambda: check.run() is not None and task(store, "s00001").attempt == 2, 60, "again")
    assert [a.outcome for a in attempts_of(store, "s00001")] == ["lost", None]
    (site.directory / "go").touch()
    for id in ("s00001", "s00002", "s00003"):
        wait_until(lambda: check.run() or True, 1, "")
        wait_state(store, id, S.JOB_FINISHED, 60)
    assert (task(store, "s00002").result, task(store, "s00003").result) == (3, 6)
    assert read_lines(site.directory / "held").count("1") == 2


def test_kills_of_steps_and_revokes_of_ordinary_tasks(
    make_engine: Callable[[], Engine],
    workers: Workers,
    store: Store,
    site: Site,
    app: Celery[Any],
) -> None:
    write_module(site, "mine", MODULE)
    make_engine()
    workers.start("tasks", "one", "-c", "1")
    hold = dataclasses.replace(step("s00001"), application="mine.hold")
    add(store, dataclasses.replace(hold, arguments={"args": [1], "kwargs": {}}), now=time.time())
    wait_state(store, "s00001", S.RUNNING)
    request_kill(store, ["s00001"], "enough")
    wait_state(store, "s00001", S.USER_KILLED)
    ordinary = app.send_task("mine.hold", args=[7], queue=keys.TASKS_QUEUE)
    wait_until(lambda: "7" in read_lines(site.directory / "held"), 30, "it runs")
    ordinary.revoke(terminate=True)
    wait_until(lambda: ordinary.state == "REVOKED", 30, "it is revoked")
    (site.directory / "go").touch()
