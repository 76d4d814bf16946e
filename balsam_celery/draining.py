"""Whether a running allocation is to be drained.  Pure: used by ``packing`` alone."""

from __future__ import annotations

from collections.abc import Iterable

from balsam_celery.durations import format_duration
from balsam_celery.limits import Policy
from balsam_celery.plans import Existing, Note
from balsam_celery.pouring import Block, Rest

#: One is too small when the one that could take its place is so many times larger.
TOO_SMALL = 4.0


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
    if any(block.row(demand) for demand, _ in wanted):
        return Note(allocation.id, "time-over", "idle, and too near its end for what waits")
    return None


def in_the_way(existing: Iterable[Existing], queue: str, nodes: int, usable: float) -> Note | None:
    """The smallest running allocation of ``queue``, if it keeps a far larger one from starting.

    ``None`` also where one ends already.

    Args:
        existing: those of all queues.
        queue: whose ``max_running`` are reached.
        nodes, usable: of an allocation for which nodes are idle now; seconds for tasks.
    """
    running = [one for one in existing if one.queue == queue and one.state == "running"]
    if not running or any(one.usable <= 0 for one in running):
        return None
    small = min(running, key=lambda one: one.nodes * one.usable)
    if nodes * usable < TOO_SMALL * small.nodes * small.usable:
        return None
    return Note(
        small.id, "in-the-way", f"in its place one of {nodes} nodes can start, which are idle now"
    )
