"""The original Balsam's service (argonne-lcf/balsam 0.1 to 0.3, ``balsam/service/jobpacker.py``).

``create_qlaunch`` takes every ready task that is not linked to a queued launch and asks for one
launch of a fixed size (``dummy_pack``: 256 nodes for 360 minutes), to which it links them all. So a
new one is asked for when tasks have become ready since the last, or when none is left. The launcher
starts the widest runnable task that fits first, and ends when nothing ran for ten seconds.

Where a queue is smaller, nodes and time are cut to its limits.
"""

from __future__ import annotations

from balsam_celery.packing import Plan, Request
from balsam_celery.placement import Pass
from balsam_celery.simulate.baselines.greedy import start_in_order
from balsam_celery.simulate.state import State

_NODES = 256
_SECONDS = 360 * 60


class Original:
    """Always the same request; widest first."""

    name = "original"
    idle_timeout: float | None = 10.0
    interval: float | None = None

    def place(self, state: State, now: float) -> Pass:
        """Start the widest task that fits, again and again."""
        return start_in_order(state, lambda kind: -kind.resources.num_nodes, now)

    def pack(self, state: State, now: float) -> Plan:
        """Ask for one more when there are tasks of which the last one did not know."""
        queue = state.machine.queues[0]
        waiting = [task for one in state.backlog.kinds.values() for task in one.fresh]
        if not state.backlog.count:
            return Plan()
        allocations = list(state.allocations.values())
        newest = max((one.submitted for one in allocations), default=-1.0)
        is_new = any(state.backlog.ready[task] > newest for task in waiting)
        queued = sum(1 for one in allocations if one.state == "queued")
        if queued >= queue.max_queued or (allocations and not is_new):
            return Plan()
        nodes, seconds = min(_NODES, queue.max_nodes), min(_SECONDS, queue.max_wall_time)
        return Plan((Request(queue.name, nodes, seconds, "always the same"),))
