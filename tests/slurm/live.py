"""A whole site on the Slurm of the tests: its pilots are batch jobs over several nodes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from balsam_celery import procs, settings
from balsam_celery.site import connect_store
from balsam_celery.sitefile import SiteFile
from balsam_celery.siteinit import init
from balsam_celery.store import allocations
from balsam_celery.store.rows import AllocationRow, AllocationState, PilotRow
from balsam_celery.supervisor import down, up
from tests.acceptance.live import LiveSite
from tests.slurm_cluster import SlurmCluster
from tests.waiting import wait_until

#: What is changed in the ``site.toml`` that ``init`` wrote, so that tests need not wait.
QUICK: dict[str, dict[str, Any]] = {
    "site": {"default_wall_time": "5m", "kill_grace": "2s"},
    "scheduler": {"poll_interval": "1s", "command_timeout": "10s"},
    # side by side at once: what clusters do is tested here, not what packing saves
    "packing": {"interval": "1s", "efficiency": 0.0},
    "pilot": {
        "idle_timeout": "20s",
        "startup_margin": "20s",
        "drain_margin": "10s",
        "silence_timeout": "20s",
    },
    "flower": {"enabled": False},
}
#: A program whose ranks add up their numbers.
MPI_SUM = str(Path(__file__).with_name("mpi_sum.py"))
#: What makes a launcher the site's, for its pilots too.
LAUNCHERS: dict[str, dict[str, Any]] = {
    "srun": {},
    "mpich": {"kind": "mpich", "mpiexec": ""},
    # its shared memory takes equal host names for one host
    "openmpi": {"kind": "openmpi", "mpiexec": "", "options": ["--mca", "btl", "self,tcp"]},
}
#: One pilot over all nodes, which lasts from test to test.
LASTING: dict[str, dict[str, Any]] = {
    **QUICK,
    "pilot": {**QUICK["pilot"], "idle_timeout": "10m"},
    "queues.debug": {"min_nodes": 8, "min_wall_time": "50m", "max_running": 1, "max_queued": 1},
    "queues.small": {},
    "packing": {**QUICK["packing"], "max_allocations": 1},
}


def open_slurm_site(
    directory: Path, changes: Mapping[str, Mapping[str, Any]] = QUICK, *, tls: bool = False
) -> LiveSite:
    """Make a site as ``balsam init --scheduler slurm`` does, change it, and bring it up.

    A queue without values in ``changes`` is removed. ``SLURM_CONF`` must be in the environment, of
    the services too.
    """
    site = init(directory, name="test", scheduler="slurm", tls=tls)
    path = directory / "site.toml"
    file = SiteFile(path.read_text(encoding="utf-8"))
    file.set("redis", {"host": "127.0.0.1", "bind": "127.0.0.1"})
    for table, values in changes.items():
        if table.startswith("queues.") and not values:
            file.remove_queue(table.removeprefix("queues."))
        elif table.startswith("queues."):
            file.set_queue(table.removeprefix("queues."), values)
        else:
            file.set(table, values)
    path.write_text(file.text, encoding="utf-8")
    site = replace(site, settings=settings.load(path))
    up(site)
    return LiveSite(site, connect_store(site))


def close_slurm_site(live: LiveSite, cluster: SlurmCluster) -> None:
    """Cancel its jobs, bring it down, and wait until the nodes are free."""
    live.store.close()
    down(live.site, cancel=True)
    wait_until(lambda: not jobs(cluster), 60, "no job is left")


def jobs(cluster: SlurmCluster) -> list[str]:
    """Ids of jobs that wait or run."""
    return cluster.run("squeue", "-h", "-o", "%i").stdout.split()


def quiet(live: LiveSite, cluster: SlurmCluster) -> None:
    """Wait until no allocation of the site is left, so that a test begins afresh."""
    live.balsam("allocations", "cancel", "--all")
    wait_until(lambda: not jobs(cluster) and not current(live), 90, "no allocation is left")


def current(live: LiveSite) -> list[AllocationRow]:
    """Allocations that are asked for, wait or run."""
    states = (AllocationState.REQUESTED, AllocationState.QUEUED, AllocationState.RUNNING)
    with live.store.read() as conn:
        return allocations.list_allocations(conn, states)


def allocation_of(live: LiveSite, task: str) -> AllocationRow:
    """The allocation in which a task runs."""
    with live.store.read() as conn:
        return allocations.get_allocation(conn, pilot_of(live, task).allocation)


def pilot_of(live: LiveSite, task: str) -> PilotRow:
    """The pilot on which a task runs."""
    with live.store.read() as conn:
        return allocations.get_pilot(conn, live.task(task).pilot or "")


def processes_of(*ids: str) -> set[int]:
    """Living processes of these tasks, on all nodes."""
    return procs.marked([f"BALSAM_TASK_ID={id}" for id in ids])


def worker_of(directory: Path, node: str) -> int:
    """Process id of a node's worker, by its pid file."""
    content = json.loads((directory / f"{node}.pid").read_text(encoding="utf-8"))
    pid: int = content["pid"]
    assert procs.identity(pid) is not None
    return pid
