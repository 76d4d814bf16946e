"""Ends of pilots: by signal, by order, by the allocation's end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from balsam_celery import keys, procs, wire
from balsam_celery.outbox import read_outbox
from balsam_celery.wire import Ended, PilotEnded, PilotOrder
from tests import nasty
from tests.pilot.service import Service
from tests.pilot.test_kills import pids_in
from tests.waiting import wait_until

NASTY = [sys.executable, nasty.__file__]


@pytest.mark.parametrize("kind", ["plain", "deaf", "session"])
def test_sigterm(service: Service, tmp_path: Path, kind: str) -> None:
    pilot = service.start([2, 1])
    pids = tmp_path / "pids"
    pilot.run(pilot.spec("runs", *NASTY, kind, str(pids)), pilot.spec("waits", "/bin/sleep", "100"))
    found = wait_until(pids_in(pids, 1), 20, "it runs")
    pilot.process.send_signal(signal.SIGTERM)
    assert pilot.wait_ended() == 0
    assert [pid for pid in found if procs.identity(pid)] == []
    for task in ("runs", "waits"):
        assert service.ended(task).outcome == "drained"
    assert service.ended("waits").started is None
    [last] = service.all(PilotEnded)
    assert last.reason == "SIGTERM received"
    positions = {type(r).__name__: i for i, (_, _, _, r) in enumerate(service.records)}
    assert positions["PilotEnded"] == len(service.records) - 1, "its last word"


@pytest.mark.parametrize("argv", [("/bin/sleep", "100"), ("/bin/sh", "-c", "sleep 100; exit $?")])
def test_a_scheduler_that_signals_the_programs_first(
    service: Service, tmp_path: Path, argv: tuple[str, ...]
) -> None:
    """The end of an allocation is no failure of the program, in whatever order all is ended."""
    pilot = service.start([1])
    pilot.run(pilot.spec("runs", *argv))
    mark = ["BALSAM_TASK_ID=runs"]
    pids = wait_until(lambda: procs.marked(mark), 20, "it runs")
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    pilot.process.send_signal(signal.SIGTERM)
    assert service.ended("runs").outcome == "drained"
    assert pilot.wait_ended() == 0


def test_a_signal_of_someone_else_is_the_outcome(service: Service) -> None:
    pilot = service.start([1])
    pilot.run(pilot.spec("shot", "/bin/sh", "-c", "kill -TERM $$; sleep 100"))
    ended = service.ended("shot")
    assert (ended.outcome, ended.signal) == ("signal", signal.SIGTERM)


def test_order_to_drain(service: Service) -> None:
    pilot = service.start([1])
    control = keys.control(service.prefix, pilot.id)
    service.client.rpush(control, "not an order")
    service.client.rpush(control, wire.encode(PilotOrder("drain", "idle")))
    assert pilot.wait_ended() == 0
    assert [last.reason for last in service.all(PilotEnded)] == ["idle"]


def test_end_of_the_allocation(service: Service) -> None:
    """The pilot stops what runs before the scheduler does."""
    pilot = service.start([1], lasts=6.0)
    pilot.run(pilot.spec("runs", "/bin/sleep", "100"))
    ended = service.ended("runs")
    assert (ended.outcome, ended.reason) == ("drained", "its pilot stops")
    assert pilot.wait_ended() == 0
    assert [last.reason for last in service.all(PilotEnded)] == ["the allocation's end is near"]


def test_without_acknowledgements_the_outbox_keeps_the_outcomes(service: Service) -> None:
    pilot = service.start([1])
    service.acknowledge = False
    pilot.run(pilot.spec("task", "/bin/true"))
    service.ended("task")
    pilot.process.send_signal(signal.SIGTERM)
    assert pilot.wait_ended() == 0
    assert not service.all(PilotEnded), "it may say so only when all is acknowledged"
    assert [e.id for e in read_outbox(pilot.directory / "n0.outbox")] == ["task"]


def test_messages_that_arrive_in_a_drain_are_answered(service: Service) -> None:
    pilot = service.start([1])
    pilot.run(pilot.spec("runs", *NASTY, "deaf", "/dev/null"))
    wait_until(lambda: pilot.inspect("active"), 10, "it runs")
    pilot.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "drains" in (pilot.directory / "pilot.log").read_text(), 10, "it drains")
    pilot.run(pilot.spec("late", "/bin/true"))
    assert pilot.wait_ended() == 0
    late = [e for e in service.all(Ended) if e.id == "late"]
    assert [e.outcome for e in late] in (["drained"], []), "answered, or never received"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--site", "/nowhere", "--allocation", "a"], "/nowhere"),
        (["--site", "{site}", "--allocation", "a"], "not inside a job"),
    ],
)
def test_start_that_fails(service: Service, options: list[str], message: str) -> None:
    options = [option.format(site=service.site.directory) for option in options]
    done = subprocess.run(
        [sys.executable, "-m", "balsam_celery.pilot", *options],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
