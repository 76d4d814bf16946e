"""Faults of a real Slurm: jobs cancelled, workers killed, time over, no controller, no room."""

from __future__ import annotations

import os
import re
import signal
import sys
from datetime import datetime
from pathlib import Path

from balsam_celery import keys, procs
from balsam_celery.pilot.ranks import step_name
from balsam_celery.service.verdict import GONE_AFTER
from balsam_celery.store import queries
from balsam_celery.store.rows import AllocationState
from tests import nasty
from tests.acceptance.live import LiveSite, one_on_each_node, ran_twice
from tests.slurm.live import (
    allocation_of,
    current,
    jobs,
    pilot_of,
    processes_of,
    quiet,
    worker_of,
)
from tests.slurm_cluster import SlurmCluster
from tests.waiting import wait_until


def deaf_over_two_nodes(live: LiveSite, pids: Path, *options: str) -> str:
    """Start a task of two ranks on two nodes that ignore TERM in the first attempt."""
    command = f'exec "{sys.executable}" "{nasty.__file__}" deaf "{pids}"'
    script = f'if [ "$BALSAM_ATTEMPT" = 1 ]; then {command}; fi'
    (id,) = live.submit("--num-nodes", "2", *options, "--", "/bin/sh", "-c", script)
    wait_until(lambda: pids.exists() and pids.read_text().count("\n") == 2, 120, "both ranks run")
    live.wait_for(id, "RUNNING")
    return id


def test_scancel_of_a_pilot(
    slurm_site: LiveSite, slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    """Tasks on one node each, and one over two nodes whose ranks ignore TERM."""
    held = one_on_each_node(slurm_site, 3)
    wide = deaf_over_two_nodes(slurm_site, tmp_path / "pids")
    ids = [*held.values(), wide]
    row = allocation_of(slurm_site, wide)
    assert {allocation_of(slurm_site, id).id for id in ids} == {row.id}
    assert row.native_id
    before = processes_of(*ids)
    assert before > {int(pid) for pid in (tmp_path / "pids").read_text().split()}
    slurm_cluster.run("scancel", row.native_id)
    for id in ids:
        ran_twice(slurm_site, id)
    assert not {pid for pid in before if procs.identity(pid)}
    with slurm_site.store.read() as conn:
        reasons = [queries.attempts(conn, id)[0].reason for id in ids]
    assert all(reasons)


def test_kill_9_of_the_gang_worker_with_an_open_step(
    slurm_site: LiveSite, slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    """Neither ranks nor their job step are left when the task's nodes are given again."""
    # all nodes are this machine, so the second try can look for all that is left of the first
    script = (
        f'echo $$ >> "{tmp_path}/pids-$BALSAM_ATTEMPT"\n'
        "if [ $BALSAM_ATTEMPT = 1 ]; then trap '' TERM; while :; do sleep 600; done; fi\n"
        f'for pid in $(cat "{tmp_path}/pids-1"); do kill -0 "$pid" && exit 3; done\n'
        'squeue --steps --noheader --format=%j --jobs="$SLURM_JOB_ID" > steps.$SLURM_PROCID\n'
        'grep -Fx "$BALSAM_TASK_ID.1" steps.$SLURM_PROCID && exit 4\n'
        "exit 0"
    )
    (id,) = slurm_site.submit("--num-nodes", "4", "--", "/bin/sh", "-c", script)
    first = tmp_path / "pids-1"
    wait_until(
        lambda: first.exists() and len(first.read_text().split()) == 4, 120, "four ranks run"
    )
    pilot = pilot_of(slurm_site, id)
    names = slurm_cluster.run("squeue", "--steps", "--noheader", "--format=%j").stdout.split()
    assert step_name(id, 1) in names
    before = processes_of(id)
    directory = slurm_site.site.run_dir / "allocations" / pilot.allocation / pilot.id
    os.kill(worker_of(directory, keys.GANG), signal.SIGKILL)
    ran_twice(slurm_site, id)
    assert not {pid for pid in before if procs.identity(pid)}
    with slurm_site.store.read() as conn:
        tries = queries.attempts(conn, id)
    assert [one.reason for one in tries] == ["its worker died", ""]
    assert {one.allocation for one in tries} == {pilot.allocation}, "its pilot went on"


def test_wall_time_over_with_tasks_running(
    slurm_site: LiveSite, slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    """Tasks that may be cut short; one has ranks on two nodes that ignore TERM."""
    quiet(slurm_site, slurm_cluster)
    script = 'if [ "$BALSAM_ATTEMPT" = 1 ]; then sleep 600 & wait $!; fi'
    limits = ("--wall-time", "5m", "--expected-time", "5s", "--restartable")
    (id,) = slurm_site.submit(
        "--num-nodes", "2", "--launcher", "none", *limits, "--", "/bin/sh", "-c", script
    )
    slurm_site.wait_for(id, "RUNNING", timeout=120)
    deaf = deaf_over_two_nodes(slurm_site, tmp_path / "pids", *limits)
    row = allocation_of(slurm_site, id)
    assert allocation_of(slurm_site, deaf).id == row.id
    before = processes_of(id, deaf)
    assert before > {int(pid) for pid in (tmp_path / "pids").read_text().split()}
    # Slurm looks for jobs whose time is over each half minute
    slurm_cluster.run("scontrol", "update", f"jobid={row.native_id}", "endtime=now+1")
    for task in (id, deaf):
        ran_twice(slurm_site, task)
    assert not {pid for pid in before if procs.identity(pid)}
    with slurm_site.store.read() as conn:
        firsts = [queries.attempts(conn, task)[0] for task in (id, deaf)]
    assert {(one.outcome, one.allocation) for one in firsts} == {("drained", row.id)}


#: Seconds for which the controller is away.
AWAY = GONE_AFTER + 10


def test_a_controller_that_is_away_for_longer_than_jobs_may_be_missing(
    slurm_site: LiveSite, slurm_cluster: SlurmCluster
) -> None:
    """ "Not known" is never "ended": what runs goes on, and what is asked for comes later."""
    log = slurm_site.site.log_dir / "service.log"

    def unknown() -> list[float]:
        """When polls failed, in seconds, by the service's own log."""
        lines = log.read_text(encoding="utf-8").splitlines()
        stamps = [
            re.match(r"\[(\S+ \S+),", line)
            for line in lines
            if "states of allocations are not known" in line
        ]
        return [datetime.fromisoformat(stamp[1]).timestamp() for stamp in stamps if stamp]

    gate = slurm_site.site.directory / "gate-controller"
    script = f'while [ ! -e "{gate}" ]; do sleep 0.1; done'
    (id,) = slurm_site.submit("--", "/bin/sh", "-c", script)
    slurm_site.wait_for(id, "RUNNING", timeout=120)
    row = allocation_of(slurm_site, id)
    before = len(unknown())
    slurm_cluster.stop_controller()

    def away() -> float:
        failed = unknown()[before:]
        return failed[-1] - failed[0] if failed else 0.0

    try:
        wait_until(lambda: away() > AWAY, 180, "polls have failed for that long")
        (meanwhile,) = slurm_site.submit("--", "true")
        slurm_site.wait_for(meanwhile, "JOB_FINISHED")
        assert len(unknown()) >= before + 3, "it has asked again and again"
    finally:
        slurm_cluster.start_controller()
    assert allocation_of(slurm_site, id).state is AllocationState.RUNNING
    gate.touch()
    assert slurm_site.wait_for(id, "JOB_FINISHED").attempt == 1
    assert slurm_site.task(id).reason == ""
    assert row.native_id in jobs(slurm_cluster) or not current(slurm_site)


def test_a_full_partition(slurm_site: LiveSite, slurm_cluster: SlurmCluster) -> None:
    quiet(slurm_site, slurm_cluster)
    argv = ("sbatch", "--parsable", "--exclusive", "-N8", "-o", "/dev/null")
    other = slurm_cluster.run(*argv, "--wrap", "sleep 600").stdout.strip()
    try:
        (id,) = slurm_site.submit("--", "true")
        wait_until(
            lambda: [r for r in current(slurm_site) if r.state is AllocationState.QUEUED],
            60,
            "an allocation waits",
        )
        wait_until(
            lambda: "Resources" in slurm_site.balsam("allocations"),
            60,
            "the user sees why it waits",
        )
        assert slurm_site.task(id).state == "PREPROCESSED"
    finally:
        slurm_cluster.run("scancel", other)
    slurm_site.wait_for(id, "JOB_FINISHED", timeout=120)
