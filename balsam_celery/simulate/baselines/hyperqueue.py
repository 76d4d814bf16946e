"""A HyperQueue-like automatic allocator (HyperQueue's guide, "Automatic allocation").

Allocations have a fixed number of workers (one a node) and a fixed time limit, both chosen by the
user; while waiting tasks could use more workers than are queued, up to ``backlog`` allocations are
kept in the queue. Workers end after five idle minutes. Tasks are started in order of submission
where their resources are free, tasks of several nodes first, if their time request (here: their
limit) is not longer than the worker has left.

Chosen as a user would: 32 workers (or the widest task), the time limit four times the longest
task's (at least an hour, and within the queue's), a backlog of 4.
"""

from __future__ import annotations

from balsam_celery.packing import Plan, Request
from balsam_celery.placement import Pass
from balsam_celery.simulate.baselines.greedy import start_in_order, waiting_nodes
from balsam_celery.simulate.state import State

_WORKERS, _BACKLOG = 32, 4
_LEAST_SECONDS, _TIMES = 3600, 4


class HyperQueue:
    """Fixed allocations, a fixed number of them in the queue."""

    name = "hyperqueue"
    idle_timeout: float | None = 300.0
    interval: float | None = None

    def place(self, state: State, now: float) -> Pass:
        """Start what fits in order of submission, tasks of several nodes first."""
        first = {id(kind): number for number, kind in enumerate(state.workload.kinds)}
        return start_in_order(
            state, lambda kind: (not kind.resources.is_gang, first[id(kind)]), now
        )

    def pack(self, state: State, now: float) -> Plan:
        """Keep ``backlog`` allocations queued while there is use for them."""
        queue = state.machine.queues[0]
        every = state.workload.kinds
        nodes = max(_WORKERS, *(kind.resources.num_nodes for kind in every), queue.min_nodes)
        longest = max(kind.wall_time for kind in every)
        seconds = min(max(_LEAST_SECONDS, _TIMES * longest), queue.max_wall_time)
        queued = [one for one in state.allocations.values() if one.state in ("queued", "starting")]
        missing = waiting_nodes(state) - sum(one.nodes for one in queued)
        requests: list[Request] = []
        room = min(_BACKLOG, queue.max_queued) - sum(1 for one in queued if one.state == "queued")
        while missing > 0 and len(requests) < room:
            requests.append(
                Request(queue.name, min(nodes, queue.max_nodes), seconds, f"{_BACKLOG} in queue")
            )
            missing -= nodes
        return Plan(tuple(requests))
