"""No planner can be done earlier than this."""

from __future__ import annotations

from balsam_celery.simulate.machine import Machine
from balsam_celery.simulate.workload import Workload, shares_of


def lower_bound(workload: Workload, machine: Machine, nodes: int | None = None) -> float:
    """The earliest end of the last task, seconds from 0, whoever plans.

    The larger of two bounds (Graham, SIAM J. Appl. Math. 17(2), 1969): the longest path from a
    submission through parents and children; and, for every time of submission, that time plus the
    work submitted since, evenly over ``nodes`` nodes. Work is counted for each thing that nodes
    have by itself, for tasks that want different things may share a node; the scarcest decides.
    Queue waits are left out.

    Args:
        workload: all of it; what would never run because a parent fails is left out.
        machine: for what a node has.
        nodes: over which the work is spread; ``None``: the whole machine.
    """
    shares = [shares_of(kind.resources, machine.node) for kind in workload.kinds]
    ready = list(workload.submitted)
    dead = bytearray(len(workload))
    path = 0.0
    work: list[tuple[float, int, float]] = []
    # children have higher numbers than their parents
    for task in range(len(workload)):
        children = workload.children.get(task, ())
        if dead[task]:
            for child in children:
                dead[child] = 1
            continue
        runs = workload.runs(task)
        end = ready[task] + runs
        path = max(path, end)
        work.append((ready[task], workload.kind[task], runs))
        for child in children:
            ready[child] = max(ready[child], end)
            if not workload.succeeds(task):
                dead[child] = 1
    work.sort(reverse=True)
    spread = 0.0
    # several things of which every kind takes as much bound alike
    for thing in set(zip(*shares, strict=True)):
        area = 0.0
        for time, kind, runs in work:
            area += thing[kind] * runs
            spread = max(spread, time + area / (nodes or machine.nodes))
    return max(path, spread)
