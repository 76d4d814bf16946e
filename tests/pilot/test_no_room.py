"""Hosts on which programs have taken all processes that there can be: the pilot goes on."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_celery import keys, procs
from balsam_celery.outbox import Outbox
from balsam_celery.pilot.context import PilotContext, WorkerContext
from balsam_celery.pilot.fence import Fence
from balsam_celery.pilot.leavings import Leavings
from balsam_celery.resources import NodeCapacity
from balsam_celery.wire import Ended, KillOrder, WorkerLost
from tests import nasty
from tests.pilot.service import Service
from tests.pilot.test_kills import pids_in
from tests.waiting import wait_until

#: Makes each fork of a process of ours fail while a file is there, as a limit of the kernel does,
#: which spares root.
_CROWDED = """\
import errno, os
_fork = os.fork
def fork():
    if os.path.exists({full!r}):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return _fork()
os.fork = fork
"""
NASTY = [sys.executable, nasty.__file__]


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """While this file is there, no process of a pilot can fork."""
    file = tmp_path / "full"
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(_CROWDED.format(full=str(file)))
    monkeypatch.setenv("PYTHONPATH", str(modules))
    yield file
    file.unlink(missing_ok=True)


def refuse(*_: object) -> int:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def test_a_worker_that_dies_is_started_once_there_is_room(service: Service, full: Path) -> None:
    pilot = service.start([1, 1])
    log = pilot.directory / "pilot.log"
    runs = pilot.spec("runs", "/bin/sleep", "300", shares=(pilot.share("n1"),))
    pilot.run(runs, node="n1")
    wait_until(lambda: pilot.inspect("active", "n1"), 20, "it runs")
    full.touch()
    for node in ("n0", keys.GANG):
        os.kill(pilot.pid_of(node), signal.SIGKILL)
    wait_until(lambda: log.read_text().count("trying again") >= 2, 20, "they cannot be started")
    full.unlink()
    for task, node in (("one", "n0"), ("gang", keys.GANG)):
        pilot.run(pilot.spec(task, "/bin/true"), node=node)
        assert service.ended(task).exit_code == 0
    assert [one["id"] for one in pilot.inspect("active", "n1")] == ["runs"]


def test_the_last_worker_is_waited_for_and_a_drain_goes_on(service: Service, full: Path) -> None:
    pilot = service.start([1])
    log = pilot.directory / "pilot.log"
    pilot.run(pilot.spec("lost", "/bin/sleep", "300"))
    wait_until(lambda: pilot.inspect("active"), 20, "it runs")
    full.touch()
    os.kill(pilot.pid_of("n0"), signal.SIGKILL)
    wait_until(lambda: "cannot be looked at" in log.read_text(), 30, "the fence has no room")
    assert pilot.process.poll() is None
    pilot.process.send_signal(signal.SIGTERM)
    assert pilot.wait_ended() == 0
    assert "they stay in the outboxes" in log.read_text()
    assert not pilot.has_ended(), "the service is to read them"


def test_several_hosts(head: Service, full: Path, tmp_path: Path) -> None:
    """No room for a sweep, for a worker, for what cleans up after the gang worker."""
    pilot = head.start([1, 1, 1], virtual=False)
    pids = tmp_path / "pids"
    shares = tuple(pilot.whole(node) for node in ("n1", "n2"))
    pilot.run(pilot.spec("killed", *NASTY, "deaf", str(pids), shares=shares), node=keys.GANG)
    found = wait_until(pids_in(pids, 2), 60, "all ranks run")
    full.touch()
    pilot.kill(KillOrder("killed", 1, "asked"), node=keys.GANG)

    def told(name: str, text: str) -> bool:
        return text in (pilot.directory / f"{name}.log").read_text()

    for node in ("n1", "n2"):
        name = f"{node}.keeper"
        wait_until(lambda name=name: told(name, "trying again"), 20, "no sweep")  # type: ignore[misc]
    os.kill(pilot.pid_of("n1"), signal.SIGKILL)
    wait_until(
        lambda: told("n1.keeper", f"worker {keys.worker_name(pilot.id, 'n1')}: Res"), 20, "no"
    )
    full.unlink()
    assert head.ended("killed", timeout=60).outcome == "killed"
    assert [pid for pid in found if procs.identity(pid)] == []
    pilot.run(pilot.spec("one", "/bin/true", shares=shares[:1]), node="n1")
    assert head.ended("one").exit_code == 0
    full.touch()
    os.kill(pilot.pid_of(keys.GANG), signal.SIGKILL)
    wait_until(
        lambda: told("pilot", f"worker {keys.worker_name(pilot.id, keys.GANG)}: Res"), 20, "no"
    )
    full.unlink()
    wait_until(lambda: [o for o in head.all(WorkerLost) if o.node == keys.GANG], 30, "it is back")
    pilot.run(pilot.spec("next", "/bin/true", shares=shares), node=keys.GANG)
    assert head.ended("next", timeout=60).exit_code == 0


def test_no_look_at_the_fence(
    tmp_path: Path,
    children: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("balsam_celery.pilot.fence._EVERY", 0.0)
    files = len(list(Path("/proc/self/fd").iterdir()))
    fence = Fence(tmp_path, "older", children.append)
    (tmp_path / "incarnation").write_text("a newer one")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", refuse)
        assert [fence.closed() for _ in range(3)] == [False] * 3
    assert caplog.text.count("trying again") == 1
    assert len(list(Path("/proc/self/fd").iterdir())) == files
    wait_until(fence.closed, 10, "later looks tell")


def test_no_process_for_what_a_worker_has_left(
    service: Service, children: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("balsam_celery.pilot.leavings._AGAIN", 0.0)
    nodes = (NodeCapacity("n0", (0,)),)
    pilot = PilotContext(service.site, "pilot", "alloc", nodes, 2e9, {})
    pilot.directory.mkdir(parents=True)
    context = WorkerContext(pilot, "n0", nodes)
    outbox = Outbox(context.outbox_path)
    outbox.receive([("task", 1)])
    outbox.close()
    one = Leavings(context, "it died", children.append, lambda: ())
    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", refuse)
        assert not one.over()
    wait_until(lambda: (service.look(), one.over())[1], 30, "it is delivered")
    assert [(e.id, e.outcome) for e in service.all(Ended)] == [("task", "lost")]
    one.close()
