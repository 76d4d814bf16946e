"""``up``, ``status`` and ``down`` with all of a site's real processes."""

from __future__ import annotations

import base64
import dataclasses
import http.client
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_celery import brands, keys, procs
from balsam_celery.celeryapp import make_site_app, redis_client
from balsam_celery.errors import SiteError
from balsam_celery.schedulers import make_scheduler
from balsam_celery.schedulers.base import JobRequest, JobState
from balsam_celery.service.requests import request_kill
from balsam_celery.site import Site, connect_store
from balsam_celery.siteinit import init
from balsam_celery.states import State
from balsam_celery.supervisor import SiteStatus, children, down, ending, status, up
from balsam_celery.supervisor.probes import WORKERS
from tests import nasty
from tests.site.leftovers import ALL, fresh, left_running
from tests.site.test_site import change
from tests.store.making import add, program, task
from tests.waiting import wait_until

__all__ = ["fresh"]
UP = "import sys, pathlib; from balsam_celery import site, supervisor; " + (
    "supervisor.up(site.find(pathlib.Path(sys.argv[1])), print)"
)


def start_up(site: Site) -> subprocess.Popen[str]:
    """Run ``up`` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", UP, str(site.directory)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def pids(site: Site) -> dict[str, int | None]:
    return {process.name: process.pid for process in status(site).processes}


def kill(site: Site, name: str) -> int:
    pid = pids(site)[name]
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


def all_up_with_new(site: Site, name: str, old: int) -> bool:
    now = status(site)
    return now.up and pids(site)[name] not in (None, old)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, list[str]]]:
    """A site that two ``up`` started at the same time, with what they said."""
    site = init(tmp_path_factory.mktemp("up") / "site")
    site = change(site, "max_bytes = 10000000", "max_bytes = 300")
    site = change(site, "concurrency = 2\nstep_timeout", "concurrency = 4\nstep_timeout")
    both = [start_up(site), start_up(site)]
    try:
        said = [process.communicate(timeout=120)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        yield site, said
    finally:
        down(site)
        assert left_running(site) == {}


@pytest.fixture
def running(started: tuple[Site, list[str]]) -> Site:
    """The site, with all its processes up."""
    site = started[0]
    up(site)
    return site


def test_two_at_once_start_one_site(started: tuple[Site, list[str]]) -> None:
    site, said = started
    for text in said:
        lines = text.splitlines()
        assert {f"{name} answers" for name in children.NAMES} <= set(lines)
    assert any("waiting for another up or down" in text for text in said)
    now = status(site)
    assert now.up
    assert [process.name for process in now.processes] == list(ALL)
    assert all(process.restarts == 0 and process.uptime > 0 for process in now.processes)
    assert (now.tasks, now.allocations, now.pilots, now.note) == ({}, (), (), "")
    for name in children.NAMES:
        leaders = [p for p in ending.members(site, (name,)) if p.pid == pids(site)[name]]
        assert len(leaders) == 1, name


def test_up_again_is_harmless(running: Site) -> None:
    before = pids(running)
    said: list[str] = []
    up(running, said.append)
    assert pids(running) == before
    assert set(said) == {f"{name} answers" for name in children.NAMES}


def test_workers_answer_celery(running: Site) -> None:
    with make_site_app(running) as app:
        replies = app.control.inspect(timeout=5, limit=3).ping() or {}
    assert {children.worker_host(name) for name in WORKERS} <= set(replies)


def test_flower_wants_its_password(running: Site) -> None:
    def get(path: str, password: str | None) -> int:
        connection = http.client.HTTPConnection(
            "127.0.0.1", running.settings.flower.port, timeout=10
        )
        headers = {}
        if password is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(
                f"balsam:{password}".encode()
            ).decode("ascii")
        try:
            connection.request("GET", path, headers=headers)
            return connection.getresponse().status
        finally:
            connection.close()

    assert get("/workers", None) == 401
    assert get("/workers", "wrong") == 401
    assert get("/workers", running.secret("flower")) == 200


def test_secrets_stay_secret(running: Site) -> None:
    secrets = [running.secret("redis"), running.secret("flower")]
    seen = 0
    for pid in procs.marked({children.mark(running, name) for name in ALL}):
        for leaf in ("cmdline", "environ"):
            text = Path(f"/proc/{pid}/{leaf}").read_text(errors="replace")
            assert not any(secret in text for secret in secrets), (pid, leaf)
            seen += 1
    assert seen >= 2 * len(ALL)
    for directory in (running.directory, running.local_dir):
        for path in directory.rglob("*"):
            mode = path.lstat().st_mode & 0o777
            assert mode & 0o077 == 0 or path.is_socket(), (path, oct(mode))
    for path in running.log_dir.iterdir():
        text = path.read_text(errors="replace")
        assert not any(secret in text for secret in secrets), path


def test_logs_rotate_under_their_writers(running: Site) -> None:
    log = running.log_dir / "tasks.log"
    wait_until(lambda: log.with_name("tasks.log.1").exists(), 30, "tasks.log is rotated")
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["service", "tasks", "redis"])
def test_kill_9_of_a_process_starts_it_again(running: Site, name: str) -> None:
    before = status(running)
    pool = ending.members(running, (name,))
    old = kill(running, name)
    wait_until(lambda: all_up_with_new(running, name, old), 15, f"{name} is started again")
    assert not any(procs.alive(process) for process in pool)
    up(running)
    after = {process.name: process for process in status(running).processes}
    assert "signal 9" in after[name].note
    # and the others never noticed
    same = {process.name: process.pid for process in before.processes if process.name != name}
    assert {key: after[key].pid for key in same} == same


def test_redis_that_hangs_is_not_up(running: Site) -> None:
    pid = pids(running)["redis"]
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        now = status(running)
    finally:
        os.kill(pid, signal.SIGCONT)
    [redis] = [process for process in now.processes if process.name == "redis"]
    assert (redis.up, redis.pid, now.up) == (False, pid, False)
    assert "Timeout" in redis.note
    wait_until(lambda: status(running).up, 20, "Redis answers again")


def test_kill_9_of_the_supervisor(running: Site) -> None:
    old = pids(running)
    kill(running, children.SUPERVISOR)
    wait_until(lambda: not status(running).processes[0].up, 5, "the supervisor is gone")
    assert [process.up for process in status(running).processes[1:]] == [True] * 6
    said: list[str] = []
    up(running, said.append)
    assert "ended the service of an earlier life" in said
    new = pids(running)
    assert all(new[name] not in (None, old[name]) for name in ALL)
    for pid in old.values():
        assert pid is not None
        assert procs.identity(pid) is None


def test_term_to_the_supervisor_stops_all(running: Site) -> None:
    pid = pids(running)[children.SUPERVISOR]
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not left_running(running), 30, "all have ended")
    assert not any(process.up for process in status(running).processes)


def test_down_after_kill_9_of_the_supervisor_leaves_nothing(running: Site) -> None:
    kill(running, children.SUPERVISOR)
    said: list[str] = []
    down(running, said.append)
    assert left_running(running) == {}
    assert said.index("beat has ended") < said.index("service has ended")
    assert said[-1] == "redis has ended"
    now: SiteStatus = status(running)
    assert not now.up
    assert not any(process.up for process in now.processes)
    assert now.note == ""  # the database answers without any process
    down(running)  # harmless


def sleepers(seconds: float) -> set[procs.Identity]:
    """Living processes that sleep for exactly so long, whatever their environment."""
    found = set()
    for pid in procs.snapshot():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except procs.UNSEEN:
            continue
        if command == f"sleep\0{seconds}\0".encode() and (one := procs.identity(pid)):
            found.add(one)
    return found


@pytest.fixture
def bare() -> Iterator[list[float]]:
    """How long programs of the test sleep; those that still do at its end are ended."""
    seconds: list[float] = []
    yield seconds
    for process in set[procs.Identity]().union(*map(sleepers, seconds)):
        procs.send(process, signal.SIGKILL)


@pytest.fixture
def hook_of_another_site() -> Iterator[subprocess.Popen[bytes]]:
    """A program that only its brand tells of."""
    with brands.children_branded(job=keys.hooks_job("another"), attempt="theirs"):
        process = subprocess.Popen(["sleep", "600"], env={})
    yield process
    process.kill()
    process.wait()


def test_down_ends_hooks(
    running: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bare: list[float],
    hook_of_another_site: subprocess.Popen[bytes],
) -> None:
    """Also what a transitions worker that was killed has left; they run again after the next up.

    Some have a process with an emptied environment beside one that tells of them, some nothing
    but such a process.
    """
    monkeypatch.setitem(ending.GRACE, "transitions", 1.0)  # all of these outlast it
    store = connect_store(running)
    marks = set()
    for killed in (False, True):
        pids, seconds = tmp_path / f"pids-{killed}", 600.25 + killed
        script = f"{sys.executable} {nasty.__file__} nameless {pids}; exec sleep 300"
        hooks = {
            f"hook-{killed}": ["sh", "-c", script],
            f"bare-{killed}": ["env", "-i", "sleep", str(seconds)],
        }
        add(store, *(
            dataclasses.replace(program(id), hooks={"preprocess": hook})
            for id, hook in hooks.items()
        ))  # fmt: skip
        marks.add(f"BALSAM_HOOK=hook-{killed}.0.preprocess")
        bare.append(seconds)
        wait_until(lambda file=pids: file.exists() and len(read(file)) == 2, 60, "a hook runs")
        wait_until(lambda time=seconds: sleepers(time), 60, "the other hook runs")
        left, marked = read(pids), procs.marked(marks)
        assert any(procs.identity(pid) for pid in left)
        if killed:
            kill(running, "supervisor")
            kill(running, "transitions")
            assert procs.marked(marks) == marked
            assert sleepers(seconds)
        down(running)
        assert left_running(running) == {}
        assert not any(procs.identity(pid) for pid in left)
        assert not any(sleepers(one) for one in bare)
        assert hook_of_another_site.poll() is None
        up(running)
    wait_until(
        lambda: all(map(sleepers, bare)) and all(procs.marked({mark}) for mark in marks),
        90,
        "they run again",
    )
    ids = [f"{name}-{killed}" for killed in (False, True) for name in ("hook", "bare")]
    assert set(request_kill(store, ids, "enough").requested) == set(ids)
    wait_until(
        lambda: {task(store, id).state for id in ids} == {State.USER_KILLED}, 60, "all are killed"
    )
    assert not procs.marked(marks)
    assert not any(map(sleepers, bare))
    store.close()


def read(pids: Path) -> list[int]:
    """The process ids in a file, a line each."""
    return [int(pid) for pid in pids.read_text().split()]


def test_down_ends_allocations_of_the_local_scheduler(running: Site, tmp_path: Path) -> None:
    scheduler = make_scheduler("local", settings=running.settings, local_dir=running.local_dir)
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\nsetsid sleep 1000 &\nexec sleep 1000\n")
    ids = [
        scheduler.submit(
            JobRequest(f"job-{number}", "local", 2, 3600, script=script, directory=tmp_path)
        )
        for number in range(2)
    ]
    wait_until(lambda: scheduler.jobs()[ids[0]].state is JobState.RUNNING, 30, "the job runs")
    assert scheduler.jobs()[ids[1]].state is JobState.QUEUED
    said: list[str] = []
    down(running, said.append)
    assert [scheduler.jobs()[name].state for name in ids] == [JobState.ENDED] * 2
    assert f"cancelling allocation {ids[0]}" in said
    assert left_running(running) == {}


def test_what_runs_survives_up_and_a_restart_of_the_service(running: Site, tmp_path: Path) -> None:
    scheduler = make_scheduler("local", settings=running.settings, local_dir=running.local_dir)
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\nexec sleep 1000\n")
    job = scheduler.submit(JobRequest("stays", "local", 1, 3600, script=script, directory=tmp_path))
    wait_until(lambda: scheduler.jobs()[job].state is JobState.RUNNING, 30, "the job runs")
    kill(running, children.SUPERVISOR)
    up(running)
    assert scheduler.jobs()[job].state is JobState.RUNNING
    down(running)
    assert scheduler.jobs()[job].state is JobState.ENDED


def test_database_of_another_site_is_refused(fresh: Site, started: tuple[Site, list[str]]) -> None:
    theirs = started[0].database_path
    site = change(fresh, 'path = ""', f'path = "{theirs}"')
    with pytest.raises(SiteError, match=f"is another site's \\({started[0].settings.site.id}\\)"):
        up(site)
    assert left_running(fresh) == {}


def test_queues_have_the_sites_prefix(running: Site) -> None:
    with make_site_app(running) as app:
        app.send_task("balsam.nothing", queue="pilot.x.y")
    with redis_client(running) as client:
        found = client.keys("*")
        assert isinstance(found, list)
        assert f"{running.settings.key_prefix}pilot.x.y".encode() in found
        assert all(key.decode().startswith(running.settings.key_prefix) for key in found)
        client.delete(f"{running.settings.key_prefix}pilot.x.y")
