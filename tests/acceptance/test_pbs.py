"""A site on a PBS of eight nodes: its commands and node starter are stand-ins, all else is real."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from balsam_celery import procs, settings
from balsam_celery.site import connect_store
from balsam_celery.sitefile import SiteFile
from balsam_celery.siteinit import init
from balsam_celery.store import allocations
from balsam_celery.supervisor import down, up
from tests import nasty
from tests.acceptance.live import LiveSite
from tests.schedulers import fake_pbs
from tests.schedulers.harness_pbs import PbsHarness
from tests.slurm.live import QUICK
from tests.waiting import wait_until

MPI_SUM = str(Path(__file__).parent.parent / "slurm" / "mpi_sum.py")


@pytest.fixture
def pbs(tmp_path: Path) -> Iterator[PbsHarness]:
    harness = PbsHarness(tmp_path)
    tmrsh = tmp_path / "bin" / "pbs_tmrsh"
    tmrsh.write_text(fake_pbs.TMRSH)
    tmrsh.chmod(0o755)
    (harness.fake.state / "pbs.conf").write_text(f"PBS_SERVER=pbsserver\nPBS_EXEC={tmp_path}\n")
    try:
        yield harness
    finally:
        harness.stop()


@pytest.fixture
def live(pbs: PbsHarness, tmp_path: Path) -> Iterator[LiveSite]:
    pytest.importorskip("mpi4py")
    directory = tmp_path / "site"
    site = init(directory, name="test", scheduler="auto", tls=False)
    path = directory / "site.toml"
    file = SiteFile(path.read_text(encoding="utf-8"))
    file.set("redis", {"host": "127.0.0.1", "bind": "127.0.0.1"})
    file.remove_queue("short")
    for table, values in QUICK.items():
        file.set(table, values)
    path.write_text(file.text, encoding="utf-8")
    site = replace(site, settings=settings.load(path))
    up(site)
    live = LiveSite(site, connect_store(site))
    try:
        yield live
    finally:
        live.store.close()
        down(live.site, cancel=True)


@pytest.mark.timeout(240)
def test_tasks_over_nodes_of_a_pbs_job(live: LiveSite, pbs: PbsHarness, tmp_path: Path) -> None:
    """The pilot comes to its nodes by ``pbs_tmrsh``, from a login shell's PATH in the home."""
    assert live.site.settings.scheduler.kind == "pbs"
    pids = tmp_path / "pids"
    (wide,) = live.submit("--num-nodes", "3", "--", sys.executable, MPI_SUM)
    deaf = (sys.executable, nasty.__file__, "session", str(pids))
    (doomed,) = live.submit("--num-nodes", "2", "--launcher", "mpich", "--", *deaf)
    small = live.submit("--array", "1-8", "--", "/bin/sh", "-c", "exit 0")
    row = live.wait_for(wide, "JOB_FINISHED", "FAILED", timeout=150)
    assert row.state == "JOB_FINISHED", row.reason
    printed = json.loads(Path(row.work_dir or "", "stdout").read_text())
    assert (printed["size"], printed["sum"]) == (3, 6)
    for id in small:
        live.wait_for(id, "JOB_FINISHED", timeout=120)
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 4, 120, "both ranks run")
    living = [procs.identity(int(pid)) for pid in pids.read_text().split()]
    assert all(living)
    live.balsam("kill", doomed)
    live.wait_for(doomed, "USER_KILLED")
    assert not [one for one in living if one is not None and procs.alive(one)]
    with live.store.read() as conn:
        ran = [one for one in allocations.list_allocations(conn) if one.native_id]
    assert {one.native_id for one in ran} <= {
        f"{job['number']}.{fake_pbs.SERVER}" for job in pbs.fake.jobs()
    }
