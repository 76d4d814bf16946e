"""The outbox of a worker that is given up, on a file system that answers late, badly or never."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from balsam_celery import keys
from balsam_celery.outbox import Outbox
from balsam_celery.pilot.context import PilotContext, WorkerContext
from balsam_celery.pilot.leavings import Leavings
from balsam_celery.resources import NodeCapacity
from balsam_celery.wire import Ended, Heartbeat, WorkerLost, decode
from tests.pilot.service import Service, make_site
from tests.pilot.test_giving_up import kill_until_given_up
from tests.redis_server import RedisServer
from tests.waiting import wait_until


@pytest.fixture
def context(service: Service) -> WorkerContext:
    nodes = (NodeCapacity("n0", (0,)),)
    pilot = PilotContext(service.site, "pilot", "alloc", nodes, time.time() + 600, {})
    pilot.directory.mkdir(parents=True)
    return WorkerContext(pilot, "n0", nodes)


def leavings(context: WorkerContext, children: list[int], patience: float = 60.0) -> Leavings:
    return Leavings(context, "it died", children.append, lambda: (), patience)


def test_an_outbox_that_cannot_be_read_is_tried_again(
    service: Service, context: WorkerContext, children: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("balsam_celery.pilot.leavings._AGAIN", 0.1)
    context.outbox_path.symlink_to(context.pilot.directory)
    one = leavings(context, children)
    wait_until(lambda: not one.over() and len(children) > 1, 20, "it is tried again")
    outbox = Outbox(context.pilot.directory / "written")
    outbox.receive([("task", 1)])
    outbox.close()
    outbox.path.rename(context.outbox_path)
    wait_until(lambda: (service.look(), one.over())[1], 30, "it is delivered")
    assert [(e.id, e.outcome) for e in service.all(Ended)] == [("task", "lost")]
    assert one.record.reason == "it died"
    one.close()


@pytest.mark.parametrize("hangs", [True, False])
def test_one_that_cannot_be_read_for_long_is_named(
    context: WorkerContext, children: list[int], hangs: bool
) -> None:
    path = context.outbox_path
    os.mkfifo(path) if hangs else path.mkdir()
    one = leavings(context, children, patience=1.0)
    assert not one.over(), "it is not waited for"
    wait_until(one.over, 20, "it is given up")
    why = "the file system does not answer" if hangs else "Is a directory"
    assert one.record.reason == f"it died; its outcomes are given up: {path}: {why}"
    assert not one.record.restarted
    assert one.record.confirmed
    one.close()


def test_a_pilot_goes_on_beside_one_that_hangs(service: Service) -> None:
    """Its beats do not stop, or all nodes would end what they run."""
    pilot = service.start([1, 1])
    outbox = pilot.directory / "n0.outbox"
    outbox.rename(outbox.with_suffix(".away"))
    os.mkfifo(outbox)
    kill_until_given_up(pilot, "n0")
    wait_until(lambda: service.all(WorkerLost)[4:], 20, "the loss is told")

    def beat() -> float:
        text = service.client.hget(keys.heartbeats(service.prefix, pilot.id), "pilot")
        return decode(Heartbeat, text).time

    last = beat()
    wait_until(lambda: beat() > last, 20, "the pilot lives")
    told = [one.confirmed for one in service.all(WorkerLost) if not one.restarted]
    assert told == [False]
    outbox.write_bytes(b"")  # whoever reads goes on

    def final() -> list[WorkerLost]:
        return [one for one in service.all(WorkerLost) if one.confirmed and not one.restarted]

    wait_until(final, 30, "that is told")


def test_one_that_cannot_be_read_is_tried_again_without_redis(tmp_path: Path) -> None:
    """Its patience is with the file system, and does not pass unused."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis")
    server.start()
    service = Service(make_site(tmp_path / "site", server), server)
    try:
        pilot = service.start([1, 1])
        outbox = pilot.directory / "n0.outbox"
        outbox.rename(outbox.with_suffix(".away"))
        outbox.mkdir()
        kill_until_given_up(pilot, "n0")
        server.stop(kill=True)
        log = pilot.directory / "pilot.log"

        def tries() -> int:
            return log.read_text().count("Is a directory: trying again")

        seen = tries()
        wait_until(lambda: tries() > seen + 1, 60, "it is tried again")
        server.start()
    finally:
        service.close()
        server.stop()
