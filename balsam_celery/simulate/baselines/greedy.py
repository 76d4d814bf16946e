"""What the baselines' launchers have in common: start what fits, in a fixed order, promise nothing.

Their slots are the same as ours (``placement.place`` for one shape at a time, its reservations
dropped), so that only the order and the allocations differ. All of them compare a task's limit with
the time that the allocation has left, and none starts one on an estimate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from heapq import merge
from itertools import islice
from typing import Any

from balsam_celery.placement import Candidate, Pass, Placement, place
from balsam_celery.resources import Resources
from balsam_celery.simulate.backlog import Key
from balsam_celery.simulate.planning import free
from balsam_celery.simulate.state import State
from balsam_celery.simulate.workload import Kind, share_of

Shape = tuple[Resources, int]


def start_in_order(state: State, order: Callable[[Kind], Any], now: float) -> Pass:
    """Start what fits, shapes by ``order``, the oldest tasks of a shape first."""
    shapes: dict[Shape, list[Key]] = defaultdict(list)
    rank: dict[Shape, Any] = {}
    for key in state.backlog.kinds:
        kind = state.workload.kinds[key[0]]
        shape = (kind.resources, kind.wall_time)
        shapes[shape].append(key)
        rank[shape] = order(kind)
    ledger = state.ledger
    placements: list[Placement] = []
    for shape in sorted(shapes, key=lambda one: rank[one]):
        needed = shape[1] + state.machine.policy.kill_grace
        cores, nodes = free(ledger, now + needed)
        if not cores:
            continue
        decided = place(
            ledger, _candidates(state, shape, shapes[shape], cores, nodes), now, tell_all=False
        )
        ledger = decided.ledger
        placements += decided.placements
    return Pass(tuple(placements), (), ledger)


def _candidates(
    state: State, shape: Shape, keys: Iterable[Key], cores: int, nodes: int
) -> Iterator[Candidate]:
    wanted, wall_time = shape
    total = len(state.machine.node.cores)
    most = nodes // wanted.num_nodes if wanted.is_gang else cores // wanted.cores_on(total)
    ready = state.backlog.ready
    oldest = merge(
        *(state.backlog.kinds[key].first(most) for key in keys),
        key=lambda task: (ready[task], task),
    )
    for task in islice(oldest, most):
        yield Candidate(
            f"{task:07d}",
            state.attempts[task] + 1,
            wanted,
            wall_time,
            state.machine.policy.kill_grace,
            0,
            ready[task],
        )


def waiting_nodes(state: State) -> float:
    """Nodes' worth of all waiting tasks at once."""
    return sum(
        len(waiting) * share_of(state.workload.kinds[kind].resources, state.machine.node)
        for (kind, _), waiting in state.backlog.kinds.items()
    )


def running_nodes(state: State) -> float:
    """Nodes' worth of what runs."""
    cores = len(state.machine.node.cores)
    return sum(
        allocation.nodes - state.ledger.pilots[id].free_cores / cores
        for id, allocation in state.allocations.items()
        if allocation.state == "live"
    )
