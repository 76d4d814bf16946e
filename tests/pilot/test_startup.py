"""A pilot that cannot start says why where the service finds it; it waits for a scheduler."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from balsam_celery import keys, wire
from balsam_celery.pilot.fence import INCARNATION
from balsam_celery.resources import NodeCapacity
from balsam_celery.schedulers.base import JobNodes
from balsam_celery.schedulers.local_state import NODES
from balsam_celery.site import Site
from balsam_celery.wire import Registered
from tests.pilot.service import Service
from tests.waiting import wait_until

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def site(service: Service) -> Site:
    return service.site


@pytest.fixture
def directory(site: Site) -> Path:
    """Of the allocation ``a1``, as the service makes it."""
    path = site.run_dir / "allocations" / "a1"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def start(site: Site, tmp_path: Path) -> Iterator[Start]:
    """Starts a pilot whose nodes that file tells, with its output in ``pilot.out``."""
    started: list[subprocess.Popen[bytes]] = []

    def run(nodes: Path | None = None, allocation: str = "a1") -> subprocess.Popen[bytes]:
        environment = {key: value for key, value in os.environ.items() if key != NODES}
        command = [sys.executable, "-m", "balsam_celery.pilot", "--site", str(site.directory)]
        with (tmp_path / "pilot.out").open("wb") as output:
            process = subprocess.Popen(
                [*command, "--allocation", allocation],
                env=environment | ({NODES: str(nodes)} if nodes else {}),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def settings_end(site: Site, text: str) -> None:
    """Add to ``site.toml``."""
    path = site.directory / "site.toml"
    path.write_text(path.read_text() + text)


def test_not_inside_a_job(start: Start, directory: Path) -> None:
    assert start().wait(60) == 1
    text = (directory / keys.ERROR_FILE).read_text()
    assert text == f"not inside a job of the local scheduler: {NODES} is not set\n"


def test_settings_that_cannot_be_used(start: Start, site: Site, directory: Path) -> None:
    settings_end(site, "[launchers]\nkind = 'x'\n")
    assert start().wait(60) == 2
    assert "unknown key 'launchers'" in (directory / keys.ERROR_FILE).read_text()


def test_settings_that_are_no_toml(start: Start, site: Site, directory: Path) -> None:
    settings_end(site, "[launcher\n")
    assert start().wait(60) == 2
    assert "not valid TOML" in (directory / keys.ERROR_FILE).read_text()


def test_a_run_directory_elsewhere(start: Start, site: Site, tmp_path: Path) -> None:
    elsewhere = tmp_path / "scratch" / "allocations" / "a1"
    elsewhere.mkdir(parents=True)
    path = site.directory / "site.toml"
    changed = path.read_text().replace("[site]\n", f'[site]\nrun_dir = "{tmp_path}/scratch"\n')
    path.write_text(changed + "[launchers]\n")
    assert start().wait(60) == 2
    assert "unknown key 'launchers'" in (elsewhere / keys.ERROR_FILE).read_text()


def test_a_site_open_to_others(start: Start, site: Site, directory: Path) -> None:
    site.directory.chmod(0o755)
    assert start().wait(60) == 2
    assert "chmod 700" in (directory / keys.ERROR_FILE).read_text()


def test_a_secret_open_to_others(start: Start, site: Site, directory: Path, tmp_path: Path) -> None:
    nodes = tmp_path / "nodes"
    job = JobNodes((NodeCapacity("n0", (0,)),), time.time() + 600, "", virtual=True)
    nodes.write_text(wire.encode(job))
    (site.directory / "redis-url").chmod(0o644)
    assert start(nodes).wait(60) == 2
    assert "redis-url is open to others" in (directory / keys.ERROR_FILE).read_text()


def test_a_wrong_password_of_redis(
    start: Start, site: Site, directory: Path, tmp_path: Path
) -> None:
    """No time mends it: the allocation's reason tells, and the password is not in it."""
    nodes = tmp_path / "nodes"
    job = JobNodes((NodeCapacity("n0", (0,)),), time.time() + 600, "17", virtual=True)
    nodes.write_text(wire.encode(job))
    secret = site.directory / "redis-url"
    before, _, after = secret.read_text().partition("@")
    secret.write_text(f"{before}geheim@{after}")
    assert start(nodes).wait(60) == 1
    text = (directory / keys.ERROR_FILE).read_text()
    assert text.startswith("Redis refuses the site's password")
    assert len(text.splitlines()) == 1
    assert "geheim" not in text + (tmp_path / "pilot.out").read_text()


def test_no_directory_is_made_for_an_allocation_that_there_is_none_of(
    start: Start, site: Site, tmp_path: Path
) -> None:
    assert start().wait(60) == 1
    assert "not inside a job" in (tmp_path / "pilot.out").read_text()
    assert not site.run_dir.exists()


@pytest.mark.parametrize("allocation", ["../a1", "a1/..", "..", "", "/tmp"])
def test_an_id_that_leads_elsewhere(
    start: Start, site: Site, directory: Path, tmp_path: Path, allocation: str
) -> None:
    assert start(allocation=allocation).wait(60) == 2
    assert f"{allocation!r} is no id of an allocation" in (tmp_path / "pilot.out").read_text()
    assert not list(site.directory.rglob(keys.ERROR_FILE))


def test_a_directory_that_cannot_be_written(start: Start, directory: Path, tmp_path: Path) -> None:
    """The disk may have become full since the job was submitted."""
    (directory / INCARNATION).mkdir()
    nodes = tmp_path / "nodes.json"
    job = JobNodes((NodeCapacity("n0", (0,)),), time.time() + 600, "job-1", virtual=True)
    nodes.write_text(wire.encode(job))
    assert start(nodes).wait(60) == 1
    text = (directory / keys.ERROR_FILE).read_text()
    assert text == f"cannot start: Is a directory: {directory / INCARNATION}\n"
    assert (tmp_path / "pilot.out").read_text() == f"pilot: {text}"


def test_a_scheduler_that_answers_late(
    start: Start, service: Service, directory: Path, tmp_path: Path
) -> None:
    nodes = tmp_path / "nodes"
    process = start(nodes)
    wait_until(
        lambda: "trying again" in (tmp_path / "pilot.out").read_text(), 30, "the pilot asks again"
    )
    job = JobNodes((NodeCapacity("n0", (0,)),), time.time() + 600, "", virtual=True)
    nodes.write_text(wire.encode(job))
    wait_until(lambda: service.all(Registered), 60, "the pilot registers")
    process.send_signal(signal.SIGTERM)

    def ended() -> bool:
        service.look()
        return process.poll() is not None

    wait_until(ended, 30, "the pilot ends")
    assert process.returncode == 0
    assert not (directory / keys.ERROR_FILE).exists()


def test_a_scheduler_that_does_not_answer(
    start: Start, site: Site, directory: Path, tmp_path: Path
) -> None:
    path = site.directory / "site.toml"
    path.write_text(path.read_text().replace("[pilot]\n", '[pilot]\nstart_timeout = "1s"\n'))
    assert start(tmp_path / "none").wait(60) == 1
    assert (directory / keys.ERROR_FILE).read_text().startswith(f"{NODES}={tmp_path}/none: ")
    assert (tmp_path / "pilot.out").read_text().count("trying again") == 1
