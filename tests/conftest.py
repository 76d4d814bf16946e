"""What every test gets: a Redis on request, and proof that nothing was left running."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from tests.clients import clients
from tests.redis_server import RedisServer

# A loaded machine is no counterexample, so there are no deadlines. Under CI each run draws the same
# examples, so that a change is judged by itself, and fewer; elsewhere each draws new ones, which
# finds more in the long run, and keeps its finds.
CI = bool(os.environ.get("CI"))
settings.register_profile(
    "balsam",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
    derandomize=CI,
    max_examples=60 if CI else 100,
    database=None if CI else settings.default.database,
)
settings.load_profile("balsam")

# Containers often set this: each of some thousand processes would compile the package anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

MARK = "BALSAM_TEST_RUN"
ROOT = Path(__file__).resolve().parent.parent


def _marked(value: str) -> dict[int, str]:
    """Living processes, this one aside, that carry the mark of this run."""
    wanted = f"{MARK}={value}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(entry.name)] = command.decode(errors="replace")
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue  # it ended, or it is not ours
    return found


#: Long tests that share nothing: each is for whichever process is free.
APART = (
    "tests/slurm/test_own_faults.py",
    "tests/acceptance/test_pbs.py",
)
#: Folders whose tests share what is dear to start (or ids of tasks, by which processes are ended),
#: so that one process runs all of them; elsewhere it is a file.
TOGETHER = (
    "tests/acceptance/test_planning.py",  # these have a site of their own
    "tests/acceptance/test_postgres.py",
    "tests/acceptance/",
    "tests/pilot/",
    "tests/pressure/",
    "tests/security/",
    "tests/service/",
    "tests/cli/",
    "tests/api/",
    "tests/store/",
)
#: What takes longest begins first.
FIRST = (
    "tests/slurm/test_faults",
    "tests/acceptance/",
    "tests/service/",
    "tests/pilot/",
    "tests/slurm/test_own_faults",
    "tests/slurm/",
    "tests/chaos/test_short",
    "tests/pressure/",
    "tests/site/test_supervisor",
    "tests/store/",
    "tests/security/",
    "tests/api/",
    "tests/cli/",
    "tests/planning/",
)


def unit_of(nodeid: str) -> str:
    """What goes to one process as a whole: the test itself, its file or its folder."""
    place, _, _ = nodeid.partition("::")
    if place in APART:
        return nodeid
    return next((prefix for prefix in TOGETHER if place.startswith(prefix)), place)


class Together(LoadScopeScheduling):  # type: ignore[misc]
    """Gives each process whole folders or files, or single tests of :data:`APART`."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    """Used with ``-n``."""
    return Together(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""
    items.sort(key=lambda item: _rank(item.path.relative_to(ROOT).as_posix()))


def _rank(place: str) -> int:
    return next((n for n, prefix in enumerate(FIRST) if place.startswith(prefix)), len(FIRST))


@pytest.fixture(scope="session", autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Every test stops what it started: a run leaves no process behind."""
    value = secrets.token_hex(8)
    os.environ[MARK] = value
    yield
    left = _marked(value)
    assert not left, f"processes left running: {left}"


@pytest.fixture(scope="session", autouse=True)
def clients_of_tests(nothing_left_running: None) -> Iterator[None]:
    """The process that clients are forked from ends with the run."""
    yield
    clients.stop()


@pytest.fixture(scope="session", autouse=True)
def home_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Sites of tests keep their local state in a temporary directory."""
    before = {name: os.environ.get(name) for name in ("XDG_STATE_HOME", "BALSAM_SITE")}
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))
    os.environ.pop("BALSAM_SITE", None)
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One Redis for the whole run; tests use their own key prefixes."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()
