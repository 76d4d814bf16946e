"""Kill orders, duplicates, fences, and Celery's own ways to ask for a kill."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from balsam_celery import procs
from balsam_celery.wire import Ended, KillAsked, KillOrder
from tests import nasty
from tests.pilot.service import Pilot
from tests.waiting import wait_until

NASTY = [sys.executable, nasty.__file__]


def pids_in(path: Path, count: int) -> Callable[[], list[int]]:
    """A condition: the file names so many processes."""

    def read() -> list[int]:
        lines = path.read_text().split() if path.exists() else []
        return [int(line) for line in lines] if len(lines) >= count else []

    return read


def outcomes(pilot: Pilot, task: str) -> list[Ended]:
    return [ended for ended in pilot.service.all(Ended) if ended.id == task]


@pytest.mark.parametrize(
    ("kind", "count"),
    [("plain", 1), ("deaf", 1), ("session", 2), ("stopped", 1), ("threads", 1), ("storm", 50)],
)
def test_kill_reaches_every_process(pilot: Pilot, tmp_path: Path, kind: str, count: int) -> None:
    pids = tmp_path / "pids"
    task = f"kill-{kind}"
    pilot.run(pilot.spec(task, *NASTY, kind, str(pids), wall_time=300))
    wait_until(pids_in(pids, count), 30, "the program runs")
    pilot.kill(KillOrder(task, 1, "asked"))
    ended = pilot.service.ended(task)
    assert (ended.outcome, ended.reason) == ("killed", "asked")
    assert ended.started is not None
    alive = [pid for pid in pids_in(pids, count)() if procs.identity(pid)]
    assert alive == [], "the outcome comes after the last process"


@pytest.mark.parametrize("kind", ["orphan", "nameless"])
def test_nothing_outlives_its_program(pilot: Pilot, tmp_path: Path, kind: str) -> None:
    """Also what left session, parents and environment, beside another task that goes on."""
    pids = tmp_path / "pids"
    other, task = f"beside-{kind}", f"leaves-{kind}"
    pilot.run(
        pilot.spec(other, "/bin/sleep", "60", shares=(pilot.share("n0", 1),)),
        pilot.spec(task, *NASTY, kind, str(pids)),
    )
    ended = pilot.service.ended(task)
    assert (ended.outcome, ended.exit_code) == ("exit", 0)
    found = wait_until(pids_in(pids, 1), 30, "pids")
    assert [pid for pid in found if procs.identity(pid)] == []
    assert [one["id"] for one in pilot.inspect("active")] == [other]
    pilot.kill(KillOrder(other, 1, "the test is over"))
    assert pilot.service.ended(other).outcome == "killed"


def test_kill_of_a_waiting_attempt(pilot: Pilot) -> None:
    pilot.run(pilot.spec("runs", "/bin/sleep", "60"), pilot.spec("waits", "/bin/sleep", "60"))
    wait_until(lambda: pilot.inspect("active"), 10, "the first runs")
    pilot.kill(KillOrder("waits", 1, "no more"))
    ended = pilot.service.ended("waits")
    assert (ended.outcome, ended.started) == ("killed", None)
    pilot.kill(KillOrder("runs", 1, "no more"))
    assert pilot.service.ended("runs").outcome == "killed"


def test_only_what_waits_is_taken_back(pilot: Pilot) -> None:
    pilot.run(pilot.spec("ahead", "/bin/sleep", "60"), pilot.spec("behind", "/bin/true"))
    wait_until(lambda: pilot.inspect("active"), 10, "the first runs")
    for task in ("ahead", "behind", "unseen"):
        pilot.kill(KillOrder(task, 1, "taken back", waiting_only=True))
    assert pilot.service.ended("unseen").outcome == "fenced"
    taken = pilot.service.ended("behind")
    assert (taken.outcome, taken.started, taken.reason) == ("killed", None, "taken back")
    assert [one["id"] for one in pilot.inspect("active")] == ["ahead"]
    pilot.kill(KillOrder("ahead", 1, "the test is over"))
    assert pilot.service.ended("ahead").reason == "the test is over"


def test_fence_before_the_message(pilot: Pilot) -> None:
    pilot.kill(KillOrder("fenced", 1, "lost on the way"))
    ended = pilot.service.ended("fenced")
    assert (ended.outcome, ended.reason) == ("fenced", "lost on the way")
    pilot.run(pilot.spec("fenced", "/bin/echo"), pilot.spec("after-fence", "/bin/true"))
    pilot.service.ended("after-fence")
    assert len(outcomes(pilot, "fenced")) == 1
    pilot.run(pilot.spec("fenced", "/bin/echo", attempt=2))
    assert pilot.service.ended("fenced", 2).outcome == "exit"


def test_kill_of_an_attempt_that_has_ended(pilot: Pilot) -> None:
    """The outcome it has comes again."""
    pilot.run(pilot.spec("over", "/bin/echo", "done"))
    first = pilot.service.ended("over")
    pilot.kill(KillOrder("over", 1, "too late"))
    wait_until(lambda: len(outcomes(pilot, "over")) == 2, 10, "a second answer")
    assert outcomes(pilot, "over") == [first, first]


def test_kill_then_run_again(pilot: Pilot) -> None:
    """The worker remembers attempts, not tasks."""
    pilot.run(pilot.spec("again", "/bin/sleep", "60"))
    wait_until(lambda: pilot.inspect("active"), 10, "it runs")
    pilot.kill(KillOrder("again", 1, "asked"))
    assert pilot.service.ended("again").outcome == "killed"
    pilot.run(pilot.spec("again", "/bin/true", attempt=2))
    assert pilot.service.ended("again", 2).exit_code == 0
    pilot.run(pilot.spec("again", "/bin/false", attempt=1), pilot.spec("later", "/bin/true"))
    pilot.service.ended("later")
    assert len(outcomes(pilot, "again")) == 2, "a message of an older attempt is dropped"


def test_message_delivered_twice(pilot: Pilot, tmp_path: Path) -> None:
    count = tmp_path / "count"
    spec = pilot.spec("twice", "/bin/sh", "-c", f"echo x >> {count}")
    pilot.run(spec, spec)
    pilot.run(spec)
    pilot.run(pilot.spec("after-twice", "/bin/true"))
    pilot.service.ended("after-twice")
    pilot.run(spec)
    pilot.run(pilot.spec("after-all", "/bin/true"))
    pilot.service.ended("after-all")
    assert count.read_text() == "x\n"
    assert len(outcomes(pilot, "twice")) == 1


@pytest.mark.parametrize("how", ["revoke", "terminate"])
def test_celery_control_is_forwarded(pilot: Pilot, how: str) -> None:
    """The service decides; the worker kills nothing by itself and remembers no id."""
    control = pilot.service.app.control
    task = f"by-{how}"
    pilot.run(pilot.spec(task, "/bin/sleep", "60"))
    wait_until(lambda: pilot.inspect("active"), 10, "it runs")
    if how == "revoke":
        control.revoke([task, "other"])
    else:
        control.terminate([task, "other"], signal="KILL")
    asked = wait_until(
        lambda: [k for k in pilot.service.all(KillAsked) if task in k.ids], 10, "it is forwarded"
    )
    assert asked[0].ids == (task, "other")
    assert asked[0].terminate == (how == "terminate")
    assert [one["id"] for one in pilot.inspect("active")] == [task]
    assert pilot.inspect("revoked") == []
    pilot.kill(KillOrder(task, 1, "by the service"))
    assert pilot.service.ended(task).outcome == "killed"
    pilot.run(pilot.spec("other", "/bin/true"))
    assert pilot.service.ended("other").exit_code == 0
