"""Pid files, locks, log rotation and back-off of the supervisor."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from balsam_celery import procs
from balsam_celery.errors import SiteError
from balsam_celery.site import Site
from balsam_celery.siteinit import init
from balsam_celery.supervisor import children, ending, records
from balsam_celery.supervisor.daemon import LONGEST_PAUSE, pause_before_restart
from balsam_celery.supervisor.locks import control_lock, try_lock
from balsam_celery.supervisor.logs import open_log, rotate, tail
from balsam_celery.supervisor.starting import short_delay
from tests.waiting import wait_until


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = init(tmp_path / "site")
    made.pid_dir.mkdir(mode=0o700)
    return made


def test_pid_file(site: Site) -> None:
    assert records.read(site, "beat") is None
    record = records.Record("beat", procs.own_identity(), 12.5, 2, 1, "signal 9")
    records.write(site, record)
    assert records.read(site, "beat") == record
    assert record.is_alive
    records.remove(site, "beat")
    records.remove(site, "beat")
    assert records.read(site, "beat") is None


@pytest.mark.parametrize("field", ["start_time", "boot_id"])
def test_stale_pid_file_is_not_taken_for_a_process(site: Site, field: str) -> None:
    mine = procs.own_identity()
    other = {"start_time": mine.start_time + 1, "boot_id": "another boot"}[field]
    stale = dataclasses.replace(mine, **{field: other})
    records.write(site, records.Record("beat", stale, 1.0))
    read = records.read(site, "beat")
    assert read is not None
    assert not read.is_alive
    assert not ending.end(site, "beat")  # and this process lives on
    assert records.read(site, "beat") is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"name": "beat"}', '{"process": {"pid": 1}}'])
def test_damaged_pid_file_is_none(site: Site, text: str) -> None:
    (site.pid_dir / "beat.json").write_text(text)
    assert records.read(site, "beat") is None


def test_lock_is_for_one(tmp_path: Path, site: Site) -> None:
    path = tmp_path / "lock"
    with try_lock(path) as first, try_lock(path) as second:
        assert (first, second) == (True, False)
    with try_lock(path) as again:
        assert again
    told: list[str] = []
    with (
        try_lock(site.local_dir / "control.lock"),
        pytest.raises(SiteError, match="another up or down"),
        control_lock(site, told.append, timeout=0.2),
    ):
        pass
    assert told == ["waiting for another up or down of this site"]


def test_rotation_of_a_log_in_use(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    descriptor = open_log(path)
    try:
        for number in range(5):
            os.write(descriptor, f"{number}".encode() * 10)
            assert rotate(path, 5, 2)
        assert not rotate(path, 5, 2)
        os.write(descriptor, b"last\n")
    finally:
        os.close(descriptor)
    assert path.read_text() == "last\n"
    assert (tmp_path / "a.log.1").read_text() == "4" * 10
    assert (tmp_path / "a.log.2").read_text() == "3" * 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.log", "a.log.1", "a.log.2"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "a.log.1").stat().st_mode & 0o777 == 0o600


def test_rotation_without_backups_cuts(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("x" * 10)
    assert rotate(path, 5, 0)
    assert path.read_text() == ""
    assert not rotate(tmp_path / "none.log", 5, 2)


def test_tail(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    assert tail(path) == ""
    path.write_text("one\ntwo\n\nthree\n")
    assert tail(path, 2) == "two | three"


def test_pauses_grow_and_a_long_life_forgives() -> None:
    failures, pauses = 0, []
    for _ in range(9):
        pause, failures = pause_before_restart(1.0, failures)
        pauses.append(pause)
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert pauses[-1] == LONGEST_PAUSE
    assert pause_before_restart(3600.0, failures) == (0.0, 0)


def test_environment_of_children(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://elsewhere")
    monkeypatch.setenv("PYTHONPATH", "relative:/absolute")
    environment = children.environment_for(site, "tasks")
    assert "CELERY_BROKER_URL" not in environment
    assert environment["PYTHONPATH"] == f"{Path.cwd()}/relative:/absolute"
    assert environment["BALSAM_SITE"] == str(site.directory)
    assert environment["BALSAM_ROLE"] == "tasks"
    secret = site.secret("redis")
    for name in children.names(site):
        child = children.child(site, name)
        assert secret not in str(child.argv) + str(child.environment)


def test_sweep_ends_what_carries_mark_and_role(site: Site) -> None:
    sleeper = [sys.executable, "-c", "import signal; signal.pause()"]
    environment = children.environment_for(site, "service")
    left = subprocess.Popen(sleeper, env=environment, start_new_session=True)
    # an allocation inherits the mark; the local scheduler took the role away
    del environment["BALSAM_ROLE"]
    allocation = subprocess.Popen(sleeper, env=environment, start_new_session=True)
    other = subprocess.Popen(sleeper, env=children.environment_for(site, "tasks"))
    try:
        wait_until(lambda: len(ending.members(site, ("service", "tasks"))) == 2)
        assert ending.sweep(site, ("service",))
        assert left.wait(10) == -9
        assert not ending.sweep(site, ("service",))
        assert allocation.poll() is None
        assert other.poll() is None
    finally:
        for process in (left, allocation, other):
            process.kill()
            process.wait(10)


def test_a_grace_longer_than_the_schedulers_is_told(site: Site) -> None:
    def told(kind: str, grace: int) -> str:
        old = site.settings
        changed = dataclasses.replace(
            old,
            site=dataclasses.replace(old.site, kill_grace=grace),
            scheduler=dataclasses.replace(old.scheduler, kind=kind),
        )
        return short_delay(dataclasses.replace(site, settings=changed))

    assert told("pbs", 4) == ""
    assert "kill_grace of 5s is long for pbs" in told("pbs", 5)
    assert told("local", 500) == ""
