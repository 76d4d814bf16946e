"""A site on a PBS of eight nodes: its commands and node starter are stand-ins, all else is real."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from balsam_celery import procs, settings
from balsam_celery.site import connect_store
from balsam_celery.sitefile import SiteFile
from balsam_celery.siteinit import init
from balsam_celery.store import allocations
from balsam_celery.supervisor import down, up
from tests import nasty
from tests.acceptance.live import LiveSite, one_on_each_node, ran_twice
from tests.schedulers import fake_pbs
from tests.schedulers.harness_pbs import PbsHarness
from tests.slurm.live import MPI_SUM, QUICK
from tests.waiting import wait_until

#: Says whether its earlier run lives. The first stays, and does not mind a TERM.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
runs = Path(sys.argv[1])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
number = len(list(runs.iterdir())) + 1
if number == 1:
    (runs / "new").write_text(str(os.getpid()))
    (runs / "new").rename(runs / "1")
    time.sleep(300)
earlier = Path("/proc", (runs / "1").read_text(), "cmdline")
(runs / str(number)).write_text(str(earlier.exists() and str(runs) in earlier.read_text()))
"""


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
def live(request: pytest.FixtureRequest, pbs: PbsHarness, tmp_path: Path) -> Iterator[LiveSite]:
    """A site as ``init`` makes it, with :data:`QUICK` or the parameter in its ``site.toml``."""
    pytest.importorskip("mpi4py")
    directory = tmp_path / "site"
    site = init(directory, name="test", scheduler="auto", tls=False)
    path = directory / "site.toml"
    file = SiteFile(path.read_text(encoding="utf-8"))
    file.set("redis", {"host": "127.0.0.1", "bind": "127.0.0.1"})
    file.remove_queue("short")
    for table, values in getattr(request, "param", QUICK).items():
        if table == "queue":
            file.set_queue("workq", values)
        else:
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
    assert ran
    assert {one.native_id for one in ran} == {
        f"{job['number']}.{fake_pbs.SERVER}" for job in pbs.fake.jobs()
    }


def _jobs_processes(number: int, module: str) -> list[procs.Identity]:
    """Processes of a job that were started with ``-m module``."""
    found = []
    for pid in procs.marked([f"PBS_JOBID={number}.{fake_pbs.SERVER}"]):
        process = procs.identity(pid)
        try:
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended since
        if process is not None and module.encode() in argv:
            found.append(process)
    return found


def _kill_pilot(pbs: PbsHarness, number: int) -> None:
    """As the kernel does when memory is short: the main process, not its worker."""
    (head,) = [one for one in _jobs_processes(number, "balsam_celery.pilot") if not _is_worker(one)]
    assert procs.send(head, signal.SIGKILL)


def _is_worker(process: procs.Identity) -> bool:
    found = procs.entry(process.pid)
    return found is not None and found.session == process.pid


def _delete_by_force(pbs: PbsHarness, number: int) -> None:
    command = [shutil.which("qdel") or "", "-W", "force", f"{number}.{fake_pbs.SERVER}"]
    subprocess.run(command, check=True, capture_output=True)


def _lose_mom(pbs: PbsHarness, number: int) -> None:
    """The first node's MoM dies, and the server gives the job up (-20); the pilot lives."""
    for pid, found in procs.snapshot().items():
        try:
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended since
        if argv[-3:-1] == [b"mom", str(number).encode()]:
            procs.send(found.identity, signal.SIGKILL)
    with pbs.fake.locked():
        job = pbs.fake.load(str(number))
        assert job is not None
        pbs.fake.save({**job, "state": "F", "ended": time.time(), "code": -20})


def test_no_program_outlives_what_pbs_calls_its_end(
    live: LiveSite, pbs: PbsHarness, tmp_path: Path
) -> None:
    """Each time, the second run begins when the first is over, and not before."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    for end in (_kill_pilot, _delete_by_force, _lose_mom):
        runs = tmp_path / end.__name__
        runs.mkdir()
        (id,) = live.submit("--", sys.executable, str(program), str(runs))
        wait_until(lambda: (runs / "1").exists(), 100, "the first run has begun")  # noqa: B023
        live.wait_for(id, "RUNNING", timeout=30)
        with live.store.read() as conn:
            held = allocations.get_pilot(conn, live.task(id).pilot or "").allocation
            native_id = allocations.get_allocation(conn, held).native_id or ""
        end(pbs, int(native_id.partition(".")[0]))
        row = live.wait_for(id, "JOB_FINISHED", "FAILED", timeout=60)
        assert row.state == "JOB_FINISHED", row.reason
        assert (runs / "2").read_text() == "False", "the first one lived"
        assert not (runs / "3").exists()


#: One pilot, which lasts longer than the test.
FOUR_NODES: dict[str, dict[str, Any]] = {
    **QUICK,
    "site": {**QUICK["site"], "default_wall_time": "15m"},
    "queue": {"min_nodes": 4, "max_nodes": 4, "min_wall_time": "50m"},
    "packing": {**QUICK["packing"], "max_allocations": 1, "release_idle_nodes": False},
}
GIVING_BACK: dict[str, dict[str, Any]] = {
    **FOUR_NODES,
    "packing": {
        **FOUR_NODES["packing"],
        "release_idle_nodes": True,
        "release_after": "5s",
    },
}


@pytest.mark.long  # as long as a node may be silent, and as it has to end what it runs
@pytest.mark.parametrize("live", [FOUR_NODES], indirect=True)
def test_the_loss_of_a_node_harms_that_node_only(live: LiveSite, pbs: PbsHarness) -> None:
    """PBS goes on to show the job as running, and the node as one of its nodes."""
    held = one_on_each_node(live, 4)
    (job,) = pbs.fake.jobs()
    head, victim, *spared = job["nodes"]
    before = procs.marked([f"BALSAM_TASK_ID={held[victim]}"])
    assert before
    pbs.fake.lose(victim)
    others = [held[head], *(held[node] for node in spared)]
    # room for it, and no other allocation
    live.balsam("kill", others.pop())
    ran_twice(live, held[victim])
    assert not {pid for pid in before if procs.identity(pid)}
    assert {live.task(id).state for id in others} == {"RUNNING"}
    assert {live.task(id).attempt for id in others} == {1}
    (wide,) = live.submit("--num-nodes", "2", "--", sys.executable, MPI_SUM)
    live.balsam("kill", others.pop())
    live.wait_for(wide, "JOB_FINISHED", timeout=150)
    assert live.task(others[0]).state == "RUNNING"
    (still,) = pbs.fake.jobs()
    assert (still["state"], still["nodes"]) == ("R", job["nodes"])


@pytest.mark.parametrize("live", [GIVING_BACK], indirect=True)
def test_idle_nodes_go_back_while_a_task_runs_on(
    live: LiveSite, pbs: PbsHarness, tmp_path: Path
) -> None:
    go_on = tmp_path / "go-on"
    script = f'while [ ! -e "{go_on}" ]; do sleep 0.2; done'
    (long,) = live.submit("--num-nodes", "2", "--", "/bin/sh", "-c", script)
    short = live.submit("--array", "1-4", "--node-packing-count", "1", "--", "/bin/true")
    for id in short:
        live.wait_for(id, "JOB_FINISHED", timeout=120)
    live.wait_for(long, "RUNNING")
    (job,) = pbs.fake.jobs()
    assert len(job["nodes"]) == 4
    needed = {share["node"] for share in live.task(long).shares or ()} | {job["nodes"][0]}

    def has() -> set[str]:
        (now,) = pbs.fake.jobs()
        assert now["state"] == "R"
        return set(now["nodes"])

    wait_until(lambda: has() == needed, 120, "PBS has the others back")
    assert live.task(long).state == "RUNNING"
    go_on.touch()
    live.wait_for(long, "JOB_FINISHED")
    # the job goes on with the nodes that it has kept
    (later,) = live.submit("--", "/bin/true")
    live.wait_for(later, "JOB_FINISHED")
    with live.store.read() as conn:
        (only,) = allocations.list_allocations(conn)
    assert only.nodes_back == 4 - len(needed)
    assert has() == needed
