"""Which idle nodes of running allocations are given back.  Pure: used by ``packing`` alone.

An allocation is charged for a node until it is given back, so once nothing that waits could use a
node, it costs for nothing until the last task of its allocation has ended.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict

from balsam_celery.limits import Policy, per_node
from balsam_celery.plans import Existing
from balsam_celery.pouring import Rest
from balsam_celery.resources import NodeCapacity


def released(allocation: Existing, wanted: Rest, policy: Policy) -> tuple[str, ...]:
    """Names of the nodes of ``allocation`` to give back; ``wanted``: what waits.

    Never its head, where the batch script and the pilot run; none while something waits that could
    start there, be it once other nodes are free too; none when it ends soon all the same.
    """
    after = policy.release_after
    if allocation.state != "running" or after is None or after >= allocation.usable:
        return ()
    idle = tuple(
        lane.name
        for lane in allocation.lanes
        if lane.idle_for is not None and lane.idle_for >= after and lane.name != allocation.head
    )
    return idle if idle and not _wanted(allocation, wanted, policy) else ()


def _wanted(allocation: Existing, wanted: Rest, policy: Policy) -> bool:
    """Something may start there in time, when what runs has ended as is likely."""
    waits: dict[NodeCapacity | None, list[float]] = defaultdict(list)
    for lane in allocation.lanes:
        waits[lane.node].append(lane.wait)
    kinds = [(node or allocation.node, sorted(times)) for node, times in waits.items()]
    for demand, _ in wanted:
        last = allocation.usable - demand.needs(policy.kill_grace)
        in_time = sum(
            bisect_right(times, last) for node, times in kinds if per_node(demand.resources, node)
        )
        if in_time >= demand.resources.num_nodes:
            return True
    return False
