"""Slurm's warning signal, as ``--signal=B:USR1@120`` asks for it: the pilot drains.

Its site has Redis by TLS: nodes, gang worker and pilot use it here.
"""

from __future__ import annotations

from pathlib import Path

from balsam_celery.store import queries
from tests.acceptance.live import LiveSite
from tests.slurm.live import allocation_of
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
