"""Which allocations to ask for, and which to give up.  Pure (R9): plain values in and out.

The backlog is poured, widest and longest first, into what exists (running allocations, then
queued ones); for what is left over new allocations are asked for, each as wide as the rest can
fill at once and as long as its longest task and its queueing rows need, within the queue's
limits. A queued allocation into which nothing flows is given up.

An allocation is filled as a fraction: a task of a shape takes one of the ``lanes × rounds`` places
that the allocation would have for that shape alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from balsam_celery.limits import (
    Policy,
    Queue,
    at_once,
    fits_some_queue,
    per_node,
    policy_of,
    queues_of,
)
from balsam_celery.resources import NodeCapacity, Resources

__all__ = [
    "Demand",
    "Existing",
    "Flow",
    "Lane",
    "Plan",
    "Policy",
    "Queue",
    "Request",
    "fits_some_queue",
    "pack",
    "policy_of",
    "queues_of",
]

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Demand:
    """Waiting tasks of one shape.

    Attributes:
        resources: what each asks for.
        wall_time: limit of each in seconds.
        count: how many.
        priority: larger is served first.
        expected_time: seconds that each is expected to run, ``None``: its limit.
    """

    resources: Resources
    wall_time: int
    count: int
    priority: int = 0
    expected_time: float | None = None

    @property
    def duration(self) -> float:
        """Seconds that planning takes each for."""
        if self.expected_time is None:
            return float(self.wall_time)
        return max(1.0, min(self.expected_time, float(self.wall_time)))


@dataclass(frozen=True, slots=True)
class Lane:
    """One node of an allocation: cores free now, and seconds until all are (0: now)."""

    free_cores: int
    busy_for: float = 0.0


@dataclass(frozen=True, slots=True)
class Existing:
    """An allocation that waits or runs.

    Attributes:
        id: its id.
        queue: name of its queue; a queue that has left ``site.toml`` counts in the total only.
        state: ``"queued"`` (or not yet submitted) or ``"running"``.
        nodes: number of nodes.
        usable: seconds in which its workers can run tasks, from now (running) or from its start
            (queued); 0 when it drains.
        node: what each node has.
        lanes: its nodes while it runs; empty: all free.
    """

    id: str
    queue: str
    state: Literal["queued", "running"]
    nodes: int
    usable: float
    node: NodeCapacity
    lanes: tuple[Lane, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """An allocation to ask for; ``wall_time`` in seconds."""

    queue: str
    nodes: int
    wall_time: int
    reason: str


@dataclass(frozen=True, slots=True)
class Flow:
    """``count`` tasks of ``demand`` are planned for one allocation.

    Attributes:
        allocation: its id, ``None`` when it is yet to be asked for.
        request: else its place among the plan's requests.
    """

    demand: Demand
    count: int
    allocation: str | None = None
    request: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to ask for, which queued allocations (ids) to give up, and what waits for lack of room.

    Attributes:
        waiting: (demand, reason) of what neither exists nor may be asked for now.
        flows: which tasks are planned for which allocation, in the order of filling.
    """

    requests: tuple[Request, ...] = ()
    cancel: tuple[str, ...] = ()
    waiting: tuple[tuple[Demand, str], ...] = ()
    flows: tuple[Flow, ...] = field(default=(), compare=False)


@dataclass(slots=True)
class _Block:
    """An allocation while it is filled; ``left`` is the fraction of it that is free."""

    nodes: int
    usable: float
    node: NodeCapacity
    grace: int
    lanes: tuple[Lane, ...] = ()
    left: float = 1.0
    served: int = field(default=0)

    def pour(self, demand: Demand, count: int) -> int:
        """Take up to ``count`` tasks of ``demand``; returns how many."""
        places = self._places(demand)
        if not places:
            return 0
        taken = min(count, math.floor(places * self.left + _ROUNDING))
        self.left -= taken / places
        self.served += taken
        return taken

    def _places(self, demand: Demand) -> int:
        """Tasks of ``demand`` that it could run in all, were nothing else in it."""
        limit = demand.wall_time + self.grace
        row = at_once(demand.resources, self.nodes, self.node)
        if not row or limit > self.usable or not self._starts(demand.resources, limit):
            return 0
        return row * (1 + math.floor((self.usable - limit) / demand.duration + _ROUNDING))

    def _starts(self, wanted: Resources, limit: float) -> bool:
        """One such task can start and end in time, though all that runs takes its limit."""
        if not self.lanes:
            return True
        need = wanted.cores_on(len(self.node.cores))
        waits = sorted(0.0 if lane.free_cores >= need else lane.busy_for for lane in self.lanes)
        return len(waits) >= wanted.num_nodes and waits[wanted.num_nodes - 1] + limit <= self.usable


def pack(
    backlog: Iterable[Demand],
    queues: Sequence[Queue],
    allocations: Iterable[Existing],
    policy: Policy,
) -> Plan:
    """Decide which allocations to ask for and which queued ones to give up.

    Args:
        backlog: tasks that wait for slots, by shape.
        queues: the site's queues, the preferred first.
        allocations: those that wait or run, the oldest first.
        policy: the site's limits and margins.
    """
    rest = _by_shape(backlog)
    existing = list(allocations)
    cancel = []
    flows: list[Flow] = []
    # sorted() keeps the order of the queued ones, in which their shares were planned
    for allocation in sorted(existing, key=_filling_order):
        block = _Block(
            allocation.nodes,
            allocation.usable,
            allocation.node,
            policy.kill_grace,
            allocation.lanes,
            _free_fraction(allocation),
        )
        before, rest = rest, _fill(block, rest)
        flows += (Flow(d, n, allocation=allocation.id) for d, n in _taken(before, rest))
        if allocation.state == "queued" and not block.served:
            cancel.append(allocation.id)
    room = _Room(queues, [a for a in existing if a.id not in cancel], policy)
    requests: list[Request] = []
    waiting: list[tuple[Demand, str]] = []
    while rest:
        demand = rest[0][0]
        fitting = [
            queue
            for queue in queues
            if policy.usable(queue.max_wall_time) >= _limit(demand, policy)
        ]
        fitting = [q for q in fitting if at_once(demand.resources, q.max_nodes, q.node)]
        open_queues = [queue for queue in fitting if room.has(queue)]
        if not open_queues:
            reason = room.reason(fitting) if fitting else "no queue asked now can hold it"
            waiting.append((demand, reason))
            rest = rest[1:]
            continue
        before = rest
        request, rest = max(
            (_ask(queue, rest, policy) for queue in open_queues),
            key=lambda asked: (
                -sum(count for _, count in asked[1]),
                -asked[0].nodes * asked[0].wall_time,
            ),
        )
        room.take(request.queue)
        flows += (Flow(d, n, request=len(requests)) for d, n in _taken(before, rest))
        requests.append(request)
    return Plan(tuple(requests), tuple(cancel), tuple(waiting), tuple(flows))


def _taken(
    before: Sequence[tuple[Demand, int]], after: Sequence[tuple[Demand, int]]
) -> list[tuple[Demand, int]]:
    """How many of each demand are in ``before`` and not in ``after``."""
    left = dict(after)
    return [(d, count - left.get(d, 0)) for d, count in before if count > left.get(d, 0)]


def _by_shape(backlog: Iterable[Demand]) -> list[tuple[Demand, int]]:
    """Demands with their counts in the order in which they are served, each shape once."""
    counts: Counter[Demand] = Counter()
    for demand in backlog:
        counts[replace(demand, count=0)] += demand.count
    return [
        (replace(demand, count=counts[demand]), counts[demand])
        for demand in sorted(counts, key=_order)
        if counts[demand] > 0
    ]


def _order(demand: Demand) -> tuple[int, int, int, int, str]:
    wanted = demand.resources
    return (
        -demand.priority,
        -wanted.num_nodes,
        -demand.wall_time,
        -wanted.least_cores,
        repr((wanted, demand.expected_time)),
    )


def _filling_order(allocation: Existing) -> tuple[bool, float]:
    running = allocation.state == "running"
    return not running, allocation.usable if running else 0.0


def _limit(demand: Demand, policy: Policy) -> int:
    return demand.wall_time + policy.kill_grace


def _fill(block: _Block, rest: list[tuple[Demand, int]]) -> list[tuple[Demand, int]]:
    """What is left of ``rest`` after ``block`` took what it can."""
    after = [(demand, count - block.pour(demand, count)) for demand, count in rest]
    return [(demand, count) for demand, count in after if count]


def _free_fraction(allocation: Existing) -> float:
    cores = len(allocation.node.cores) * allocation.nodes
    if not allocation.lanes or allocation.usable <= 0 or not cores:
        return 1.0
    total = len(allocation.node.cores)
    held = sum(
        (total - lane.free_cores) * min(lane.busy_for, allocation.usable)
        for lane in allocation.lanes
    )
    return max(0.0, 1.0 - held / (cores * allocation.usable))


def _ask(
    queue: Queue, rest: list[tuple[Demand, int]], policy: Policy
) -> tuple[Request, list[tuple[Demand, int]]]:
    """The best allocation of ``queue`` for ``rest`` (whose first fits), and what it leaves."""
    longest = policy.usable(queue.max_wall_time)
    fitting = [
        (demand, count)
        for demand, count in rest
        if _limit(demand, policy) <= longest
        and at_once(demand.resources, queue.max_nodes, queue.node)
    ]
    nodes = _nodes(queue, fitting)
    rows = sum(
        count * demand.duration / at_once(demand.resources, nodes, queue.node)
        for demand, count in fitting
    )
    duration = max(demand.duration for demand, _ in fitting)
    rounds = math.ceil(rows / duration - _ROUNDING)
    limit = max(_limit(demand, policy) for demand, _ in fitting)
    usable = min(longest, math.ceil((rounds - 1) * duration) + limit)
    margins = policy.startup_margin + policy.drain_margin
    wall_time = max(queue.min_wall_time, usable + margins)
    block = _Block(nodes, wall_time - margins, queue.node, policy.kill_grace)
    left = _fill(block, rest)
    reason = f"{block.served} waiting tasks, {max(rounds, 1)} deep on {nodes} nodes"
    return Request(queue.name, nodes, wall_time, reason), left


def _nodes(queue: Queue, fitting: list[tuple[Demand, int]]) -> int:
    """As many nodes as the tasks can fill at once, within the queue's limits."""
    widest = max(demand.resources.num_nodes for demand, _ in fitting)
    filled = math.ceil(
        sum(
            count * demand.resources.num_nodes / per_node(demand.resources, queue.node)
            for demand, count in fitting
        )
        - _ROUNDING
    )
    nodes = max(widest, queue.min_nodes, min(filled, queue.max_nodes))
    # where all span as many nodes, none is left over
    spare = nodes % math.gcd(*(demand.resources.num_nodes for demand, _ in fitting))
    return nodes if nodes - spare < max(widest, queue.min_nodes) else nodes - spare


class _Room:
    """How many allocations may still be asked for."""

    def __init__(self, queues: Sequence[Queue], kept: Sequence[Existing], policy: Policy) -> None:
        self._total = policy.max_allocations - len(kept)
        self._most = policy.max_allocations
        self._queued = {
            queue.name: queue.max_queued
            - sum(1 for a in kept if a.queue == queue.name and a.state == "queued")
            for queue in queues
        }

    def has(self, queue: Queue) -> bool:
        return self._total > 0 and self._queued[queue.name] > 0

    def take(self, queue: str) -> None:
        self._total -= 1
        self._queued[queue] -= 1

    def reason(self, queues: Sequence[Queue]) -> str:
        if self._total <= 0:
            return f"packing.max_allocations ({self._most}) are queued or running"
        names = ", ".join(f"{queue.name} ({queue.max_queued})" for queue in queues)
        return f"max_queued allocations wait in each queue that could hold it: {names}"
