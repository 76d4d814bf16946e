"""What Flower sees: Celery's own state machine fed with the events that we send."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery.events.state import State as Seen

from balsam_celery.service.engine import Engine
from balsam_celery.service.requests import request_kill, retry
from balsam_celery.store.engine import Store
from balsam_celery.wire import Ended, Started
from tests.service.running.player import Player, over
from tests.store.making import add, program, task
from tests.waiting import wait_until

pytestmark = pytest.mark.parametrize("url", ["sqlite"], indirect=True)


@pytest.fixture
def seen(app: Celery[Any]) -> Iterator[Seen]:
    """The cluster as Flower's state machine sees it."""
    state: Seen = app.events.State()
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": state.event})
        ready = threading.Event()

        def listen() -> None:
            with receiver.consumer_context(wakeup=False) as (_, channel, _consumers):
                ready.set()
                while not receiver.should_stop:
                    try:
                        channel.connection.client.drain_events(timeout=0.1)
                    except TimeoutError:
                        continue

        thread = threading.Thread(target=listen)
        thread.start()
        assert ready.wait(20)
        yield state
        receiver.should_stop = True
        thread.join(10)


def wait_seen(seen: Seen, id: str, state: str) -> Any:
    def is_there() -> Any:
        found = seen.tasks.get(id)
        return found if found is not None and found.state == state else None

    return wait_until(is_there, 20, f"{id} is seen as {state}")


def test_success_failure_retry_and_kill(
    make_engine: Callable[[], Engine], store: Store, player: Player, seen: Seen
) -> None:
    make_engine()
    player.register("p1")
    add(
        store,
        program("t00001", name="relax water", max_retries=1, retry_delay=0.0),
        now=time.time(),
    )
    [spec] = player.wait_specs(1, "p1")
    found = wait_seen(seen, "t00001", "RECEIVED")
    assert (found.name, found.args, found.worker.hostname) == ("relax water", "/bin/true", "n0@p1")
    player.tell("p1", "n0", Started("t00001", 1, time.time(), 1))
    wait_seen(seen, "t00001", "STARTED")
    # a failure that is tried again is never shown as FAILURE
    player.tell("p1", "n0", over(spec, code=1))
    [spec] = player.wait_specs(1, "p1")
    player.tell("p1", "n0", Started("t00001", 2, time.time(), 1))
    wait_seen(seen, "t00001", "STARTED")
    player.tell("p1", "n0", over(spec, code=1))
    found = wait_seen(seen, "t00001", "FAILURE")
    assert found.exception == "TaskFailed('exit code 1')"
    assert (found.retries, found.worker.hostname) == (1, "n0@p1")
    retry(store, ["t00001"])
    [spec] = player.wait_specs(1, "p1")
    player.tell("p1", "n0", Started("t00001", 3, time.time(), 1))
    wait_seen(seen, "t00001", "STARTED")
    request_kill(store, ["t00001"], "x")
    player.tell("p1", "n0", Ended("t00001", 3, "killed", "x", time.time(), time.time()))
    wait_seen(seen, "t00001", "REVOKED")
    retry(store, ["t00001"])
    [spec] = player.wait_specs(1, "p1")
    player.run("p1", "n0", spec)
    found = wait_seen(seen, "t00001", "SUCCESS")
    assert found.runtime is not None
    assert found.result.startswith("finished in ")
    assert task(store, "t00001").attempt == 4


def test_a_task_that_never_ran_has_a_name(
    make_engine: Callable[[], Engine], store: Store, seen: Seen
) -> None:
    make_engine()
    add(store, program("t00001", name="never"), now=time.time())
    request_kill(store, ["t00001"], "x")
    assert wait_seen(seen, "t00001", "REVOKED").name == "never"


def test_many_short_tasks(
    make_engine: Callable[[], Engine], store: Store, player: Player, seen: Seen
) -> None:
    make_engine()
    player.register("p1", (8,))
    ids = [f"t{number:05}" for number in range(100)]
    add(store, *(program(id) for id in ids), now=time.time())

    def all_seen() -> bool:
        for spec in player.take("p1")[0]:
            player.run("p1", "n0", spec)
        return all(id in seen.tasks and seen.tasks[id].state == "SUCCESS" for id in ids)

    wait_until(all_seen, 40, "all are seen to succeed")
