"""Ranks that were ended by a signal before the pilot heard of its own end."""

from __future__ import annotations

import os
import subprocess
import threading

import pytest

from balsam_celery.errors import SettingsError
from balsam_celery.launchers import Ranks, find_launcher
from balsam_celery.outer import clean_environment
from balsam_celery.pilot.attempt import Attempt
from balsam_celery.pilot.ending import Ending, Launched
from balsam_celery.pilot.pool import AttemptPool
from balsam_celery.pilot.process import Spawner
from balsam_celery.pilot.slots import Slots
from balsam_celery.resources import NodeShare
from balsam_celery.settings import LauncherSettings
from balsam_celery.wire import Ended, TaskSpec

SPEC = TaskSpec(
    id="t1",
    attempt=1,
    name="t1",
    application="app",
    argv=("/bin/sh", "-c", "kill -$SIGNAL $$"),
    environment={},
    work_dir="/",
    shares=(NodeShare("n1", (0,)),),
    ranks_per_node=1,
    threads_per_rank=1,
    wall_time=60,
    kill_grace=1,
)


@pytest.mark.parametrize("signal", ["TERM", "KILL"])
@pytest.mark.parametrize("kind", ["mpich", "openmpi"])
def test_an_end_by_signal_waits_for_its_cause(kind: str, signal: str) -> None:
    """Slurm's TERM may reach the ranks before the pilot: that must not cost a try."""
    try:
        launcher = find_launcher(LauncherSettings(), kind, clean_environment(os.environ))
    except SettingsError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no mpiexec of {kind}: {error}")
    launch = launcher.launch(Ranks(SPEC.argv, ("n1",), one_host=True, root=os.geteuid() == 0))
    environment = {**clean_environment(os.environ), **launch.environment, "SIGNAL": signal}
    reports: list[Ended] = []
    ran, reported = threading.Event(), threading.Event()

    def run(attempt: Attempt) -> Ended:
        attempt.launched = Launched(launcher)
        done = subprocess.run(
            launch.argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode > 0, "the launcher itself got no signal"
        attempt.finish()
        ran.set()
        return Ended("t1", 1, "exit", "", 1.0, exit_code=done.returncode)

    def report(ended: Ended, idle: bool) -> None:
        reports.append(ended)
        reported.set()

    pool = AttemptPool(limit=1)
    pool.attach(Slots([("n1", 0)]), run, Ending(Spawner(), {}, None), report)
    pool.submit([Attempt(SPEC)])
    assert ran.wait(60)
    assert not reported.wait(0.3), "it waits to see whether the pilot ends too"
    pool.drain("the end")
    assert [(one.outcome, one.reason) for one in reports] == [("drained", "the end")]
