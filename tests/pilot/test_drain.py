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
from balsam_celery.wire import Ended, KillOrder, PilotEnded, PilotOrder
from tests import nasty
from tests.pilot.service import Pilot, Service
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("argv", [("/bin/sleep", "100"), ("/bin/sh", "-c", "sleep 100; exit $?")])
def test_a_scheduler_that_signals_the_programs_first(
    service: Service, tmp_path: Path, argv: tuple[str, ...], number: signal.Signals
) -> None:
    """The end of an allocation is no failure of the program, in whatever order all is ended."""
    pilot = service.start([1])
    pilot.run(pilot.spec("runs", *argv))
    mark = ["BALSAM_TASK_ID=runs"]
    pids = wait_until(lambda: procs.marked(mark), 20, "it runs")
    for pid in pids:
        os.kill(pid, number)
    pilot.process.send_signal(number)
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


#: Writes down which signals it gets, and ends by itself after a while of checkpointing.
CHECKPOINTS = """
import os, signal, sys, time
log = open("told", "a", buffering=1)
told = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda n, _: (told.append(n), log.write(signal.Signals(n).name + "\\n")))
log.write("begins\\n")
while not told:
    signal.pause()
if sys.argv[1] == "ends":
    log.write("checkpoint\\n")
    raise SystemExit(0)
while True:
    signal.pause()
"""


def checkpointing(how: str) -> tuple[str, ...]:
    return (sys.executable, "-c", CHECKPOINTS, how)


def told(pilot: Pilot, task: str) -> list[str]:
    """What the program of a task wrote down."""
    path = pilot.directory / "work" / task / "told"
    return path.read_text().split() if path.exists() else []


GRACE = {"checkpoint_grace": 60, "end_signal": signal.SIGUSR1.value}


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGXCPU", "order"])
def test_programs_are_told_of_a_drain_by_the_signal_that_they_name(
    service: Service, how: str
) -> None:
    pilot = service.start([2], lasts=600)
    pilot.run(
        pilot.spec("named", *checkpointing("ends"), **GRACE),
        pilot.spec("plain", *checkpointing("ends"), shares=(pilot.share("n0", 1),)),
    )
    wait_until(lambda: told(pilot, "named") and told(pilot, "plain"), 20, "both run")
    if how == "order":
        control = keys.control(service.prefix, pilot.id)
        service.client.rpush(control, wire.encode(PilotOrder("drain", "asked")))
    else:
        pilot.process.send_signal(signal.Signals[how])
    for task, number in (("named", "SIGUSR1"), ("plain", "SIGTERM")):
        # the exit code 0 of a program that was told to stop does not mean that it was done
        assert service.ended(task).outcome == "drained"
        assert told(pilot, task) == ["begins", number, "checkpoint"]
    assert pilot.wait_ended() == 0
    [last] = service.all(PilotEnded)
    assert last.reason == ("asked" if how == "order" else f"{how} received")


def test_who_does_not_end_in_time_gets_term_and_kill(service: Service) -> None:
    pilot = service.start([1], lasts=600)
    spec = pilot.spec("deaf", *checkpointing("stays"), **{**GRACE, "checkpoint_grace": 1})
    pilot.run(spec)
    wait_until(lambda: told(pilot, "deaf"), 20, "it runs")
    pilot.kill(KillOrder("deaf", 1, "asked"))
    ended = service.ended("deaf")
    assert (ended.outcome, ended.signal) == ("killed", signal.SIGKILL)
    assert told(pilot, "deaf") == ["begins", "SIGUSR1", "SIGTERM"]


def test_a_checkpoint_before_the_wall_time_is_over(service: Service) -> None:
    pilot = service.start([1], lasts=600)
    grace = {**GRACE, "checkpoint_grace": 55}
    pilot.run(pilot.spec("late", *checkpointing("ends"), wall_time=60, **grace))
    ended = service.ended("late")
    assert (ended.outcome, ended.reason) == ("timeout", "its wall_time of 1m was over but for 55s")
    assert told(pilot, "late") == ["begins", "SIGUSR1", "checkpoint"]


def test_a_checkpoint_before_the_end_of_the_allocation(service: Service) -> None:
    """Those that need no time for it run on."""
    pilot = service.start([2], lasts=45)
    pilot.run(
        pilot.spec("plain", *checkpointing("ends"), shares=(pilot.share("n0", 1),)),
        pilot.spec("named", *checkpointing("ends"), **{**GRACE, "checkpoint_grace": 35}),
    )
    ended = service.ended("named")
    assert (ended.outcome, ended.reason) == ("cut", "the allocation's end is near")
    assert told(pilot, "named") == ["begins", "SIGUSR1", "checkpoint"]
    assert told(pilot, "plain") == ["begins"]
    assert pilot.process.poll() is None


def test_the_death_of_the_pilot_leaves_no_time_for_checkpoints(service: Service) -> None:
    """Others may soon take its tasks for ended."""
    pilot = service.start([1], lasts=600)
    pilot.run(pilot.spec("deaf", *checkpointing("stays"), **GRACE))
    wait_until(lambda: told(pilot, "deaf"), 20, "it runs")
    pilot.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "SIGUSR1" in told(pilot, "deaf"), 20, "it was told")
    pilot.process.kill()
    mark = ["BALSAM_TASK_ID=deaf"]
    wait_until(lambda: not procs.marked(mark), 30, "nothing of it lives")
    assert told(pilot, "deaf") == ["begins", "SIGUSR1", "SIGTERM"]


def test_a_restartable_program_finds_what_its_last_attempt_has_left(
    service: Service, tmp_path: Path
) -> None:
    staged = tmp_path / "staged"
    staged.mkdir()
    (staged / "input").write_text("0")
    (staged / "deep").mkdir()
    (staged / "deep" / "link").symlink_to("../input")
    (staged / "gone").symlink_to("nowhere")
    (staged / "tree").symlink_to("deep")
    pilot = service.start([1])
    # that a link became something else is left as it is, too
    script = (
        "echo $BALSAM_ATTEMPT; read n < tree/link; echo $((n + 1)) > input; cat gone;"
        " rm gone; echo made > gone; test $n = 1"
    )
    fields = {"restartable": True, "staged": str(staged)}
    for attempt, code in ((1, 1), (2, 0)):
        pilot.run(pilot.spec("task", "/bin/sh", "-c", script, attempt=attempt, **fields))
        wait_until(lambda number=attempt: len(ends(service, "task")) == number, 20, "its end")
        assert ends(service, "task")[-1].exit_code == code
    assert ends(service, "task")[-1].stdout_tail == "1\n2\nmade\n"


def ends(service: Service, task: str) -> list[Ended]:
    """Outcomes of a task that have come."""
    service.look()
    return [one for one in service.all(Ended) if one.id == task]


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
