"""The Slurm of the tests is a real one: it runs, fails and ends as the fixture says."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm_cluster import NODES, SlurmCluster
from tests.waiting import wait_until

MPI_PROGRAM = Path(__file__).parent.parent / "mpi_program.py"


@pytest.fixture
def job(slurm_cluster: SlurmCluster, tmp_path: Path) -> Iterator[str]:
    """Id of a job that has all nodes and lasts; cancelled after the test."""
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\nsleep 600\n", encoding="utf-8")
    argv = ("sbatch", "--parsable", "--no-kill", "--exclusive", "-N8", "-o", "/dev/null")
    number = slurm_cluster.run(*argv, str(script)).stdout.strip()
    wait_until(lambda: job_state(slurm_cluster, number) == "RUNNING", 30, "the job runs")
    yield number
    slurm_cluster.run("scancel", number)
    wait_until(lambda: idle(slurm_cluster), 30, "the nodes are idle again")


def job_state(cluster: SlurmCluster, number: str) -> str:
    return cluster.run("squeue", "-h", "-j", number, "-t", "all", "-o", "%T").stdout.strip()


def idle(cluster: SlurmCluster) -> bool:
    return cluster.node_states() == dict.fromkeys(NODES, "idle")


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_eight_nodes_are_idle(slurm_cluster: SlurmCluster) -> None:
    assert slurm_cluster.node_states() == dict.fromkeys(NODES, "idle")
    limits = slurm_cluster.run("sinfo", "-h", "-o", "%P %l %D %c").stdout.splitlines()
    assert limits == ["debug* 1:00:00 8 4", "small 10:00 2 4"]


def test_a_job_runs(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text('#!/bin/sh\nsrun sh -c "echo \\$SLURMD_NODENAME"\n', encoding="utf-8")
    out = tmp_path / "out"
    slurm_cluster.run("sbatch", "--wait", "-N8", "-o", str(out), str(script))
    assert sorted(out.read_text(encoding="utf-8").split()) == list(NODES)


def test_mpi_ranks_of_all_nodes_form_one_world(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    argv = ("srun", "--mpi=pmi2", "-N8", "-n8", f"--chdir={tmp_path}")
    slurm_cluster.run(*argv, sys.executable, str(MPI_PROGRAM))
    seen = [json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("rank-*.json")]
    assert {one["rank"] for one in seen} == set(range(8))
    assert {one["size"] for one in seen} == {8}
    assert {one["environment"]["SLURMD_NODENAME"] for one in seen} == set(NODES)


def test_a_stopped_controller_does_not_answer_and_its_jobs_run_on(
    slurm_cluster: SlurmCluster, job: str
) -> None:
    slurm_cluster.stop_controller()
    try:
        done = slurm_cluster.run("squeue", check=False)
    finally:
        slurm_cluster.start_controller()
    assert done.returncode == 1
    assert "Unable to contact slurm controller" in done.stderr
    assert job_state(slurm_cluster, job) == "RUNNING"


def test_a_dead_node_takes_its_processes_along_and_comes_back(
    slurm_cluster: SlurmCluster, job: str, tmp_path: Path
) -> None:
    # the daemon has left its session, its parent and its environment
    script = tmp_path / "step.sh"
    script.write_text(
        f"#!/bin/sh\necho $$ > {tmp_path}/$SLURMD_NODENAME\n"
        f"env -i /usr/bin/setsid --fork /bin/sh -c 'echo $$ > {tmp_path}/daemon; exec sleep 600'\n"
        "exec sleep 600\n",
        encoding="utf-8",
    )
    script.chmod(0o700)
    client = slurm_cluster.popen("srun", f"--jobid={job}", "--overlap", "-w", "n3", str(script))
    try:
        files = [tmp_path / "n3", tmp_path / "daemon"]
        wait_until(
            lambda: all(path.exists() and path.read_text() for path in files), 30, "the step runs"
        )
        pids = [int(path.read_text()) for path in files]
        assert all(alive(pid) for pid in pids)
        assert slurm_cluster.processes() >= {*pids, client.pid}
        slurm_cluster.down_node("n3")
        assert not any(alive(pid) for pid in pids)
        assert slurm_cluster.node_states()["n3"].startswith("down")
        nodes = slurm_cluster.run("squeue", "-h", "-j", job, "-o", "%T %N").stdout.strip()
        assert nodes == "RUNNING n[1-2,4-8]"
    finally:
        client.kill()
        client.wait(20)
        slurm_cluster.resume_node("n3")
    assert slurm_cluster.run("srun", "-w", "n3", "printenv", "SLURMD_NODENAME").stdout == "n3\n"


def test_nothing_is_left_of_a_stopped_cluster(slurm_cluster: SlurmCluster) -> None:
    second = SlurmCluster(min_job_age=2)
    try:
        second.start()
        script = second.directory / "job.sh"
        script.write_text("#!/bin/sh\nsrun --overlap sleep 600\n", encoding="utf-8")
        argv = ("sbatch", "--parsable", "-N2", "-o", "/dev/null", str(script))
        job = second.run(*argv).stdout.strip()
        wait_until(
            lambda: f"{job}.0" in second.run("squeue", "-h", "-s", "-o", "%i").stdout.split(),
            30,
            "the step runs",
        )
        running = second.processes()
    finally:
        second.stop()
    assert len(running) > 2 * len(NODES)
    # one that is dying shows no environment any more, by which the others are found
    wait_until(lambda: not [pid for pid in running if alive(pid)], 30, "none of them lives")
    assert not second.processes()
    assert not second.directory.exists()
    assert os.getpid() not in running
    assert idle(slurm_cluster)  # the other one is not touched


def test_the_record_of_an_ended_job_vanishes_when_wanted(own_slurm_cluster: SlurmCluster) -> None:
    cluster = own_slurm_cluster
    done = cluster.run("sbatch", "--parsable", "-o", "/dev/null", "--wrap", "exit 3")
    job = done.stdout.strip()
    wait_until(lambda: job_state(cluster, job) == "FAILED", 30, "the job has ended")

    def vanished() -> bool:
        return "Invalid job id" in cluster.run("squeue", "-j", job, check=False).stderr

    wait_until(vanished, 100, "the record has vanished")
