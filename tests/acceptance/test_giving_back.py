"""Idle virtual nodes of a local site are given back while their job works on."""

from __future__ import annotations

from pathlib import Path

from balsam_celery.settings import LocalSettings
from balsam_celery.store import allocations
from balsam_celery.store.allocations import LIVE_ALLOCATIONS
from tests.acceptance.live import live_site
from tests.waiting import wait_until


def test_idle_nodes_go_back_while_a_task_runs_on(tmp_path: Path) -> None:
    local = LocalSettings(nodes=3, cores_per_node=1)
    go_on = tmp_path / "go-on"
    script = f'while [ ! -e "{go_on}" ]; do sleep 0.2; done'
    keys = {"release_idle_nodes": "true", "release_after": '"3s"', "poll_interval": '"1s"'}
    with live_site(tmp_path / "site", local, tmp_path / "state", **keys) as live:
        ids = live.submit("--array", "1-3", "--", "/bin/sh", "-c", script)
        for id in ids:
            live.wait_for(id, "RUNNING")
        with live.store.read() as conn:
            [row] = allocations.list_allocations(conn, LIVE_ALLOCATIONS)
            [pilot] = allocations.list_pilots(conn, allocation=row.id)
        head = pilot.nodes[0]["name"]
        nodes = {id: (live.task(id).shares or [{}])[0]["node"] for id in ids}
        assert sorted(nodes.values()) == sorted(node["name"] for node in pilot.nodes)
        (kept,) = [id for id in ids if nodes[id] == head]
        for id in set(ids) - {kept}:
            live.balsam("kill", id)

        def back() -> int:
            with live.store.read() as conn:
                return allocations.get_allocation(conn, row.id).nodes_back

        wait_until(lambda: back() == 2, 60, "both nodes are back")
        assert live.task(kept).state == "RUNNING"
        # another allocation has them at once
        (wide,) = live.submit("--num-nodes", "2", "--launcher", "none", "--", "/bin/true")
        live.wait_for(wide, "JOB_FINISHED")
        go_on.touch()
        live.wait_for(kept, "JOB_FINISHED")
        assert live.task(kept).attempt == 1
