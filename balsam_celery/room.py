"""What packing may still ask for: places in queues, node time, idle nodes.  Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from balsam_celery.limits import Policy, Queue
from balsam_celery.plans import Existing, Request, Window


class Room:
    """What limits and budget leave.

    Attributes:
        node_seconds: what may still be charged.
        nodes: of all allocations, those asked for too.
    """

    def __init__(
        self, queues: Sequence[Queue], existing: Sequence[Existing], policy: Policy
    ) -> None:
        self._total = policy.max_allocations - len(existing)
        self._most = policy.max_allocations
        self._queued = {queue.name: queue.max_queued for queue in queues}
        self._running = {queue.name: queue.max_running for queue in queues}
        self._starting: Counter[str] = Counter()
        self.node_seconds = math.inf if policy.budget is None else policy.budget
        self.nodes = sum(allocation.nodes for allocation in existing)
        for allocation in existing:
            counted = self._queued if allocation.state == "queued" else self._running
            if allocation.queue in counted:
                counted[allocation.queue] -= 1

    def left(self, queue: Queue) -> int:
        """How many more the queue may be asked for."""
        return min(self._total, self._queued[queue.name])

    def has(self, queue: Queue) -> bool:
        """The queue may be asked for one more."""
        return self.left(queue) > 0

    def replaces(self, queue: str) -> bool:
        """Once one of the queue is gone, another may be asked for."""
        return self._total >= 0 and self._queued[queue] >= 0

    def is_full(self, queue: str) -> bool:
        """``max_running`` of the queue run: one more would wait for their ends."""
        return self._running.get(queue, 1) <= 0

    def may_start(self, queue: str, *, cleared: bool = False) -> bool:
        """The queue has room for one more beside those that run, or start at once.

        ``cleared``: one that runs is to end for it.
        """
        return self._running.get(queue, 0) + cleared > self._starting[queue]

    def start(self, queue: str) -> None:
        """Count in one that starts at once."""
        self._starting[queue] += 1

    def take(self, request: Request) -> None:
        """Count in a request."""
        if request.code == "window":
            self.start(request.queue)
        self._total -= 1
        self._queued[request.queue] -= 1
        self.nodes += request.nodes
        self.node_seconds -= request.nodes * request.wall_time

    def reason(self, queues: Sequence[Queue]) -> tuple[str, str]:
        """Why none of ``queues`` may be asked for one more, in words and as a code."""
        if self._total <= 0:
            text = f"packing.max_allocations ({self._most}) are queued or running"
            return text, "max-allocations"
        names = ", ".join(f"{queue.name} ({queue.max_queued})" for queue in queues)
        return (
            f"max_queued allocations wait in each queue asked now that could hold it: {names}",
            "max-queued",
        )


class Windows:
    """Idle nodes, less those that are promised already.

    Attributes:
        fitting: ids of queued allocations that fit into them.
    """

    def __init__(
        self, windows: Sequence[Window], existing: Sequence[Existing], policy: Policy
    ) -> None:
        self._free = [w for w in windows if w.nodes > 0]
        self.fitting: set[str] = set()
        for allocation in existing:
            if allocation.state == "queued" and allocation.usable > 0:
                seconds = allocation.usable + policy.margins
                if self.take(allocation.queue, allocation.nodes, seconds):
                    self.fitting.add(allocation.id)

    def best(self, queue: str) -> Window | None:
        """The largest that is left in a queue."""
        mine = [w for w in self._free if w.queue == queue]
        return max(mine, key=lambda w: (w.nodes * w.seconds, w.nodes), default=None)

    def take(self, queue: str, nodes: int, seconds: float) -> bool:
        """Count out an allocation, if it starts in one of them; they may tell of the same nodes."""
        mine = [w for w in self._free if w.queue == queue]
        if not any(w.nodes >= nodes and w.seconds >= seconds for w in mine):
            return False
        others = [w for w in self._free if w.queue != queue]
        less = [replace(w, nodes=w.nodes - nodes) for w in mine if w.nodes > nodes]
        self._free = others + less
        return True
