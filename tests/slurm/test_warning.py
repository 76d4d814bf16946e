"""Slurm's warning signal, as ``--signal=B:USR1@120`` asks for it: the pilot drains.

Its site has Redis by TLS: nodes, gang worker and pilot use it here.
"""

from __future__ import annotations

from pathlib import Path

from balsam_celery.store import queries
from tests.acceptance.live import LiveSite
from tests.slurm.live import allocation_of, pilot_of, worker_of
from tests.slurm_cluster import SlurmCluster
from tests.waiting import wait_until

#: Of the site: its pilots over nodes do all that they do by TLS.
TLS = True
#: Each rank of the first attempt writes a checkpoint when it is told, and ends.
CHECKPOINTS = """
if [ "$BALSAM_ATTEMPT" = 2 ]; then exit 0; fi
trap 'echo checkpoint > "told.$$"; exit 0' USR1
echo ready > "ready.$$"
sleep 600 &
wait
"""


def test_ranks_on_all_nodes_are_told(slurm_site: LiveSite, slurm_cluster: SlurmCluster) -> None:
    assert slurm_site.site.settings.redis.tls
    (id,) = slurm_site.submit(
        "--num-nodes", "2", "--restartable", "--checkpoint-grace", "60s", "--end-signal", "USR1",
        "--", "/bin/sh", "-c", CHECKPOINTS,
    )  # fmt: skip
    row = slurm_site.wait_for(id, "RUNNING", timeout=120)
    directory = Path(row.work_dir or "")
    wait_until(lambda: len([*directory.glob("ready.*")]) == 2, 60, "both ranks are ready")
    job = allocation_of(slurm_site, id).native_id
    assert job is not None
    slurm_cluster.run("scancel", "--batch", "--signal=USR1", job)
    row = slurm_site.wait_for(id, "JOB_FINISHED", timeout=150)
    assert len([*directory.glob("told.*")]) == 2
    with slurm_site.store.read() as conn:
        first, second = queries.attempts(conn, id)
    assert (first.outcome, second.work_dir, row.failures) == ("drained", first.work_dir, 0)
    assert first.pilot != second.pilot


#: Goes on when it is told, until it may end.
GOES_ON = """
trap 'echo told > "told.$$"' USR1
echo ready > "ready.$$"
until [ -e may ]; do sleep 0.2; done
"""


def test_one_that_reaches_every_process_ends_nothing_of_the_pilot(
    slurm_site: LiveSite, slurm_cluster: SlurmCluster
) -> None:
    """Without ``--batch`` Slurm signals all of the job's steps: ranks, and the pilot's on nodes."""
    command = ("--num-nodes", "2", "--", "/bin/sh", "-c", GOES_ON)
    (id,) = slurm_site.submit(*command)
    row = slurm_site.wait_for(id, "RUNNING", timeout=120)
    directory = Path(row.work_dir or "")
    wait_until(lambda: len([*directory.glob("ready.*")]) == 2, 60, "both ranks are ready")
    pilot = pilot_of(slurm_site, id)
    place = slurm_site.site.run_dir / "allocations" / pilot.allocation / pilot.id
    names = [node["name"] for node in pilot.nodes]
    workers = [worker_of(place, name) for name in names]
    job = allocation_of(slurm_site, id).native_id
    assert job is not None
    slurm_cluster.run("scancel", "--signal=USR1", job)
    wait_until(lambda: len([*directory.glob("told.*")]) == 2, 60, "both ranks are told")
    tasks = [slurm_site.submit("--", "/bin/true")[0] for _ in names]
    for task in tasks:
        assert slurm_site.wait_for(task, "JOB_FINISHED").failures == 0
    assert [worker_of(place, name) for name in names] == workers
    (directory / "may").touch()
    slurm_site.wait_for(id, "JOB_FINISHED")
    with slurm_site.store.read() as conn:
        assert [one.pilot for one in queries.attempts(conn, id)] == [pilot.id]
