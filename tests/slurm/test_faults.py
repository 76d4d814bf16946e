"""Faults of a real Slurm: jobs cancelled, nodes down, time over, no controller, no room."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from datetime import datetime
from pathlib import Path

import pytest

from balsam_celery import keys, procs
from balsam_celery.pilot.ranks import step_name
from balsam_celery.store import queries
from balsam_celery.store.rows import AllocationState
from tests import nasty
from tests.acceptance.live import LiveSite, one_on_each_node, ran_twice
from tests.slurm.live import (
    QUICK,
    allocation_of,
    close_slurm_site,
    current,
    jobs,
    open_slurm_site,
    pilot_of,
    quiet,
)
from tests.slurm_cluster import SlurmCluster
from tests.waiting import wait_until

MPI_SUM = str(Path(__file__).with_name("mpi_sum.py"))


def processes_of(*ids: str) -> set[int]:
    """Living processes of these tasks, on all nodes."""
    return procs.marked([f"BALSAM_TASK_ID={id}" for id in ids])


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


def worker_of(directory: Path, node: str) -> int:
    """Process id of a node's worker, by its pid file."""
    content = json.loads((directory / f"{node}.pid").read_text(encoding="utf-8"))
    pid: int = content["pid"]
    assert procs.identity(pid) is not None
    return pid


@pytest.mark.parametrize(
    ("own_slurm_site", "dies"),
    [("srun", True), ("srun", False), ("mpich", True), ("openmpi", True)],
    indirect=["own_slurm_site"],
    ids=["srun-dead", "srun-set-down", "mpich-dead", "openmpi-dead"],
)
def test_what_befalls_a_node_harms_that_node_only(
    own_slurm_site: LiveSite, own_slurm_cluster: SlurmCluster, dies: bool
) -> None:
    """Whichever launcher has started the pilot: its worker is killed, or the whole node is down."""
    live = own_slurm_site
    held = one_on_each_node(live, 4)
    pilot = pilot_of(live, next(iter(held.values())))
    assert {pilot_of(live, id).id for id in held.values()} == {pilot.id}
    head = pilot.nodes[0]["name"]
    struck, victim, spared = (node for node in held if node != head)
    before = processes_of(held[struck], held[victim])
    directory = live.site.run_dir / "allocations" / pilot.allocation / pilot.id
    os.kill(worker_of(directory, struck), signal.SIGKILL)
    ran_twice(live, held[struck])
    if dies:
        own_slurm_cluster.down_node(victim)
    else:
        own_slurm_cluster.run(
            "scontrol", "update", f"nodename={victim}", "state=down", "reason=test"
        )
    ran_twice(live, held[victim])
    assert not {pid for pid in before if procs.identity(pid)}
    others = [held[head], held[spared]]
    assert {live.task(id).state for id in others} == {"RUNNING"}
    assert {live.task(id).attempt for id in others} == {1}
    # the nodes that are left run tasks over several of them
    live.balsam("kill", *others)
    for id in others:
        live.wait_for(id, "USER_KILLED")
    mpi = (
        ["--env", "MPI4PY_MPIABI=openmpi"] if live.site.settings.launcher.kind == "openmpi" else []
    )
    (wide,) = live.submit(*mpi, "--num-nodes", "3", "--", sys.executable, MPI_SUM)
    live.wait_for(wide, "JOB_FINISHED", timeout=150)


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


#: Seconds for which the controller is away: twice what jobs may be missing (GONE_AFTER).
AWAY = 60.0


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


def test_limits_hit(own_slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    """A partition that takes fewer nodes than ``site.toml`` says stops nothing but itself."""
    changes = {
        **QUICK,
        "queues.small": {"max_nodes": 4, "max_wall_time": "10m", "max_queued": 1},
        "queues.debug": {"max_nodes": 2, "max_wall_time": "30m"},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own_slurm_cluster.environment.items():
            patch.setenv(name, value)
        live = open_slurm_site(tmp_path / "site", changes)
        try:
            (wide,) = live.submit("--num-nodes", "4", "--", sys.executable, MPI_SUM)
            (narrow,) = live.submit("--num-nodes", "2", "-t", "20m", "--", sys.executable, MPI_SUM)
            live.wait_for(narrow, "JOB_FINISHED", timeout=120)

            def refused() -> list[str]:
                rows = live.json("allocations", "--all")["allocations"]
                reasons = [one["reason"] for one in rows if one["state"] == "FAILED"]
                return [reason for reason in reasons if "PartitionNodeLimit" in reason]

            wait_until(refused, 90, "the impossible allocation is given up")
            assert live.task(wide).state == "PREPROCESSED"
        finally:
            close_slurm_site(live, own_slurm_cluster)
