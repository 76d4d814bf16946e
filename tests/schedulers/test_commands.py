"""Commands of schedulers: time-outs, what they see, what is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from balsam_celery import procs
from balsam_celery.errors import SchedulerUnavailable
from balsam_celery.schedulers.commands import LIVES_ON, Commands, Done
from tests.waiting import wait_until


def test_a_command_is_told_whatever_its_status() -> None:
    done = Commands(20).run(["sh", "-c", "echo out; echo one >&2; echo two >&2; exit 3"])
    assert done == Done(3, "out\n", "one\ntwo\n")
    assert done.message == "one; two"
    assert Done(4, "", "\n").message == "exit status 4"


def test_a_command_that_hangs_ends_with_all_that_it_started(tmp_path: Path) -> None:
    """A wrapper's child that went on could submit a job that nobody knows of."""
    pid = tmp_path / "pid"
    wrapper = f"sleep 300 & echo $! > {pid}; wait"
    with pytest.raises(SchedulerUnavailable, match=r"^sh did not end within 1 s$"):
        Commands(1).run(["sh", "-c", wrapper])
    found = procs.entry(int(pid.read_text()))
    assert found is None or not procs.alive(found.identity)


def test_a_command_ends_at_its_time_out_whatever_became_of_who_asked(tmp_path: Path) -> None:
    """It could submit a job long after another has asked whether it did."""
    pid = tmp_path / "pid"
    wrapper = f"sleep 300 & echo $! > {pid}.new; mv {pid}.new {pid}; wait"
    code = (
        "import sys; from balsam_celery.schedulers.commands import Commands;"
        "Commands(1).run(['sh', '-c', sys.argv[1]])"
    )
    with subprocess.Popen([sys.executable, "-c", code, wrapper]) as asker:
        wait_until(pid.exists, 30, "the command to run")
        asker.kill()
    command = int(pid.read_text())
    found = procs.entry(command)
    assert found is not None
    try:
        wait_until(lambda: not procs.alive(found.identity), 1 + LIVES_ON, "its end")
    finally:
        if procs.alive(found.identity):
            os.killpg(os.getpgid(command), signal.SIGKILL)


def test_a_command_that_is_missing_is_not_known() -> None:
    with pytest.raises(SchedulerUnavailable, match=r"^no-such-command: No such file"):
        Commands(20).run(["no-such-command"])


def test_what_a_command_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BALSAM_ROLE", "SECRET", "SQUEUE_STATES", "SQUEUE_KEPT", "PLAIN"):
        monkeypatch.setenv(name, "1")
    commands = Commands(
        20,
        hidden=["SECRET"],
        hidden_prefixes=["SQUEUE_"],
        kept=["SQUEUE_KEPT", "SECRET"],
        additions={"ADDED": "2"},
    )
    seen = set(commands.run(["env"]).out.splitlines())
    assert {"SQUEUE_KEPT=1", "PLAIN=1", "ADDED=2"} <= seen
    assert not {"BALSAM_ROLE=1", "SECRET=1", "SQUEUE_STATES=1"} & seen


def test_what_is_not_text_is_no_trouble() -> None:
    assert Commands(20).run(["printf", r"a\377b"]).out == "a�b"
