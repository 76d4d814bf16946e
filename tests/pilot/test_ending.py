"""The end of many attempts at once, where a look at all processes takes long."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from balsam_celery import procs
from balsam_celery.pilot.attempt import Attempt
from balsam_celery.pilot.ending import Ending
from balsam_celery.pilot.process import Spawner
from balsam_celery.resources import NodeShare
from balsam_celery.wire import TaskSpec
from tests.waiting import wait_until

#: Seconds that a look takes on a node with thousands of processes.
SLOW = 0.15
#: Says that it can be told, and ends once it was told and may; TERM it does not hear.
PROGRAM = """
trap '' TERM
trap ': > told' USR1
: > ready
until [ -e told ] && [ -e may ]; do sleep 0.2; done
"""


class Witness:
    """What was sent when, after how many looks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks = 0
        self.sent: list[tuple[int, float, int]] = []  # signal, when, looks until then
        snapshot, send = procs.snapshot, procs.send

        def slow() -> dict[int, procs.Entry]:
            self.looks += 1
            time.sleep(SLOW)
            return snapshot()

        def seen(process: procs.Identity, number: int) -> bool:
            self.sent.append((number, time.monotonic(), self.looks))
            return send(process, number)

        monkeypatch.setattr(procs, "snapshot", slow)
        monkeypatch.setattr(procs, "send", seen)

    def of(self, number: int) -> list[tuple[float, int]]:
        return [(when, looks) for found, when, looks in [*self.sent] if found == number]


Start = Callable[..., Attempt]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts attempts that are to end."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**changes: int) -> Attempt:
        name = f"t{len(started)}"
        directory = tmp_path / name
        directory.mkdir()
        values = {"checkpoint_grace": 60, "end_signal": signal.SIGUSR1, "kill_grace": 1, **changes}
        spec = TaskSpec(
            id=name,
            attempt=1,
            name=name,
            application="app",
            argv=("/bin/sh", "-c", PROGRAM),
            environment={},
            work_dir=str(directory),
            shares=(NodeShare("n1", (0,)),),
            ranks_per_node=1,
            threads_per_rank=1,
            wall_time=600,
            **values,
        )
        attempt = Attempt(spec)
        mark, _, value = attempt.mark.partition("=")
        process = subprocess.Popen(
            spec.argv, cwd=directory, env={**os.environ, mark: value}, start_new_session=True
        )
        started.append(process)
        attempt.has_started(process.pid, time.time())
        assert attempt.condemn("killed", "asked")
        return attempt

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def lives(attempt: Attempt) -> bool:
    return attempt.pid is not None and procs.identity(attempt.pid) is not None


def all_have(attempts: list[Attempt], name: str) -> Callable[[], bool]:
    return lambda: all((Path(one.spec.work_dir) / name).exists() for one in attempts)


def test_one_look_tells_all(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = [start() for _ in range(64)]
    wait_until(all_have(attempts, "ready"), 60, "all run")
    witness = Witness(monkeypatch)
    Ending(Spawner(), {}, None).begin(attempts)
    wait_until(all_have(attempts, "told"), 60, "all are told")
    assert max(looks for _, looks in witness.of(signal.SIGUSR1)) == 1
    told = witness.looks
    for attempt in attempts:
        (Path(attempt.spec.work_dir) / "may").touch()
    wait_until(lambda: not any(map(lives, attempts)), 60, "all have ended")
    assert witness.looks == told, "as long as leaders live, nothing else is looked at"
    assert not witness.of(signal.SIGTERM)


def test_who_does_not_end_in_time_has_its_whole_grace(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = [start(checkpoint_grace=1, kill_grace=2) for _ in range(8)]
    wait_until(all_have(attempts, "ready"), 60, "all run")
    witness = Witness(monkeypatch)
    begun = time.monotonic()
    Ending(Spawner(), {}, None).begin(attempts)
    wait_until(lambda: not any(map(lives, attempts)), 60, "all have ended")
    terms, kills = witness.of(signal.SIGTERM), witness.of(signal.SIGKILL)
    assert min(when for when, _ in terms) >= begun + 1
    first = [when for when, _ in terms][: len(attempts)]
    assert min(when for when, _ in kills) >= max(first) + 2 - 0.05
