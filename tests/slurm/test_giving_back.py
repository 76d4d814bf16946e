"""Idle nodes of a real Slurm's job are given back while the job works on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_celery.store import allocations
from tests.acceptance.live import LiveSite
from tests.slurm.live import QUICK, allocation_of, close_slurm_site, open_slurm_site, pilot_of
from tests.slurm_cluster import SlurmCluster
from tests.waiting import wait_until

CHANGES = {
    **QUICK,
    "packing": {
        **QUICK["packing"],
        "release_idle_nodes": True,
        "release_after": "5s",
        "max_allocations": 1,
    },
    "queues.debug": {"min_nodes": 4, "max_nodes": 4},
    "queues.small": {},
}


@pytest.fixture
def live(
    slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LiveSite]:
    for name, value in slurm_cluster.environment.items():
        monkeypatch.setenv(name, value)
    site = open_slurm_site(tmp_path / "site", CHANGES)
    try:
        yield site
    finally:
        close_slurm_site(site, slurm_cluster)


def idle(cluster: SlurmCluster) -> set[str]:
    return {node for node, state in cluster.node_states().items() if state == "idle"}


@pytest.mark.parametrize("width", [1, 2])
def test_idle_nodes_go_back_while_a_task_runs_on(
    live: LiveSite, slurm_cluster: SlurmCluster, tmp_path: Path, width: int
) -> None:
    go_on = tmp_path / "go-on"
    script = f'while [ ! -e "{go_on}" ]; do sleep 0.2; done'
    (long,) = live.submit("--num-nodes", str(width), "--", "/bin/sh", "-c", script)
    short = live.submit("--array", "1-4", "--node-packing-count", "1", "--", "/bin/true")
    for id in short:
        live.wait_for(id, "JOB_FINISHED")
    live.wait_for(long, "RUNNING")
    pilot = pilot_of(live, long)
    job = allocation_of(live, long)
    nodes = [node["name"] for node in pilot.nodes]
    assert len(nodes) == 4
    held = {share["node"] for share in live.task(long).shares or ()} | {nodes[0]}
    spare = set(nodes) - held
    wait_until(lambda: spare <= idle(slurm_cluster), 120, "Slurm has the spare nodes back")
    assert held.isdisjoint(idle(slurm_cluster))

    def told() -> bool:
        return allocation_of(live, long).nodes_back == len(spare)

    wait_until(told, 30, "the service knows that they are back")
    row = allocation_of(live, long)
    assert row.started is not None
    assert 0 < row.charged_back < len(spare) * (live.store.clock() - row.started)
    with live.store.read() as conn:
        there = allocations.get_pilot(conn, pilot.id)
    lost = {node["name"]: node["lost_reason"] for node in there.nodes if node["lost"]}
    assert lost.keys() == spare
    assert all("given back" in reason for reason in lost.values())
    # the job goes on: what runs ends well, and new tasks find the nodes that it has kept
    go_on.touch()
    live.wait_for(long, "JOB_FINISHED")
    (later,) = live.submit("--", "/bin/true")
    live.wait_for(later, "JOB_FINISHED")
    with live.store.read() as conn:
        [only] = allocations.list_allocations(conn)
    assert (only.id, only.native_id) == (job.id, job.native_id)
