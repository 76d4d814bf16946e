"""Small machines and workloads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise

from balsam_celery.limits import Policy, Queue
from balsam_celery.resources import NodeCapacity, Resources
from balsam_celery.simulate.engine import Simulation
from balsam_celery.simulate.machine import Background, Machine
from balsam_celery.simulate.workload import Kind, Workload

NODE = NodeCapacity("node", (0, 1, 2, 3), (0, 1))


def machine(
    nodes: int = 8,
    *,
    max_nodes: int = 4,
    max_queued: int = 3,
    max_running: int = 2,
    load: float = 0.0,
    max_wall_time: int = 7200,
) -> Machine:
    queue = Queue("q", 1, max_nodes, 300, max_wall_time, max_queued, max_running, NODE)
    others = Background(load, nodes, median_runtime=600.0, max_runtime=7200.0) if load else None
    return Machine(nodes, NODE, (queue,), Policy(6, 60, 30, 5), others, tick=1.0)


def workload(kind: Kind, runtimes: Iterable[float], submitted: float = 0.0) -> Workload:
    work = Workload((kind,))
    for runtime in runtimes:
        work.add(0, runtime, submitted)
    return work


WHOLE = Kind("whole", Resources(node_packing_count=1), 600)


def check(simulation: Simulation) -> None:
    """What must be true of any run that was traced, worked out from the trace alone."""
    work, record = simulation.state.workload, simulation.record
    by_id = {one.id: one for one in record.allocations}
    done: dict[int, list[tuple[str, float]]] = defaultdict(list)
    spans: dict[tuple[str, str, object], list[tuple[float, float]]] = defaultdict(list)
    for attempt in record.attempts:
        kind = work.kinds[work.kind[attempt.task]]
        allocation = by_id[attempt.allocation]
        assert allocation.started is not None
        assert allocation.ended is not None
        assert allocation.started <= attempt.start <= attempt.end <= allocation.ended
        assert len(attempt.shares) == kind.resources.num_nodes
        if attempt.outcome == "cut":
            assert kind.restartable
        else:
            done[attempt.task].append((attempt.outcome, attempt.start))
            assert attempt.end - attempt.start >= work.runs(attempt.task) - 1e-6
        for share in attempt.shares:
            assert int(share.node.rpartition(".")[2]) < allocation.nodes
            for core in share.cores:
                spans[attempt.allocation, share.node, core].append((attempt.start, attempt.end))
    for taken in spans.values():
        taken.sort()
        for (_, end), (start, _) in pairwise(taken):
            assert end <= start, "a core is given twice"
    for task in range(len(work)):
        parents = [parent for parent, below in work.children.items() if task in below]
        failed = [one for one in parents if not done[one] or done[one][0][0] != "done"]
        if failed:
            assert not done[task], "it starts though a parent failed"
            continue
        [(outcome, start)] = done[task]
        assert outcome == ("done" if work.succeeds(task) else "timeout")
        assert start >= work.submitted[task]
        assert all(start >= record.finished[parent] for parent in parents)
    assert record.used <= record.charged
