"""The local scheduler when processes resist, and when those that keep them die."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from balsam_celery import procs
from balsam_celery.procs import Identity
from balsam_celery.schedulers.base import JobState
from balsam_celery.schedulers.local_state import Record, State
from tests.schedulers.conftest import Cluster
from tests.waiting import wait_until

ENDED, QUEUED, RUNNING = JobState.ENDED, JobState.QUEUED, JobState.RUNNING
NASTY = Path(__file__).parents[1] / "nasty.py"
#: Programs that outlive their script, and how many processes of each remain.
KINDS = {"deaf": 1, "session": 2, "orphan": 1, "nameless": 1, "threads": 1, "storm": 201}


def start_nasty(cluster: Cluster, kind: str, then: str) -> tuple[str, list[Identity]]:
    """Start a nasty program in a job; the job's id, and the processes once all are there."""
    pids = cluster.work / "pids"
    noted = KINDS[kind] + (kind in ("orphan", "nameless"))
    native_id = cluster.submit(f"{sys.executable} -S {NASTY} {kind} {pids} & {then}")
    wait_until(
        lambda: pids.exists() and len(pids.read_text().split()) >= noted, what=f"{kind} to settle"
    )
    wait_until(
        lambda: kind not in ("orphan", "nameless") or len(living(pids)) == 1, what="the fork"
    )
    return native_id, living(pids)


def living(pids: Path) -> list[Identity]:
    return [i for pid in pids.read_text().split() if (i := procs.identity(int(pid)))]


def kill_keeper(cluster: Cluster, native_id: str) -> Identity:
    keeper = cluster.record(native_id).keeper
    assert keeper is not None
    assert procs.send(keeper, signal.SIGKILL)
    wait_until(lambda: not procs.alive(keeper), what="the keeper to die")
    return keeper


@pytest.mark.parametrize("kind", KINDS)
def test_ended_means_that_no_descendant_lives(cluster: Cluster, kind: str) -> None:
    go = cluster.work / "go"
    native_id, processes = start_nasty(cluster, kind, f"until [ -e {go} ]; do sleep 0.02; done")
    assert len(processes) == KINDS[kind]
    assert cluster.job(native_id).state is RUNNING
    go.touch()
    job = cluster.wait_for(native_id, ENDED)
    assert job.reason == "exit status 0"
    assert not [process for process in processes if procs.alive(process)]
    assert cluster.processes(native_id) == []


def test_nodes_are_held_until_the_last_process_ended(make_cluster: Callable[..., Cluster]) -> None:
    """The script is gone at once; what it left ignores TERM for the whole grace."""
    cluster = make_cluster(kill_grace=2.0)
    pids = cluster.work / "pids"
    script = f"setsid {sys.executable} -S {NASTY} deaf {pids} & until [ -s {pids} ]; do :; done"
    native_id = cluster.submit(script, queue="large", nodes=3)
    wait_until(lambda: pids.exists() and pids.read_text().endswith("\n"))
    [deaf] = living(pids)
    leader = cluster.leader(native_id)
    wait_until(lambda: not procs.alive(leader), what="the script to end")
    other = cluster.submit("true")
    assert [cluster.job(i).state for i in (native_id, other)] == [RUNNING, QUEUED]
    assert cluster.idle() == 0
    assert procs.alive(deaf)
    ended = cluster.wait_for(native_id, ENDED)
    started = cluster.wait_for(other, ENDED).started
    assert (started or 0) >= (ended.ended or 0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_keeper_is_killed(cluster: Cluster, kind: str) -> None:
    native_id, processes = start_nasty(cluster, kind, "sleep 300")
    kill_keeper(cluster, native_id)
    assert len(cluster.processes(native_id)) >= len(processes), "they outlive their keeper"
    job = cluster.wait_for(native_id, ENDED)
    assert job.reason == "its keeper was killed, and its processes were ended"
    assert not [process for process in processes if procs.alive(process)]
    assert cluster.processes(native_id) == []
    assert cluster.idle() == 3


def test_the_keepers_keeper_is_killed_too(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(kill_grace=3.0)
    native_id, [deaf] = start_nasty(cluster, "deaf", "trap '' TERM; sleep 300")
    first = kill_keeper(cluster, native_id)
    assert cluster.job(native_id).state is RUNNING
    assert cluster.record(native_id).keeper != first
    kill_keeper(cluster, native_id)
    assert procs.alive(deaf)
    cluster.wait_for(native_id, ENDED)
    assert not procs.alive(deaf)


def test_a_pilot_may_end_in_order_when_its_keeper_was_killed(cluster: Cluster) -> None:
    native_id = cluster.submit(
        "trap 'echo told; exit 0' TERM; echo up; while :; do sleep 0.05; done"
    )
    out = cluster.work / f"{native_id}.out"
    wait_until(lambda: out.exists() and out.read_text() == "up\n")
    kill_keeper(cluster, native_id)
    cluster.wait_for(native_id, ENDED)
    assert out.read_text() == "up\ntold\n"


def test_jobs_outlive_who_submitted_them(cluster: Cluster) -> None:
    """Also a SIGKILL to its whole process group and session."""
    go, request = cluster.work / "go", cluster.request("true")
    request.script.write_text(f"until [ -e {go} ]; do sleep 0.02; done; echo done\n")
    code = (
        "import sys, time; from pathlib import Path\n"
        "from balsam_celery.schedulers.base import JobRequest\n"
        "from balsam_celery.schedulers.local import LocalOptions, LocalScheduler\n"
        "from balsam_celery.settings import LocalSettings, QueueSettings\n"
        f"scheduler = LocalScheduler(Path({str(cluster.directory)!r}), LocalOptions(\n"
        f"    {cluster.options.site!r}, LocalSettings(nodes=3, cores_per_node=2),\n"
        "    {'small': QueueSettings(min_wall_time=1)}))\n"
        f"print(scheduler.submit(JobRequest('n', 'small', 1, 60, Path({str(request.script)!r}),\n"
        f"    Path({str(cluster.work)!r}))), flush=True)\n"
        "time.sleep(300)\n"
    )
    user = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert user.stdout is not None
    native_id = user.stdout.readline().strip()
    user.stdout.close()
    os.killpg(user.pid, signal.SIGKILL)
    user.wait()
    cluster.wait_for(native_id, RUNNING)
    go.touch()
    assert cluster.wait_for(native_id, ENDED).reason == "exit status 0"
    assert cluster.output(native_id) == "done\n"


def starting(cluster: Cluster, script: str) -> tuple[str, Record]:
    """A job as a crash leaves it between the decision to start it and its keeper."""
    blocker = cluster.submit("sleep 300", queue="large", nodes=3)
    native_id = cluster.submit(script)
    state = State(cluster.directory)
    with state.locked(20):
        record = state.load(2)
        assert record is not None
        record = state.save(
            dataclasses.replace(record, phase="starting", nodes=(0,), incarnation=1)
        )
    cluster.scheduler.cancel(blocker)
    return native_id, record


def test_a_crash_before_the_keeper_started(cluster: Cluster) -> None:
    native_id, record = starting(cluster, "echo ran")
    cluster.wait_for(native_id, ENDED)
    assert cluster.output(native_id) == "ran\n"
    # the keeper of before the crash comes late, and must not run the job again
    command = [sys.executable, "-m", "balsam_celery.schedulers.local_keeper"]
    late = [str(cluster.directory), str(record.number), str(record.incarnation)]
    done = subprocess.run([*command, *late], capture_output=True, text=True, check=True)
    pid, start_time = map(int, done.stdout.split())
    keeper = Identity(pid, start_time, procs.boot_id())
    wait_until(lambda: not procs.alive(keeper), what="the late keeper to step back")
    assert cluster.output(native_id) == "ran\n"


def test_a_keeper_that_cannot_start_is_told(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/no/such/python")
        native_id = cluster.submit("true")
        wait_until(lambda: cluster.job(native_id).state is ENDED)
    assert "cannot start: keeper: " in cluster.job(native_id).reason
    assert cluster.idle() == 3


def test_a_restart_of_the_machine(cluster: Cluster) -> None:
    """All processes are of an earlier boot, and other processes bear their numbers now."""
    native_id = cluster.submit("sleep 300")
    cluster.wait_for(native_id, RUNNING)
    leader = cluster.leader(native_id)
    kill_keeper(cluster, native_id)
    bystander = subprocess.Popen(["/bin/sleep", "300"], start_new_session=True)
    try:
        procs.end(procs.Quarry(roots=frozenset({leader})), grace=0)
        now = procs.identity(bystander.pid)
        assert now is not None
        earlier = dataclasses.replace(now, boot_id="an-earlier-one")
        state = State(cluster.directory)
        with state.locked(20):
            record = state.load(1)
            assert record is not None
            state.save(dataclasses.replace(record, keeper=earlier, leader=earlier))
        cluster.wait_for(native_id, ENDED)
        assert procs.alive(now)
    finally:
        bystander.kill()
        bystander.wait()


def test_looking_from_inside_a_job_starts_nothing(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A keeper started there would end with that job."""
    with monkeypatch.context() as patch:
        patch.setenv("BALSAM_LOCAL_JOB", f"{cluster.options.site}.1")
        native_id = cluster.submit("true")
        assert cluster.job(native_id).state is QUEUED
        patch.setenv("BALSAM_LOCAL_JOB", f"{cluster.options.site}9.1")
        cluster.wait_for(native_id, ENDED)


def test_a_job_outlives_the_keeper_of_another_that_started_it(cluster: Cluster) -> None:
    first = cluster.submit("sleep 0.2", queue="large", nodes=3)
    second = cluster.submit("sleep 1; echo whole", queue="large", nodes=3)
    cluster.wait_for(first, ENDED)
    assert cluster.wait_for(second, ENDED).reason == "exit status 0"
    assert cluster.output(second) == "whole\n"


def test_a_user_that_is_killed_at_any_moment_harms_nothing(cluster: Cluster) -> None:
    """SIGKILL to processes that submit and look, over and over; every job runs exactly once."""
    code = (
        "import sys; from pathlib import Path\n"
        "from balsam_celery.schedulers.base import JobRequest\n"
        "from balsam_celery.schedulers.local import LocalOptions, LocalScheduler\n"
        "from balsam_celery.settings import LocalSettings, QueueSettings\n"
        f"scheduler = LocalScheduler(Path({str(cluster.directory)!r}), LocalOptions(\n"
        f"    {cluster.options.site!r}, LocalSettings(nodes=3, cores_per_node=2),\n"
        "    {'small': QueueSettings(min_wall_time=1, max_queued=99)}))\n"
        f"work, user = Path({str(cluster.work)!r}), sys.argv[1]\n"
        "script = work / 'once.sh'\n"
        "print('up', flush=True)\n"
        "for n in range(99):\n"
        "    scheduler.submit(JobRequest(f'{user}-{n}', 'small', 1, 60, script, work))\n"
        "    scheduler.jobs()\n"
    )
    (cluster.work / "once.sh").write_text("echo $BALSAM_LOCAL_JOB >> ran\n")
    pause = threading.Event()
    for user in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(user)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        pause.wait(0.05 + 0.037 * user)  # a moment of no meaning: another one each time
        process.kill()
        process.wait()
    wait_until(lambda: all(job.state is ENDED for job in cluster.scheduler.jobs().values()))
    jobs = cluster.scheduler.jobs()
    assert {job.reason for job in jobs.values()} == {"exit status 0"}
    ran = (cluster.work / "ran").read_text().split()
    numbers = sorted(int(line.rpartition(".")[2]) for line in ran)
    assert numbers == sorted(int(i.removeprefix("local-")) for i in jobs)
    assert len({job.name for job in jobs.values()}) == len(jobs)
