"""The request of one queue for the first of the tasks that are left.  Pure: used by ``packing``."""

from __future__ import annotations

from dataclasses import dataclass, replace

from balsam_celery.durations import format_duration
from balsam_celery.limits import Policy, Queue, at_once, per_node
from balsam_celery.plans import Demand, Request
from balsam_celery.pouring import Block, Rest
from balsam_celery.sizing import Caps, Work

#: Tasks whose expected times differ by no more than this factor share an allocation.
ALIKE = 4.0
#: An allocation is too large when half of its nodes would do, and so many times more of its charge
#: would be used then.
TOO_LARGE = 1.75
#: How often the size of a request is mended after it was seen what flows into it.
_TRIES = 4


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, the allocation that it is for with what flows into it, and what that leaves."""

    request: Request
    block: Block
    left: Rest


def ask(queue: Queue, rest: Rest, caps: Caps, policy: Policy) -> Asked | None:
    """The request of ``queue`` for the first of ``rest`` and others like it.

    ``None`` where no allocation within ``caps`` could run the first.
    """
    usable, grace = policy.usable(caps.wall_time), policy.kill_grace

    def fits(demand: Demand) -> bool:
        return demand.needs(grace) <= usable and bool(
            at_once(demand.resources, caps.nodes, queue.node)
        )

    # alone it needs the least; most that are refused are so here, without a look at the others
    alone = Work(rest[:1], queue, policy).request(caps) if rest and fits(rest[0][0]) else None
    if alone is None:
        return None
    first = rest[0][0].duration
    alike = [
        (demand, count)
        for demand, count in rest
        if caps.room < 2 or first / ALIKE <= demand.duration <= first * ALIKE
        if fits(demand)
    ]
    request = Work(alike, queue, policy).request(caps) or alone
    for _ in range(_TRIES):
        usable = policy.usable(request.wall_time)
        block = Block(request.nodes, usable, queue.node, policy)
        left = block.pour(rest)
        nodes = enough(queue, block, policy)
        if nodes == request.nodes:
            break
        request = replace(request, nodes=nodes)
    return Asked(request, block, left)


def told(request: Request, block: Block, waits_for: int) -> Request:
    """``request`` with what it is for: all that has flown into ``block`` by now.

    ``waits_for``: allocations of its queue of which one has to end before it; 0: none has to.
    """
    shapes = len({demand for demand, _ in block.share})
    reason = (
        f"{block.served} waiting tasks of {shapes} shape{'s' * (shapes != 1)} fill"
        f" {request.nodes} nodes for {format_duration(max(1, round(block.depth)))}"
    )
    if waits_for:
        reason += f"; max_running of the queue is {waits_for}, and as many run"
    return replace(request, reason=reason, tasks=block.served)


def enough(queue: Queue | None, block: Block, policy: Policy) -> int:
    """How many nodes would do for what flows into ``block``: as many as it has, unless those are
    far too many.  ``queue`` is ``None`` when it is not asked now."""
    if queue is None or not all(per_node(d.resources, queue.node) for d, _ in block.share):
        return block.nodes
    work = Work(block.share, queue, policy)
    nodes = work.width(Caps(max(queue.max_nodes, work.least), queue.max_wall_time))
    clearly = TOO_LARGE * work.efficiency(block.nodes) <= work.efficiency(nodes)
    return nodes if clearly and 2 * nodes <= block.nodes else block.nodes


def efficiency(queue: Queue, asked: Asked, policy: Policy) -> float:
    """Part of its charge that is likely to be used."""
    return Work(asked.block.share, queue, policy).efficiency(asked.request.nodes)
