"""A scheduler that knows the future: true runtimes, and how long each request would wait.

The best that can be done greedily with that knowledge, not an optimum. Limits and expected times
are replaced by the true runtimes (rounded up in steps of a fifth), and several ways to pack (whole
and quartered queues; with and without the longest tasks first) are each replayed to the end
on the same machine, other users included. The replay with the smallest product of mean turnaround
(from ready to ended) and node-hours charged is kept, so that it neither wins by one node for a
month nor by all nodes for nothing. Tasks that run into their limit keep it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from balsam_celery.simulate.engine import Simulation
from balsam_celery.simulate.machine import Machine
from balsam_celery.simulate.planning import Planning
from balsam_celery.simulate.workload import Kind, Workload

_STEP = math.log(1.2)


class Knowing(Planning):
    """Our planner; only its tasks tell it more."""

    name = "clairvoyant"


def clairvoyant(
    workload: Workload, machine: Machine, seed: int, *, trace: bool = False
) -> Simulation:
    """The best replay, run to its end."""
    best: tuple[float, Simulation] | None = None
    for known, variant in _variants(workload, machine):
        simulation = Simulation(known, variant, Knowing(), seed, trace=trace)
        record = simulation.run()
        cost = record.charged * _turnaround(simulation)
        if best is None or cost < best[0]:
            best = cost, simulation
    if best is None:
        raise AssertionError("there is always a variant")
    return best[1]


def _turnaround(simulation: Simulation) -> float:
    ready, finished = simulation.state.backlog.ready, simulation.record.finished
    return sum(end - begin for begin, end in zip(ready, finished, strict=True)) / len(ready)


def _variants(workload: Workload, machine: Machine) -> Iterator[tuple[Workload, Machine]]:
    for longest_first in (True, False):
        known = reveal(workload, longest_first)
        for part in (1, 4):
            queues = tuple(
                replace(
                    queue,
                    max_nodes=max(queue.max_nodes // part, queue.min_nodes, workload.widest()),
                )
                for queue in machine.queues
            )
            yield known, replace(machine, queues=queues)


def reveal(workload: Workload, longest_first: bool) -> Workload:
    """The same tasks with their true runtimes as limits; with priorities by runtime if asked."""
    kinds: dict[Kind, int] = {}
    known = Workload(
        (),
        runtime=workload.runtime,
        submitted=workload.submitted,
        parents=workload.parents,
        children=workload.children,
    )
    for task, number in enumerate(workload.kind):
        kind = workload.kinds[number]
        runtime = workload.runs(task)
        rank = math.ceil(math.log(max(runtime, 1.0)) / _STEP - 1e-9)
        limit = kind.wall_time
        if workload.succeeds(task):
            limit = min(limit, math.ceil(math.exp(rank * _STEP) - 1e-9))
        kind = replace(
            kind,
            wall_time=limit,
            expected_time=float(limit),
            restartable=False,
            # steps of a factor of two, so that the widest go first among those about as long
            priority=kind.priority * 100 + (rank // 4 if longest_first else 0),
        )
        known.kind.append(kinds.setdefault(kind, len(kinds)))
    known.kinds = tuple(kinds)
    return known
