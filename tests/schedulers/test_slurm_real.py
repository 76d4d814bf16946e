"""The Slurm adapter on a real Slurm, beyond what every adapter must do."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_celery.errors import SchedulerUnavailable
from balsam_celery.schedulers.base import IdleWindow, Job, JobState, QueueInfo
from tests.schedulers.harness_slurm import SlurmHarness
from tests.slurm_cluster import SlurmCluster
from tests.waiting import wait_until

SYSTEM = os.pathsep.join(["/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"])
ENDED, QUEUED, RUNNING = JobState.ENDED, JobState.QUEUED, JobState.RUNNING


@contextlib.contextmanager
def connected(
    cluster: SlurmCluster, root: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SlurmHarness]:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    harness = SlurmHarness(root, cluster)
    try:
        yield harness
    finally:
        monkeypatch.setenv("PATH", SYSTEM)  # without what stands in
        harness.stop()


@pytest.fixture
def slurm(
    slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SlurmHarness]:
    with connected(slurm_cluster, tmp_path, monkeypatch) as harness:
        yield harness


def wait_for(slurm: SlurmHarness, native_id: str, state: JobState) -> Job:
    """The job in a state; its record must still be there."""
    job = slurm.wait_for(native_id, state)
    assert job is not None
    return job


def stand_in(slurm: SlurmHarness, monkeypatch: pytest.MonkeyPatch, command: str, text: str) -> None:
    """A program before the real one on the PATH; ``REAL`` in its text is the path of that."""
    directory = slurm.root / "bin"
    directory.mkdir(exist_ok=True)
    real = shutil.which(command, path=SYSTEM)
    assert real is not None
    (directory / command).write_text(f"#!/bin/sh\n{text.replace('REAL', real)}\n")
    (directory / command).chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{SYSTEM}")


def test_a_lost_answer_is_found_again(slurm: SlurmHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """``sbatch`` hangs after the controller took the job."""
    request = slurm.request()
    taken = slurm.root / "taken"
    with monkeypatch.context() as patch:
        stand_in(slurm, patch, "sbatch", f'REAL "$@" > {taken}; sleep 300')
        scheduler = slurm.make(slurm.settings(command_timeout=3))
        with pytest.raises(SchedulerUnavailable, match="sbatch did not end within 3 s"):
            scheduler.submit(request)
    assert {job.name: id for id, job in slurm.scheduler.jobs().items()} == {
        request.name: taken.read_text().strip()
    }


def test_an_answer_without_an_id_leaves_it_open(
    slurm: SlurmHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stand_in(slurm, patch, "sbatch", "echo Welcome to the machine")
        with pytest.raises(SchedulerUnavailable, match="told no job id: Welcome to the machine"):
            slurm.scheduler.submit(slurm.request())
        stand_in(slurm, patch, "sbatch", 'echo Welcome; REAL "$@"; echo Goodbye')
        native_id = slurm.scheduler.submit(slurm.request())
    assert list(slurm.scheduler.jobs()) == [native_id]


def test_a_command_that_hangs_is_not_known(
    slurm: SlurmHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(slurm, monkeypatch, "squeue", "sleep 300")
    scheduler = slurm.make(slurm.settings(command_timeout=1))
    with pytest.raises(SchedulerUnavailable, match="squeue did not end within 1 s"):
        scheduler.jobs()


def test_output_that_is_cut_off_is_not_known(
    slurm: SlurmHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.scheduler.submit(slurm.request())
    stand_in(slurm, monkeypatch, "squeue", 'REAL "$@" | head -c 20; exit 0')
    with pytest.raises(SchedulerUnavailable, match="squeue: a line of"):
        slurm.scheduler.jobs()


def test_the_users_settings_of_the_commands_do_not_matter(
    slurm: SlurmHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With these, jobs would be hidden, renamed, requeued, or of another size."""
    for name, value in {
        "SQUEUE_PARTITION": "small",
        "SQUEUE_STATES": "COMPLETED",
        "SQUEUE_USERS": "daemon",
        "SQUEUE_FORMAT": "%i",
        "SQUEUE_SORT": "N",
        "SLURM_TIME_FORMAT": "relative",
        "SBATCH_JOB_NAME": "other",
        "SBATCH_REQUEUE": "1",
        "SBATCH_PARTITION": "small",
        "SBATCH_TIMELIMIT": "1",
        "SBATCH_ARRAY_INX": "1-3",
        "SBATCH_WAIT": "1",
        "SLURM_JOB_ID": "1",
        "SLURM_NTASKS": "99",
        "SINFO_PARTITION": "small",
    }.items():
        monkeypatch.setenv(name, value)
    request = slurm.request()
    native_id = slurm.scheduler.submit(request)
    assert wait_for(slurm, native_id, RUNNING).name == request.name
    shown = slurm.cluster.run("scontrol", "--oneliner", "show", "job", native_id).stdout
    for part in ("Requeue=0", "Partition=debug", "TimeLimit=00:05:00", "NumNodes=1"):
        assert f" {part} " in shown
    environment = slurm.environment(request)
    assert environment["SLURM_JOB_ID"] == native_id
    assert "SLURM_TIME_FORMAT" not in environment
    assert {window.queue for window in slurm.scheduler.idle()} == {"debug", "small"}


def test_other_jobs_of_the_user_are_no_trouble(slurm: SlurmHarness) -> None:
    """Whatever their names: of other sites, with separators, with line breaks."""
    for name in ("a|b|c", "a\nb|c|d", f"balsam-{slurm.site}x-1", f"x-balsam-{slurm.site}-1"):
        slurm.cluster.run("sbatch", "--hold", f"--job-name={name}", "--wrap=true")
    assert slurm.scheduler.jobs() == {}
    native_id = slurm.scheduler.submit(slurm.request())
    assert list(slurm.scheduler.jobs()) == [native_id]


def test_a_renamed_job_has_not_ended(slurm: SlurmHarness) -> None:
    native_id = slurm.scheduler.submit(slurm.request())
    wait_for(slurm, native_id, RUNNING)
    slurm.cluster.run("scontrol", "update", f"jobid={native_id}", "name=mine")
    job = slurm.scheduler.jobs([native_id])[native_id]
    assert (job.state, job.name) == (RUNNING, "mine")


def test_how_a_script_ended(slurm: SlurmHarness) -> None:
    request = slurm.request()
    good = slurm.scheduler.submit(request)
    slurm.finish(request)
    assert wait_for(slurm, good, ENDED).reason == "exit status 0"
    request = slurm.request()
    bad = slurm.scheduler.submit(request)
    slurm.finish(request, status=3)
    assert wait_for(slurm, bad, ENDED).reason == "exit status 3"
    request = slurm.request()
    request.script.write_text(request.script.read_text().replace("exit $(", "kill -9 $$ $("))
    killed = slurm.scheduler.submit(request)
    slurm.finish(request)
    job = wait_for(slurm, killed, ENDED)
    assert job.reason == "killed by SIGKILL"
    assert job.started is not None
    assert job.ended is not None
    assert job.started <= job.ended <= time.time()


def test_cancelled_before_and_after_the_start(slurm: SlurmHarness) -> None:
    wide = slurm.scheduler.submit(slurm.request(nodes=8))
    waits = slurm.scheduler.submit(slurm.request(nodes=8))
    wait_for(slurm, wide, RUNNING)
    slurm.scheduler.cancel(waits)
    job = wait_for(slurm, waits, ENDED)
    assert (job.reason, job.started) == ("cancelled before it started", None)
    slurm.scheduler.cancel(wide)
    job = wait_for(slurm, wide, ENDED)
    assert job.reason == "cancelled"
    assert job.started is not None


def test_what_is_impossible_and_what_is_not(slurm: SlurmHarness) -> None:
    def pending(reason: str, **changes: int | str) -> Job:
        native_id = slurm.scheduler.submit(slurm.request(**changes))  # type: ignore[arg-type]

        def told() -> bool:
            return slurm.scheduler.jobs([native_id])[native_id].reason == reason

        wait_until(told, 30, f"a job to wait for {reason}")
        return slurm.scheduler.jobs([native_id])[native_id]

    assert pending("PartitionNodeLimit", nodes=9).impossible
    assert pending("PartitionNodeLimit", nodes=3, queue="small").impossible
    assert pending("PartitionTimeLimit", wall_time=1800, queue="small").impossible
    slurm.scheduler.submit(slurm.request(nodes=8))
    first = pending("Resources", nodes=8)
    assert not first.impossible
    assert not pending("Priority", nodes=8).impossible
    slurm.cluster.run("scontrol", "hold", first.native_id)
    held = slurm.scheduler.jobs([first.native_id])[first.native_id]
    assert (held.state, held.reason, held.impossible) == (QUEUED, "JobHeldAdmin", False)


def test_queues(slurm: SlurmHarness) -> None:
    common = {"cores_per_node": 4, "memory_per_node": 2000 << 20}
    assert slurm.scheduler.queues() == (
        QueueInfo("debug", max_nodes=8, max_wall_time=3600, is_default=True, **common),
        QueueInfo("small", max_nodes=2, max_wall_time=600, **common),
    )
    slurm.cluster.run("scontrol", "update", "partitionname=small", "state=drain")
    try:
        assert [queue.enabled for queue in slurm.scheduler.queues()] == [True, False]
    finally:
        slurm.cluster.run("scontrol", "update", "partitionname=small", "state=up")


def test_idle_nodes_until_the_next_job(slurm: SlurmHarness) -> None:
    assert set(slurm.scheduler.idle()) == {IdleWindow("debug", 8), IdleWindow("small", 2)}
    half = slurm.scheduler.submit(slurm.request(nodes=4, wall_time=600))
    wait_for(slurm, half, RUNNING)
    wait_until(lambda: IdleWindow("debug", 4) in slurm.scheduler.idle(), 30, "four idle nodes")
    slurm.scheduler.submit(slurm.request(nodes=8, wall_time=600))

    def windows() -> list[IdleWindow]:
        found = [window for window in slurm.scheduler.idle() if window.queue == "debug"]
        return found if found and found[0].seconds is not None else []

    [window] = wait_until(windows, 60, "the four nodes to be planned for the next job")
    assert window.nodes == 4
    assert window.seconds is not None
    assert 0 < window.seconds <= 660, "as long as the first job may run, to the minute"


def test_inside_a_job(slurm: SlurmHarness) -> None:
    request = slurm.request(nodes=3, wall_time=600)
    native_id = slurm.scheduler.submit(request)
    environment = slurm.environment(request)
    inside = slurm.scheduler.inside(environment)
    started = slurm.scheduler.jobs()[native_id].started
    assert started is not None
    assert inside.end_time == started + 600
    assert inside.native_id == native_id
    assert not inside.virtual
    assert [node.cores for node in inside.nodes] == [(0, 1, 2, 3)] * 3
    assert inside.nodes[0].name == environment["SLURMD_NODENAME"]
    last = inside.nodes[-1].name
    other = slurm.scheduler.inside({**environment, "SLURMD_NODENAME": last})
    assert other.nodes[0].name == last, "where the script runs comes first"


def test_a_node_that_drains_is_not_down(slurm: SlurmHarness) -> None:
    request = slurm.request(nodes=2)
    native_id = slurm.scheduler.submit(request)
    nodes = wait_for(slurm, native_id, RUNNING).nodes
    slurm.cluster.run("scontrol", "update", f"nodename={nodes[1]}", "state=drain", "reason=test")
    try:
        assert slurm.scheduler.down_nodes([*nodes, "n99"]) == frozenset()
        assert slurm.scheduler.jobs()[native_id].nodes == nodes
    finally:
        slurm.cluster.run("scontrol", "update", f"nodename={nodes[1]}", "state=resume")


def test_a_dead_node_leaves_its_job_and_a_record_vanishes(
    own_slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(own_slurm_cluster, tmp_path, monkeypatch) as slurm:
        request = slurm.request(nodes=3)
        native_id = slurm.scheduler.submit(request)
        head, *others = wait_for(slurm, native_id, RUNNING).nodes
        slurm.cluster.down_node(others[0])
        assert slurm.scheduler.down_nodes([head, *others]) == {others[0]}
        job = slurm.scheduler.jobs()[native_id]
        assert (job.state, job.nodes) == (RUNNING, (head, others[1]))
        # fewer nodes than asked for are up: that ends one day
        wide = slurm.scheduler.submit(slurm.request(nodes=8))
        wait_until(lambda: slurm.scheduler.jobs()[wide].reason, 30, "a reason to wait")
        assert not slurm.scheduler.jobs()[wide].impossible
        slurm.cluster.resume_node(others[0])
        assert slurm.scheduler.down_nodes(others) == frozenset()
        assert others[0] not in slurm.scheduler.jobs()[native_id].nodes, "it does not come back"
        slurm.finish(request)
        wait_until(
            lambda: native_id not in slurm.scheduler.jobs([native_id]), 60, "the record to vanish"
        )
        assert set(slurm.scheduler.jobs([native_id])) == {wide}
