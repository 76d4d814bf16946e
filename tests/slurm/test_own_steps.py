"""Programs without a launcher that start processes by Slurm themselves: where, and their end."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from balsam_celery import procs
from balsam_celery.errors import SettingsError
from balsam_celery.launchers import find_launcher
from balsam_celery.resources import NodeShare
from balsam_celery.settings import LauncherSettings
from tests import nasty
from tests.slurm.allocation import CORES, TASK, Allocation, Worker, allocate
from tests.slurm_cluster import SlurmCluster
from tests.waiting import wait_until

NODES = ("n1", "n2", "n3", "n4")
#: Writes down on which node it runs.
PLACE = ("/bin/sh", "-c", 'echo "$SLURMD_NODENAME" >> places')
#: Starts a step whose ranks have nothing of its environment.
STEP = """\
srun --overlap --ntasks-per-node=1 --input=none env -i "$@" &
while [ ! -s "$PIDS" ]; do sleep 0.05; done
if [ "$END" = itself ]; then exit 0; fi
sleep 600
"""
OpenWorker = Callable[..., Worker]


@pytest.fixture(scope="module")
def allocation(
    slurm_cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Allocation]:
    with allocate(slurm_cluster, tmp_path_factory.mktemp("job"), len(NODES)) as job:
        yield job


@pytest.fixture
def open_worker(allocation: Allocation, tmp_path: Path) -> Iterator[OpenWorker]:
    """A worker of these nodes, whose pilot has the job's others too."""
    opened: list[Worker] = []

    def open_one(*nodes: str) -> Worker:
        others = tuple(node for node in NODES if node not in nodes)
        opened.append(Worker(allocation, tmp_path, nodes, "none", others=others))
        return opened[-1]

    yield open_one
    for worker in opened:
        worker.close()


def launch(how: str) -> tuple[str, ...]:
    """A user's own way to start two processes on each of one or two nodes."""
    if how.startswith("srun"):
        return tuple(how.split())
    try:
        path = find_launcher(LauncherSettings(), how).path
    except SettingsError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no mpiexec of {how}: {error}")
    if how == "mpich":
        return (path, "-ppn", "2", "-n", "2")
    root = ("--allow-run-as-root",) if os.geteuid() == 0 else ()
    return (path, *root, "-n", "2")


@pytest.mark.parametrize(
    "how", ["srun", "srun -N1 -n2", "srun --ntasks-per-node=2", "mpich", "openmpi"]
)
def test_a_program_of_one_node_stays_there(
    open_worker: OpenWorker, allocation: Allocation, how: str
) -> None:
    worker = open_worker("n3")
    worker.run(TASK, *launch(how), *PLACE, launcher="none")
    ended = worker.ended(TASK)
    assert ended.exit_code == 0, (ended.reason, ended.stderr_tail)
    places = (worker.directory / TASK / "places").read_text().split()
    assert places == ["n3"] * (1 if how == "srun" else 2)


@pytest.mark.parametrize(
    ("how", "count"), [("srun", 2), ("srun -N1 -n2", 2), ("srun -n4", 4), ("openmpi", 6)]
)
def test_a_program_of_some_nodes_stays_there(
    open_worker: OpenWorker, allocation: Allocation, how: str, count: int
) -> None:
    worker = open_worker(*NODES)
    shares = tuple(NodeShare(node, (0, 1, 2, 3)) for node in ("n2", "n4"))
    argv = (*launch(how)[:-1], "6") if how == "openmpi" else launch(how)
    worker.run(TASK, *argv, *PLACE, launcher="none", shares=shares, pin=False)
    ended = worker.ended(TASK)
    assert ended.exit_code == 0, (ended.reason, ended.stderr_tail)
    places = (worker.directory / TASK / "places").read_text().split()
    assert len(places) == count
    assert set(places) == ({"n2", "n4"} if "N1" not in how else {"n2"})


def test_variables_of_the_user_add_to_what_keeps_steps_there(
    open_worker: OpenWorker, allocation: Allocation
) -> None:
    worker = open_worker("n3")
    own = {"PATH": allocation.environment["PATH"]}
    worker.run(TASK, "srun", *PLACE, launcher="none", environment=own)
    ended = worker.ended(TASK)
    assert ended.exit_code == 0, (ended.reason, ended.stderr_tail)
    assert (worker.directory / TASK / "places").read_text().split() == ["n3"]


def test_a_program_has_no_step_on_nodes_of_others(
    open_worker: OpenWorker, allocation: Allocation
) -> None:
    worker = open_worker("n3")
    worker.run(TASK, "srun", "--nodelist=n1", *PLACE, launcher="none")
    ended = worker.ended(TASK)
    assert ended.exit_code != 0
    assert "n1 is also in the excluded list" in ended.stderr_tail


@pytest.mark.parametrize("how", ["srun", "openmpi"])
def test_a_job_that_a_program_submits_has_nodes_of_its_own(
    open_worker: OpenWorker, allocation: Allocation, tmp_path: Path, how: str
) -> None:
    """It inherits all variables of the program."""
    job = tmp_path / "job.sh"
    argv = launch(how) if how == "srun" else (*launch(how), "--map-by", "node")
    job.write_text("#!/bin/sh\n" + shlex.join([*argv, *PLACE]) + "\n")
    worker = open_worker("n3")
    submit = ("sbatch", "--wait", "--nodes=2", "--output=out", str(job))
    worker.run(TASK, *submit, launcher="none")
    ended = worker.ended(TASK)
    work = worker.directory / TASK
    assert ended.exit_code == 0, (ended.stderr_tail, (work / "out").read_text())
    places = (work / "places").read_text().split()
    assert len(set(places)) == 2
    assert set(places).isdisjoint(NODES)


@pytest.mark.parametrize("end", ["killed", "itself"])
@pytest.mark.parametrize("nodes", [("n3",), ("n2", "n3")])
def test_a_step_of_its_own_ends_with_the_program(
    open_worker: OpenWorker,
    allocation: Allocation,
    tmp_path: Path,
    nodes: tuple[str, ...],
    end: str,
) -> None:
    """Its ranks have no mark, no brand and no parent here, and nobody but Slurm knows them.

    There is no grace, so srun has no time to end them.
    """
    worker = open_worker(*(nodes if len(nodes) == 1 else NODES))
    found = tmp_path / "pids"
    shares = tuple(NodeShare(node, CORES) for node in nodes)
    worker.run(
        TASK, "/bin/sh", "-c", STEP, "own", sys.executable, nasty.__file__, "deaf", str(found),
        launcher="none", shares=shares, kill_grace=0, environment={"PIDS": str(found), "END": end},
    )  # fmt: skip
    if end == "killed":
        wait_until(lambda: found.exists() and found.read_text(), what="its step runs")
        worker.kill(TASK)
    ended = worker.ended(TASK)
    assert ended.outcome == ("killed" if end == "killed" else "exit"), ended
    pids = [int(pid) for pid in found.read_text().split()]
    assert pids
    assert not [pid for pid in pids if procs.identity(pid) is not None]
    assert allocation.steps() == []
