"""Servers that are stopped stand still as a whole, and go on; they can be killed meanwhile."""

from __future__ import annotations

import signal
from pathlib import Path

import psycopg
import pytest

from balsam_celery.errors import StoreError
from balsam_celery.procs import Identity
from tests.chaos.faults import NotNow, inject
from tests.chaos.house import House
from tests.chaos.plan import Fault
from tests.chaos.world import World
from tests.postgres import PostgresServer, postgres_server
from tests.slurm_cluster import SlurmCluster, slurm_cluster, slurm_installed
from tests.waiting import wait_until

__all__ = ["postgres_server", "slurm_cluster", "slurm_installed"]


def stands(processes: list[Identity]) -> bool:
    """All of them are stopped, and there are some."""
    stats = [Path(f"/proc/{one.pid}/stat").read_text().rpartition(") ")[2] for one in processes]
    return bool(stats) and all(stat.startswith("T") for stat in stats)


def world(path: Path, **servers: PostgresServer | SlurmCluster) -> World:
    """One of which nothing but its servers is asked."""
    return World(path, None, House(path, None), **servers)  # type: ignore[arg-type]


def fault(kind: str) -> Fault:
    return Fault(1, kind, 1.0, 0.5, overlaps=False, soon=False, wait=0.0)


def test_postgres_stands_still_and_goes_on(postgres_server: PostgresServer, tmp_path: Path) -> None:
    there = world(tmp_path, postgres=postgres_server)
    with psycopg.connect(postgres_server.url("postgres").replace("+psycopg", "")) as connection:
        go_on = inject(there, fault("pause:postgres"))
        assert go_on is not None
        try:
            wait_until(lambda: stands(postgres_server.paused), 20, "all its processes stand")
            with pytest.raises(NotNow):
                inject(there, fault("pause:postgres"))
            with pytest.raises(StoreError), there.read():
                pass
        finally:
            go_on()
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert not there.is_sql_paused


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_postgres_can_be_ended_while_it_stands(
    postgres_server: PostgresServer, number: signal.Signals
) -> None:
    with psycopg.connect(postgres_server.url("postgres").replace("+psycopg", "")):
        postgres_server.pause()
        postgres_server.halt(number)
        postgres_server.resume()
    postgres_server.execute("SELECT 1")


def test_slurm_stands_still_and_goes_on(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    there = world(tmp_path, cluster=slurm_cluster)
    for kind in ("pause:slurmctld", "pause:slurmd"):
        go_on = inject(there, fault(kind))
        assert go_on is not None
        victims = slurm_cluster.controller() if kind == "pause:slurmctld" else []
        victims = victims or slurm_cluster.slurmd("n5")
        try:
            wait_until(lambda victims=victims: stands(victims), 20, f"{kind}: it stands")
        finally:
            go_on()
        wait_until(lambda victims=victims: not stands(victims), 20, f"{kind}: it goes on")
    wait_until(lambda: slurm_cluster.node_states().get("n5") == "idle", 60, "n5 is idle")
