"""Ranks as each launcher starts them in an allocation of eight nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from balsam_celery.launchers import Ranks, find_launcher
from balsam_celery.outer import clean_environment, settings_before
from balsam_celery.pilot.ranks import exported
from balsam_celery.resources import GpuShare, NodeShare
from balsam_celery.settings import LauncherSettings
from tests.launchers.test_outer import USERS
from tests.slurm.allocation import CORES, TASK, Allocation, Worker, allocate
from tests.slurm_cluster import SlurmCluster

PROGRAM = (sys.executable, str(Path(__file__).parents[1] / "mpi_program.py"))
LIBRARY = {"openmpi": {"MPI4PY_MPIABI": "openmpi"}}
#: Writes what a rank sees of its node, cores and GPUs.
SEEN = (
    sys.executable,
    "-c",
    "import json, os, pathlib, sys\n"
    "e = os.environ\n"
    "rank = e.get('OMPI_COMM_WORLD_RANK') or e.get('PMI_RANK') or e['SLURM_PROCID']\n"
    "row = [e['SLURMD_NODENAME'], sorted(os.sched_getaffinity(0)),\n"
    "       e.get('CUDA_VISIBLE_DEVICES'), e.get('MINE'), e.get('BALSAM_RANKS')]\n"
    "pathlib.Path(f'rank-{rank}.json').write_text(json.dumps(row))\n",
)


@pytest.fixture(scope="module")
def allocation(
    slurm_cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Allocation]:
    with allocate(slurm_cluster, tmp_path_factory.mktemp("job"), 8) as job:
        yield job


@pytest.fixture(params=["srun", "mpich", "openmpi"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def worker(allocation: Allocation, kind: str, tmp_path: Path) -> Iterator[Worker]:
    started = Worker(allocation, tmp_path, ("n2", "n3", "n5"), kind)
    yield started
    started.close()


def rows(worker: Worker, name: str) -> list[Any]:
    ended = worker.ended(name)
    assert ended.exit_code == 0, (ended.reason, ended.stderr_tail)
    files = sorted((worker.directory / name).glob("rank-*.json"))
    return [json.loads(file.read_text()) for file in files]


#: Writes down the whole environment of the second rank.
SEEN_WHOLE = (
    "import json, os, pathlib, sys\n"
    "e = os.environ\n"
    "if '1' == (e.get('OMPI_COMM_WORLD_RANK') or e.get('PMI_RANK') or e['SLURM_PROCID']):\n"
    "    pathlib.Path(sys.argv[1]).write_text(json.dumps(dict(e)))\n"
)


def without_aside(environment: dict[str, str]) -> dict[str, str]:
    """Without what tells of a process, and of the step's nodes in place of the job's."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(("SLURM_", "HOST", "PWD", "OLDPWD", "TMPDIR", "XDG_", "SSH_"))
        and name not in ("_", "SHLVL")
    }


def test_ranks_form_one_world_on_the_nodes_given(worker: Worker, kind: str) -> None:
    worker.run(TASK, *PROGRAM, ranks_per_node=2, environment=LIBRARY.get(kind, {}))
    found = rows(worker, TASK)
    assert [(row["rank"], row["size"]) for row in found] == [(rank, 6) for rank in range(6)]
    nodes = Counter(row["environment"]["SLURMD_NODENAME"] for row in found)
    assert nodes == {"n2": 2, "n3": 2, "n5": 2}
    [names] = {row["environment"]["BALSAM_NODES"] for row in found}
    assert names == "n2,n3,n5"
    environment = found[-1]["environment"]
    listed = Path(environment["BALSAM_NODEFILE"]).read_text().split()
    assert listed == ["n2", "n3", "n5"]
    assert environment["BALSAM_RANK_MARK"] == f"{TASK}/1"


def test_srun_with_pmix(allocation: Allocation, tmp_path: Path) -> None:
    """Open MPI's ranks without its mpirun: Slurm's daemons are their PMIx."""
    if not list(Path("/usr/lib").glob("*/pmix2/lib/libpmix.so")):
        message = "the library that Slurm's PMIx plugin loads is not installed (libpmix-dev)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    worker = Worker(allocation, tmp_path, ("n2", "n3", "n5"), "srun", "pmix")
    environment = {**LIBRARY["openmpi"], "OMPI_MCA_btl": "self,tcp"}
    # On a loaded machine Slurm's plugin (22.05) loses the end of a fence, in 2 of 70 runs: the
    # ranks of one node wait in MPI_Init for their slurmstepd, which waits for nothing.
    try:
        for name in [f"{TASK}-{number}" for number in range(4)]:
            worker.run(name, *PROGRAM, ranks_per_node=2, environment=environment)
            try:
                worker.ended(name, timeout=20)
            except AssertionError:
                worker.kill(name)
                continue
            break
        found = rows(worker, name)
    finally:
        worker.close()
    assert [(row["rank"], row["size"]) for row in found] == [(rank, 6) for rank in range(6)]
    nodes = Counter(row["environment"]["SLURMD_NODENAME"] for row in found)
    assert nodes == {"n2": 2, "n3": 2, "n5": 2}
    assert all("PMIX_RANK" in row["environment"] for row in found)


def test_each_rank_has_its_own_cores_and_gpus_of_its_own_node(worker: Worker) -> None:
    """The nodes' GPUs are numbered differently, and one has half of the cores."""
    shares = (
        NodeShare("n2", CORES, (GpuShare(0, 1.0), GpuShare(1, 1.0))),
        NodeShare("n3", CORES, (GpuShare(2, 1.0), GpuShare(3, 1.0))),
        NodeShare("n5", CORES[:1], (GpuShare(7, 1.0),)),
    )
    worker.run(TASK, *SEEN, ranks_per_node=2, shares=shares, environment={"MINE": "a b"})
    found = rows(worker, TASK)
    half = len(CORES) // 2
    first, second = (CORES[: len(CORES) - half], CORES[len(CORES) - half :] or CORES)
    assert sorted(found) == [
        ["n2", list(first), "0", "a b", "6"],
        ["n2", list(second), "1", "a b", "6"],
        ["n3", list(first), "2", "a b", "6"],
        ["n3", list(second), "3", "a b", "6"],
        ["n5", [CORES[0]], "7", "a b", "6"],
        ["n5", [CORES[0]], "7", "a b", "6"],
    ]


def test_a_task_that_asks_for_no_binding_has_none(worker: Worker) -> None:
    worker.run(TASK, *SEEN, pin=False, environment={"CUDA_VISIBLE_DEVICES": "own"})
    assert [row[1:3] for row in rows(worker, TASK)] == [[list(CORES), "own"]] * 3


def test_there_may_be_more_ranks_than_cores(worker: Worker) -> None:
    count = 5  # Slurm counts four cores on each node
    worker.run(TASK, *SEEN, ranks_per_node=count, pin=False)
    found = rows(worker, TASK)
    assert Counter(row[0] for row in found) == dict.fromkeys(("n2", "n3", "n5"), count)
    assert all(row[1] == list(CORES) for row in found)


def test_tasks_share_nodes_at_the_same_time(worker: Worker) -> None:
    """Steps that did not overlap would wait for each other, for ever here."""
    meet = "import os, pathlib, sys, time\n" + (
        "pathlib.Path(sys.argv[1] + os.environ['SLURMD_NODENAME']).touch()\n"
        "while not os.path.exists(sys.argv[2] + os.environ['SLURMD_NODENAME']): time.sleep(0.05)\n"
    )
    for own, other in (("a", "b"), ("b", "a")):
        worker.run(
            own,
            *(
                sys.executable,
                "-c",
                meet,
                str(worker.directory / own),
                str(worker.directory / other),
            ),
            shares=tuple(NodeShare(node, CORES[:1] if own == "a" else ()) for node in worker.nodes),
            pin=False,
        )
    assert [worker.ended(name).exit_code for name in ("a", "b")] == [0, 0]


def test_programs_may_launch_programs(worker: Worker, kind: str) -> None:
    """What a launcher told its ranks does not reach those of an inner one."""
    inner = (
        "import subprocess, sys, os\n"
        "if os.environ.get('OMPI_COMM_WORLD_RANK', os.environ.get('PMI_RANK',\n"
        "        os.environ.get('SLURM_PROCID'))) == '0':\n"
        "    from balsam_celery.launchers import Ranks, find_launcher\n"
        "    from balsam_celery.outer import clean_environment\n"
        "    from balsam_celery.settings import LauncherSettings\n"
        "    settings = LauncherSettings(kind=sys.argv[1], mpi='pmi2',\n"
        "        options=('--mca', 'btl', 'self,tcp') if sys.argv[1] == 'openmpi' else ())\n"
        "    env = clean_environment(os.environ)\n"
        "    launch = find_launcher(settings, environ=env).launch(Ranks(tuple(sys.argv[2:]),\n"
        "        ('n5', 'n8'), ranks_per_node=2, name='inner', root=os.geteuid() == 0))\n"
        "    subprocess.run(launch.argv, env={**env, **launch.environment}, check=True,\n"
        "        stdin=subprocess.DEVNULL)\n"
    )
    environment = {**LIBRARY.get(kind, {}), "PYTHONPATH": os.pathsep.join(sys.path)}
    worker.run(TASK, sys.executable, "-c", inner, kind, *PROGRAM, environment=environment)
    found = rows(worker, TASK)
    assert [(row["rank"], row["size"]) for row in found] == [(rank, 4) for rank in range(4)]
    nodes = Counter(row["environment"]["SLURMD_NODENAME"] for row in found)
    assert nodes == {"n5": 2, "n8": 2}


def test_only_what_the_launch_has_added_is_taken_from_keepers(
    allocation: Allocation, tmp_path: Path, kind: str
) -> None:
    """The rank of another node than the launcher's, started as a node's keeper is."""
    before = {**clean_environment(allocation.environment), **USERS}
    told = {**before, **settings_before(before)}
    launch = find_launcher(LauncherSettings(mpi="pmi2"), kind, told).launch(
        Ranks(
            argv=(sys.executable, "-c", SEEN_WHOLE, str(tmp_path / "seen")),
            nodes=("n2", "n3"),
            exports=exported(told),
            name="keepers",
            survives=True,
            root=os.geteuid() == 0,
        )
    )
    subprocess.run(
        launch.argv,
        env={**told, **launch.environment},
        stdin=subprocess.DEVNULL,
        cwd=tmp_path,
        timeout=60,
        check=True,
    )
    cleaned = clean_environment(json.loads((tmp_path / "seen").read_text()))
    assert without_aside(cleaned) == without_aside(before)


@pytest.mark.parametrize("kind", ["srun"])
def test_one_node_of_a_batch_job_goes_through_srun_too(
    allocation: Allocation, tmp_path: Path, kind: str
) -> None:
    worker = Worker(allocation, tmp_path, ("n1",), kind)
    try:
        worker.run(TASK, *PROGRAM, ranks_per_node=2)
        assert [row["size"] for row in rows(worker, TASK)] == [2, 2]
        worker.run("t2", *SEEN, launcher="srun")
        assert [row[0] for row in rows(worker, "t2")] == ["n1"]
        worker.run("t3", "/no/such/program", ranks_per_node=2)
        ended = worker.ended("t3")
        assert ended.exit_code == 127
        assert "/no/such/program" in ended.stderr_tail
    finally:
        worker.close()
