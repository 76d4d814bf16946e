"""The end of ranks on several nodes: nothing of an attempt lives once it is reported (R8)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from balsam_celery import procs
from tests import nasty
from tests.slurm.allocation import TASK, Allocation, Worker, allocate
from tests.slurm_cluster import SlurmCluster
from tests.waiting import wait_until

#: Says that TERM has come, and ends then.
GENTLE = """\
import pathlib, signal, sys, time
where = pathlib.Path(sys.argv[1])
def end(*_):
    time.sleep(0.2)
    (where / f"term-{pid}").touch()
    raise SystemExit(3)
signal.signal(signal.SIGTERM, end)
import os
pid = os.getpid()
with open(where / "pids", "a") as file:
    file.write(f"{pid}\\n")
while True:
    time.sleep(0.05)
"""

#: Closes every file that it was given, and becomes the program named.
CLOSED = """\
import os, sys
null = os.open("/dev/null", os.O_RDWR)
for number in range(3):
    os.dup2(null, number)
os.closerange(3, 1024)
os.execv(sys.argv[1], sys.argv[1:])
"""

#: Starts a process on each of its other nodes by its own means; ends then, or waits.
OWN_MEANS = """\
import os, pathlib, subprocess, sys, time
nodes = os.environ["BALSAM_NODES"].split(",")[1:]
argv = ["srun", "--overlap", f"--nodes={len(nodes)}", f"--nodelist={','.join(nodes)}", "--wait=0"]
log = open(sys.argv[1] + ".log", "w+")
step = subprocess.Popen([*argv, "--input=none", *sys.argv[2:], sys.argv[1]], start_new_session=True,
    stdin=subprocess.DEVNULL, stdout=log, stderr=log)
pids = pathlib.Path(sys.argv[1])
while not (pids.exists() and len(pids.read_text().split()) == len(nodes)):
    if step.poll() is not None:
        log.seek(0)
        sys.exit(f"srun ended with {step.returncode}: {log.read()}")
    time.sleep(0.05)
while (pids.parent / "wait").exists():
    time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def allocation(
    slurm_cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Allocation]:
    with allocate(slurm_cluster, tmp_path_factory.mktemp("job"), 4) as job:
        yield job


@pytest.fixture(params=["srun", "mpich", "openmpi"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def worker(allocation: Allocation, kind: str, tmp_path: Path) -> Iterator[Worker]:
    started = Worker(allocation, tmp_path, ("n1", "n2", "n3", "n4"), kind)
    yield started
    started.close()


def pids(directory: Path) -> list[int]:
    path = directory / "pids"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def living(directory: Path) -> list[int]:
    return [pid for pid in pids(directory) if procs.identity(pid) is not None]


def test_a_kill_gives_every_rank_its_grace(
    worker: Worker, allocation: Allocation, tmp_path: Path
) -> None:
    worker.run(TASK, sys.executable, "-c", GENTLE, str(tmp_path), kill_grace=30)
    wait_until(lambda: len(pids(tmp_path)) == 4, what="four ranks run")
    worker.kill(TASK)
    ended = worker.ended(TASK)
    assert (ended.outcome, ended.reason) == ("killed", "asked")
    assert not living(tmp_path)
    assert {int(path.name.partition("-")[2]) for path in tmp_path.glob("term-*")} == set(
        pids(tmp_path)
    )
    assert allocation.steps() == []
    assert ["swept", f"{TASK}/1", 30] in worker.heard(), "other nodes are reached at once"


@pytest.mark.parametrize(("how", "processes"), [("deaf", 4), ("session", 8)])
def test_a_kill_leaves_nothing(
    worker: Worker, allocation: Allocation, tmp_path: Path, how: str, processes: int
) -> None:
    worker.run(TASK, sys.executable, nasty.__file__, how, str(tmp_path / "pids"), kill_grace=1)
    wait_until(lambda: len(pids(tmp_path)) == processes, what="all processes run")
    worker.kill(TASK)
    assert worker.ended(TASK).outcome == "killed"
    assert not living(tmp_path)
    assert allocation.steps() == []


@pytest.mark.parametrize("how", ["orphan", "nameless"])
def test_nothing_outlives_a_program_that_ends(
    worker: Worker, allocation: Allocation, tmp_path: Path, how: str
) -> None:
    """Each rank ends and leaves a process that has no parent, session or environment of ours.

    It has no open file of ours either: launchers wait until all have closed a rank's.
    """
    command = (sys.executable, nasty.__file__, how, str(tmp_path / "pids"))
    worker.run(TASK, sys.executable, "-c", CLOSED, *command, kill_grace=1)
    ended = worker.ended(TASK)
    assert (ended.outcome, ended.exit_code) == ("exit", 0)
    assert not living(tmp_path)


def test_a_kill_before_the_ranks_have_started(
    worker: Worker, allocation: Allocation, tmp_path: Path
) -> None:
    for number in range(5):
        name = f"t{number}"
        worker.run(name, sys.executable, nasty.__file__, "deaf", str(tmp_path / "pids"))
        wait_until(lambda name=name: ["started", name] in worker.heard(), what="it is started")
        worker.kill(name)
        assert worker.ended(name).outcome == "killed"
        assert not living(tmp_path)
        assert allocation.steps() == []


def test_ranks_end_with_a_launcher_that_is_killed(
    worker: Worker, allocation: Allocation, tmp_path: Path
) -> None:
    worker.run(TASK, sys.executable, nasty.__file__, "deaf", str(tmp_path / "pids"), kill_grace=1)
    wait_until(lambda: len(pids(tmp_path)) == 4, what="four ranks run")
    [launcher] = procs.find(procs.Quarry(marks=frozenset((f"BALSAM_ATTEMPT_MARK={TASK}/1",))))[:1]
    assert launcher.pid not in pids(tmp_path)
    procs.send(launcher, 9)
    ended = worker.ended(TASK)
    assert (ended.outcome, ended.signal) == ("signal", 9)
    assert not living(tmp_path)
    assert allocation.steps() == []


@pytest.mark.parametrize("kind", ["srun"])
def test_an_end_that_the_scheduler_cannot_confirm_waits(
    worker: Worker, allocation: Allocation, slurm_cluster: SlurmCluster, tmp_path: Path, kind: str
) -> None:
    """While the controller is away nobody can tell whether the step is over."""
    worker.run(TASK, sys.executable, nasty.__file__, "deaf", str(tmp_path / "pids"), kill_grace=1)
    wait_until(lambda: len(pids(tmp_path)) == 4, what="four ranks run")
    slurm_cluster.stop_controller()
    try:
        worker.kill(TASK)
        wait_until(lambda: not living(tmp_path), what="the ranks are gone")
        assert worker.outcome(TASK) is None
    finally:
        slurm_cluster.start_controller()
    assert worker.ended(TASK, 120).outcome == "killed"
    assert allocation.steps() == []
    wait_until(allocation.takes_steps, 60, "the job takes steps again")


@pytest.mark.parametrize("kind", ["none"])
@pytest.mark.parametrize("killed", [False, True])
def test_a_program_without_a_launcher_is_swept_on_all_its_nodes(
    worker: Worker, allocation: Allocation, tmp_path: Path, kind: str, killed: bool
) -> None:
    found = tmp_path / "pids"
    if killed:
        (tmp_path / "wait").touch()
    command = (sys.executable, "-c", OWN_MEANS, str(found), sys.executable, nasty.__file__, "deaf")
    worker.run(TASK, *command, kill_grace=1)
    if killed:
        wait_until(lambda: len(pids(tmp_path)) == 3, what="its processes run")
        worker.kill(TASK)
    ended = worker.ended(TASK)
    assert (ended.outcome, ended.exit_code) == (("killed", None) if killed else ("exit", 0)), ended
    assert len(pids(tmp_path)) == 3
    assert not living(tmp_path)
    assert ["swept", f"{TASK}/1", 1] in worker.heard(), "its other nodes are reached"
    wait_until(lambda: allocation.steps() == [], 30, "Slurm has seen the end of its step")


def test_ranks_that_the_end_of_the_job_has_ended_are_drained(
    worker: Worker, tmp_path: Path, kind: str
) -> None:
    """Slurm's TERM may reach the ranks before the pilot: that must not cost a try."""
    worker.run(TASK, sys.executable, nasty.__file__, "plain", str(tmp_path / "pids"))
    wait_until(lambda: len(pids(tmp_path)) == 4, what="four ranks run")
    mark = frozenset((f"BALSAM_ATTEMPT_MARK={TASK}/1",))
    for pid in pids(tmp_path):
        # a launcher that has seen one rank end may have ended the others
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not procs.find(procs.Quarry(marks=mark)), what="the launcher has ended")
    worker.drain()
    ended = worker.ended(TASK)
    assert (ended.outcome, ended.reason) == ("drained", "the test is over"), ended
