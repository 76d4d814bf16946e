"""Job steps that programs have made by themselves; Slurm's commands are scripts with a list."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from balsam_celery.pilot.earlier import Earlier
from balsam_celery.pilot.ranks import step_name
from balsam_celery.resources import NodeShare
from balsam_celery.wire import Ended
from tests.slurm.allocation import CORES, TASK, Allocation, Worker
from tests.waiting import wait_until

#: Starts what is called srun, and does not end, when it is told to end.
LATE = """\
trap '"$BIN/srun" & : > "$PIDS.late"' TERM
: > "$PIDS"
while :; do sleep 0.1; done
"""
#: Its srun runs when it is told, and ends by that.
TOLD = """\
trap : USR1
"$BIN/srun" &
while :; do sleep 0.1; done
"""


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """The list, with a step of attempt 1; beside it a directory with the commands."""
    listed = tmp_path / "steps"
    listed.write_text(f"1.0|{step_name(TASK, 1)}\n1.1|another\n")
    for name, text in (
        ("squeue", f'cat "{listed}"'),
        ("scancel", f"""sed -i "/^$2|/d" "{listed}" """),
        ("srun", """trap '' TERM\n: > "$PIDS.srun"\nwhile :; do sleep 0.1; done"""),
    ):
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(f"#!/bin/sh\n{text}\n")
        command.chmod(0o755)
    return listed


def environment(steps: Path) -> dict[str, str]:
    return {"SLURM_JOB_ID": "1", "PATH": f"{steps.with_name('bin')}:{os.environ['PATH']}"}


def test_those_of_a_killed_worker_end_before_their_attempts(steps: Path) -> None:
    told: list[tuple[Ended, str]] = []
    Earlier(
        {(TASK, 1): ()},
        (),
        None,
        lambda one: told.append((one, steps.read_text())),
        environment(steps),
    ).end()
    wait_until(lambda: told, 20, "its end is told")
    [(ended, left)] = told
    assert (ended.id, ended.outcome, left) == (TASK, "lost", "1.1|another\n")


def killed(steps: Path, script: str, runs: str, **fields: Any) -> Ended:
    """The end of a program that is killed once the file ``pids`` and ``runs`` is there."""
    directory = steps.parent
    variables = directory / "environment"
    variables.write_text("\0".join(f"{k}={v}" for k, v in environment(steps).items()))
    job = Allocation(None, "1", variables, directory)  # type: ignore[arg-type]
    worker = Worker(job, directory, ("n1",), "none")
    try:
        worker.run(
            *(TASK, "/bin/sh", "-c", script),
            launcher="none",
            shares=(NodeShare("n1", CORES),),
            kill_grace=1,
            environment={"PIDS": str(directory / "pids"), "BIN": str(directory / "bin")},
            **fields,
        )
        wait_until((directory / f"pids{runs}").exists, what="it runs")
        worker.kill(TASK)
        return worker.ended(TASK)
    finally:
        worker.close()


def test_an_srun_that_a_program_starts_when_it_is_to_end(steps: Path) -> None:
    """It is seen before it is killed, and Slurm asked to end what it may have left."""
    assert killed(steps, LATE, "").outcome == "killed"
    assert steps.with_name("pids.late").exists()
    assert steps.read_text() == "1.1|another\n"


def test_an_srun_that_ends_when_its_program_is_told_of_the_end(steps: Path) -> None:
    told = {"checkpoint_grace": 1, "end_signal": signal.SIGUSR1.value}
    assert killed(steps, TOLD, ".srun", **told).outcome == "killed"
    assert steps.read_text() == "1.1|another\n"
