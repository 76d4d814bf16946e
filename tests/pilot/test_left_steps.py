"""Job steps that programs have made by themselves; Slurm's commands are scripts with a list."""

from __future__ import annotations

import os
from pathlib import Path

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


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """The list, with a step of attempt 1; beside it a directory with the commands."""
    listed = tmp_path / "steps"
    listed.write_text(f"1.0|{step_name(TASK, 1)}\n1.1|another\n")
    for name, text in (
        ("squeue", f'cat "{listed}"'),
        ("scancel", f"""sed -i "/^$2|/d" "{listed}" """),
        ("srun", "trap '' TERM\nwhile :; do sleep 0.1; done"),
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


def test_an_srun_that_a_program_starts_when_it_is_to_end(steps: Path, tmp_path: Path) -> None:
    """It is seen before it is killed, and Slurm asked to end what it may have left."""
    variables = tmp_path / "environment"
    variables.write_text("\0".join(f"{k}={v}" for k, v in environment(steps).items()))
    job = Allocation(None, "1", variables, tmp_path)  # type: ignore[arg-type]
    worker = Worker(job, tmp_path, ("n1",), "none")
    try:
        found = tmp_path / "pids"
        worker.run(
            *(TASK, "/bin/sh", "-c", LATE),
            launcher="none",
            shares=(NodeShare("n1", CORES),),
            kill_grace=1,
            environment={"PIDS": str(found), "BIN": str(tmp_path / "bin")},
        )
        wait_until(found.exists, what="it runs")
        worker.kill(TASK)
        assert worker.ended(TASK).outcome == "killed"
        assert found.with_name("pids.late").exists()
        assert steps.read_text() == "1.1|another\n"
    finally:
        worker.close()
