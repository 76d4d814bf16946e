"""Balsam 0.7's elastic queue (argonne-lcf/balsam, ``balsam/site/service/elastic_queue.py``).

Once a minute: unless 20 allocations wait or run, and while the runnable tasks need more nodes than
those that are allocated and not in use, ask for one allocation of what is missing, 20 to 127 nodes.
By default (``use_backfill``) it only takes what is idle: the largest window of at least 35 minutes,
less 5 minutes, and what waits for longer than 10 minutes is deleted. Otherwise 360 minutes, less 5;
the guide then tells to raise the longest wait, which is left out here.

The launcher acquires tasks by fewest nodes, most to a node, longest limit (``acquire`` in
``balsam/server/models/crud/sessions.py``) and ends after ten idle seconds (``idle_ttl_sec``).
Limits are cut to the queue's; the widest is no less than the widest task, or that would never run.
"""

from __future__ import annotations

import math

from balsam_celery.packing import Plan, Request
from balsam_celery.placement import Pass
from balsam_celery.simulate.baselines.greedy import running_nodes, start_in_order, waiting_nodes
from balsam_celery.simulate.state import State
from balsam_celery.simulate.workload import Kind

_MIN_NODES, _MAX_NODES = 20, 127
_MIN_SECONDS, _MAX_SECONDS, _PAD = 35 * 60, 360 * 60, 5 * 60
_MOST, _LONGEST_WAIT = 20, 10 * 60


def order(kind: Kind) -> tuple[int, int, int]:
    """Fewest nodes, most to a node, longest limit first."""
    wanted = kind.resources
    return wanted.num_nodes, -(wanted.node_packing_count or 1), -kind.wall_time


class Balsam07:
    """The elastic queue; ``backfill``: takes only what is idle."""

    idle_timeout: float | None = 10.0
    interval: float | None = 60.0

    def __init__(self, backfill: bool = True) -> None:
        self._backfill = backfill
        self.name = "balsam-0.7" if backfill else "balsam-0.7-queue"

    def place(self, state: State, now: float) -> Pass:
        """Start what fits, fewest nodes first."""
        return start_in_order(state, order, now)

    def pack(self, state: State, now: float) -> Plan:
        """One cycle of the service."""
        request = self._next(state)
        stale = [
            one.id
            for one in state.allocations.values()
            if self._backfill and one.state == "queued" and now - one.submitted > _LONGEST_WAIT
        ]
        return Plan((request,) if request else (), tuple(stale))

    def _next(self, state: State) -> Request | None:
        queue, allocations = state.machine.queues[0], state.allocations.values()
        queued = sum(1 for one in allocations if one.state == "queued")
        if len(allocations) >= _MOST or queued >= queue.max_queued or not state.backlog.count:
            return None
        kinds = [state.workload.kinds[number] for number, _ in state.backlog.kinds]
        window = self._window(state, min(kind.resources.num_nodes for kind in kinds))
        if window is None:
            return None
        idle = sum(one.nodes for one in allocations) - running_nodes(state)
        missing = waiting_nodes(state) - idle
        if missing <= 0:
            return None
        most = max(_MAX_NODES, *(kind.resources.num_nodes for kind in kinds))
        nodes = min(max(_MIN_NODES, math.ceil(missing)), window[0], most, queue.max_nodes)
        seconds = min(window[1], queue.max_wall_time) - _PAD
        if nodes < queue.min_nodes or seconds < queue.min_wall_time:
            return None
        return Request(queue.name, nodes, int(seconds), f"{missing:.0f} nodes are missing")

    def _window(self, state: State, least: int) -> tuple[int, float] | None:
        if not self._backfill:
            return state.machine.queues[0].max_nodes, float(_MAX_SECONDS)
        most = state.machine.queues[0].max_wall_time
        windows = [(idle.nodes, min(idle.seconds, most)) for idle in state.idle]
        fitting = [w for w in windows if w[1] >= _MIN_SECONDS and w[0] >= least]
        return max(fitting, key=lambda window: window[0] * window[1], default=None)
