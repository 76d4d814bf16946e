"""Faults that break a Slurm or fill its queues: each has one of its own, and a site on it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from balsam_celery import procs
from tests.acceptance.live import LiveSite, one_on_each_node, ran_twice
from tests.slurm.live import (
    MPI_SUM,
    QUICK,
    close_slurm_site,
    open_slurm_site,
    pilot_of,
    processes_of,
    worker_of,
)
from tests.slurm_cluster import SlurmCluster
from tests.waiting import wait_until


@pytest.mark.parametrize(
    ("own_slurm_site", "dies"),
    [
        ("srun", True),
        ("srun", False),
        pytest.param("mpich", True, marks=pytest.mark.long),
        pytest.param("openmpi", True, marks=pytest.mark.long),
    ],
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
