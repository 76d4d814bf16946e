"""Workers of pilots that do not stay alive: nothing more for them, and what waits comes back."""

from __future__ import annotations

from balsam_celery import keys
from balsam_celery.service import ended, givingback, pilots
from balsam_celery.service.cases import Batch
from balsam_celery.service.specs import worker_of
from balsam_celery.store import scans
from balsam_celery.wire import Ended, WorkerLost


def worker_lost(batch: Batch, one: WorkerLost) -> None:
    """Place nothing more on a worker that was given up, and take back what it had.

    Once that is confirmed, by the pilot or by the scheduler, every outcome that the worker had
    kept is recorded, and no process of the rest lives. Until then its attempts stay where they are:
    a silent node is not a dead node (R4).
    """
    reason = f"worker {one.node} was lost: {one.reason}"
    if one.node == keys.GANG:
        # the nodes are well, but nothing can span them: end, once nothing runs
        pilots.stops(batch.conn, one.pilot, reason)
    else:
        pilots.loses_node(batch.conn, one.pilot, one.node, one.reason)
    if not one.confirmed:
        return
    givingback.left(batch.conn, one.pilot, one.node, one.time)
    left = [
        row
        for row in scans.on_pilots(batch.conn, one.pilot)
        if row.shares and worker_of(row.num_nodes, row.shares[0]["node"]) == one.node
    ]
    batch.load([row.id for row in left])
    for row in left:
        ended.program_ended(batch, Ended(row.id, row.attempt, "lost", reason, one.time))
