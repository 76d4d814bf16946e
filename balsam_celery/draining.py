"""Whether a running allocation is to be drained.  Pure: used by ``packing`` alone."""

from __future__ import annotations

from balsam_celery.durations import format_duration
from balsam_celery.limits import Policy, at_once
from balsam_celery.plans import Existing, Note
from balsam_celery.pouring import Block, Rest


def drained(allocation: Existing, wanted: Rest, policy: Policy) -> Note | None:
    """Why an idle allocation is to be drained; ``None``: it is not.  ``wanted``: what waits."""
    idle = allocation.idle_for
    if allocation.state != "running" or allocation.usable <= 0 or idle is None:
        return None
    block = Block.of(allocation, policy)
    if any(block.fits(demand) for demand, _ in wanted):
        return None
    if idle >= policy.idle_timeout:
        return Note(allocation.id, "idle", f"idle for {format_duration(round(idle))}")
    wide = [d for d, _ in wanted if at_once(d.resources, allocation.nodes, allocation.node)]
    if wide:
        return Note(allocation.id, "time-over", "idle, and too near its end for what waits")
    return None
