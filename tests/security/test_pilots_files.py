"""What a pilot makes is for its owner alone, whatever the batch system's umask."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pilot.service import Pilot, Service, make_site
from tests.redis_server import RedisServer


@pytest.fixture
def open_pilot(tmp_path: Path, redis_server: RedisServer) -> Iterator[Pilot]:
    """A pilot of two nodes that was started with an open umask."""
    service = Service(make_site(tmp_path / "site", redis_server), redis_server)
    before = os.umask(0)
    try:
        begun = service.begin([1, 1])
    finally:
        os.umask(before)
    try:
        begun.wait_registered()
        yield begun
    finally:
        service.close()


def test_modes(open_pilot: Pilot) -> None:
    open_pilot.run(open_pilot.spec("one", "/bin/sh", "-c", "echo out; echo err >&2; touch own"))
    assert open_pilot.service.ended("one").exit_code == 0
    made = list(open_pilot.service.site.run_dir.rglob("*"))
    names = {path.name for path in made}
    assert {"pilot.log", "n0.log", "stdout", "stderr", "own"} <= names
    for path in made:
        assert stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0, path
