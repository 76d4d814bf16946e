"""Crashes of workers, pilot and Redis: no orphan, nothing lost, nothing twice."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from balsam_celery import keys, procs
from balsam_celery.outbox import read_outbox
from balsam_celery.wire import Ended, KillOrder, PilotEnded, Registered, WorkerLost
from tests import nasty
from tests.pilot.service import Service, make_site
from tests.pilot.test_kills import pids_in
from tests.redis_server import RedisServer
from tests.waiting import wait_until

NASTY = [sys.executable, nasty.__file__]


@pytest.mark.parametrize("kind", ["deaf", "session", "nameless"])
def test_kill_9_of_a_node_worker(service: Service, tmp_path: Path, kind: str) -> None:
    """Its programs are ended, its attempts come back, the other node never noticed."""
    pilot = service.start([2, 1])
    pids = tmp_path / "pids"
    pilot.run(
        pilot.spec("done", "/bin/true"),
        pilot.spec("lost", *NASTY, kind, str(pids)),
        pilot.spec("waiting", "/bin/sleep", "100"),
        pilot.spec("long", "/bin/sleep", "100", shares=(pilot.share("n0", 1),)),
    )
    beside = pilot.spec("beside", "/bin/sleep", "100", shares=(pilot.share("n1"),))
    pilot.run(beside, node="n1")
    found = wait_until(pids_in(pids, 1), 20, "it runs")
    wait_until(lambda: len(pilot.inspect("active")) >= 2, 10, "both run")
    service.ended("done")
    worker = pilot.pid_of("n0")
    os.kill(worker, signal.SIGKILL)
    for task in ("waiting", "long"):
        ended = service.ended(task)
        assert (ended.outcome, ended.reason) == ("lost", "its worker died")
    assert [pid for pid in found if procs.identity(pid)] == []
    [lost] = wait_until(lambda: service.all(WorkerLost), 10, "the loss is told")
    assert (lost.node, lost.reason, lost.restarted) == ("n0", "ended by signal 9", True)
    assert pilot.pid_of("n0") != worker
    pilot.run(pilot.spec("done", "/bin/false"), pilot.spec("long", "/bin/true", attempt=2))
    assert service.ended("long", 2).exit_code == 0
    done = {(e.exit_code, e.started) for e in service.all(Ended) if e.id == "done"}
    assert len(done) == 1, "told twice perhaps, run once"
    assert [one["id"] for one in pilot.inspect("active", "n1")] == ["beside"]


def test_a_worker_stopped_by_remote_control_is_replaced(service: Service) -> None:
    pilot = service.start([1])
    pilot.run(pilot.spec("runs", "/bin/sleep", "100"))
    wait_until(lambda: pilot.inspect("active"), 10, "it runs")
    service.app.control.shutdown([keys.worker_name(pilot.id, "n0")])
    # not drained: the service would place nothing more on the whole pilot
    assert service.ended("runs").outcome == "lost"
    wait_until(lambda: service.all(WorkerLost), 10, "the loss is told")
    pilot.run(pilot.spec("next", "/bin/true"))
    assert service.ended("next").exit_code == 0


def test_kill_9_of_the_pilot(service: Service, tmp_path: Path) -> None:
    """Its workers end their programs and themselves."""
    pilot = service.start([1])
    pids = tmp_path / "pids"
    pilot.run(pilot.spec("runs", *NASTY, "deaf", str(pids)))
    [pid] = wait_until(pids_in(pids, 1), 20, "it runs")
    worker = procs.identity(pilot.pid_of("n0"))
    pilot.process.kill()
    ended = service.ended("runs")
    assert (ended.outcome, ended.reason) == ("drained", "the main process of its pilot died")
    assert procs.identity(pid) is None
    wait_until(lambda: worker is None or not procs.alive(worker), 20, "the worker ends")
    assert not service.all(PilotEnded)


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_redis_away(tmp_path: Path, kill: bool) -> None:
    """Programs run on, outcomes wait, each arrives when Redis is back; its queue too."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis")
    server.start()
    service = Service(make_site(tmp_path / "site", server), server)
    try:
        pilot = service.start([2])
        mark = tmp_path / "mark"
        pilot.run(
            pilot.spec("during", "/bin/sh", "-c", f"sleep 2; touch {mark}"),
            pilot.spec("after", "/bin/true"),
            pilot.spec("long", "/bin/sleep", "100", shares=(pilot.share("n0", 1),)),
        )
        wait_until(lambda: len(pilot.inspect("active") or ()) == 2, 10, "both run")
        worker = pilot.pid_of("n0")
        server.stop(kill=kill)
        outbox = pilot.directory / "n0.outbox"
        wait_until(lambda: len(read_outbox(outbox)) == 2, 20, "both end while Redis is away")
        assert mark.exists()
        server.start()
        service.connect_again()
        assert service.ended("during").exit_code == 0
        assert service.ended("after").exit_code == 0
        pilot.run(pilot.spec("new", "/bin/true"))
        assert service.ended("new").exit_code == 0
        [active] = wait_until(lambda: pilot.inspect("active"), 20, "it answers again")
        assert active["id"] == "long"
        pilot.kill(KillOrder("long", 1, "over"))
        assert service.ended("long").outcome == "killed"
        assert pilot.pid_of("n0") == worker
        assert sorted(e.id for e in service.all(Ended)) == ["after", "during", "long", "new"]
    finally:
        service.close()
        server.stop()


def test_what_is_not_acknowledged_comes_again(service: Service) -> None:
    pilot = service.start([1])
    service.acknowledge = False
    pilot.run(pilot.spec("task", "/bin/true"))
    first = service.ended("task")
    wait_until(lambda: len(service.all(Ended)) >= 2, 20, "it comes again")
    assert service.all(Ended)[1] == first
    numbers = {number for _, _, number, record in service.records if isinstance(record, Ended)}
    assert len(numbers) == 1


def test_newer_incarnation_fences_the_older(service: Service) -> None:
    pilot = service.start([1])
    pilot.run(pilot.spec("runs", "/bin/sleep", "100"))
    wait_until(lambda: pilot.inspect("active"), 10, "it runs")
    (pilot.directory.parent / "incarnation").write_text("a newer one")
    assert service.ended("runs").outcome == "drained"
    assert pilot.wait_ended() == 0


def test_what_a_dead_incarnation_left_is_ended_by_the_next(
    service: Service, tmp_path: Path
) -> None:
    first = service.start([1])
    pids = tmp_path / "pids"
    first.run(first.spec("left", *NASTY, "session", str(pids)))
    found = wait_until(pids_in(pids, 1), 20, "it runs")
    # all that watches over it, at once
    watchers = [first.process.pid, first.identity_of("pilot").pid, first.pid_of("n0")]
    for signal_number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in watchers:
            os.kill(pid, signal_number)
    first.process.wait()
    wait_until(lambda: not procs.alive(first.identity_of("n0")), 10, "its worker is dead")
    assert [pid for pid in found if procs.identity(pid)] == found
    service.begin([1], allocation=first.allocation)
    wait_until(lambda: not any(map(procs.identity, found)), 30, "nothing of it lives")


def test_a_pilot_that_finds_no_redis_waits_for_it(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis")
    server.start()
    service = Service(make_site(tmp_path / "site", server), server)
    server.stop()
    try:
        pilot = service.begin([1])
        log = tmp_path / "site" / "run" / "allocations" / pilot.allocation
        wait_until(
            lambda: any("trying again" in path.read_text() for path in log.rglob("n0.log")),
            20,
            "the worker tries",
        )
        server.start()
        pilot.wait_registered()
        assert len(service.all(Registered)) == 1
    finally:
        service.close()
        server.stop()
