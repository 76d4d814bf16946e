"""How wide and how long an allocation for given tasks should be.  Pure: used by ``packing`` alone.

An allocation is charged all its nodes until its last task ends, so width is paid for at the end,
when lane after lane runs empty. The more tasks a lane runs, the less that matters. The widest
allocation is taken of which so much of the charge is likely to be used as the policy demands.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from balsam_celery.limits import Policy, Queue, per_node
from balsam_celery.plans import Request
from balsam_celery.pouring import Rest

_ROUNDING = 1e-9
#: How far run times scatter where only an expected time is known: the standard deviation of their
#: logarithm. The longest of n is then about exp(SCATTER * sqrt(2 ln n)) times the expected time.
SCATTER = 0.1
#: Lanes drift apart by their scatter, up to half a task.
_DRIFT = 0.5
#: How much longer than expected the tasks of a lane together may take.
SLACK = 1.25
#: Of widths that make about as many rounds only some are tried.
_STEP = 0.9


@dataclass(frozen=True, slots=True)
class Caps:
    """What an allocation of a queue may be at the most.

    Attributes:
        nodes: nodes.
        wall_time: seconds.
        node_seconds: their product.
        room: how many allocations, this one with them, may share the tasks.
    """

    nodes: int
    wall_time: int
    node_seconds: float = math.inf
    room: int = 1


class Work:
    """Tasks that are to share an allocation of ``queue``'s nodes.

    Attributes:
        node_seconds: what they take in all.
        longest: seconds of the longest.
        least: nodes of the widest.
        filled: nodes that they fill at once.
        needs: seconds that the last of them must have left.
    """

    def __init__(self, tasks: Rest, queue: Queue, policy: Policy) -> None:
        self.tasks = tasks
        self._policy = policy
        self._queue = queue
        on_node = [per_node(demand.resources, queue.node) for demand, _ in tasks]
        per_round = [
            count * demand.resources.num_nodes / on
            for (demand, count), on in zip(tasks, on_node, strict=True)
        ]
        self.node_seconds = sum(
            nodes * demand.duration for nodes, (demand, _) in zip(per_round, tasks, strict=True)
        )
        self.longest = max(demand.duration for demand, _ in tasks)
        self.least = max(queue.min_nodes, *(demand.resources.num_nodes for demand, _ in tasks))
        self.filled = max(self.least, math.ceil(sum(per_round) - _ROUNDING))
        self.needs = max(demand.needs(policy.kill_grace) for demand, _ in tasks)
        #: how much longer than expected the longest may run
        self._latest = max(demand.wall_time for demand, _ in tasks) / self.longest - 1
        self._unsure = any(demand.expected_time is not None for demand, _ in tasks)
        self._on_node = on_node[0]
        # all span as many nodes: none is to be left over
        self._unit = math.gcd(*(demand.resources.num_nodes for demand, _ in tasks))

    def rounds(self, nodes: int) -> float:
        """Rows of tasks, one after the other, on ``nodes``."""
        if len(self.tasks) == 1:
            [(demand, count)] = self.tasks
            return count / ((nodes // demand.resources.num_nodes) * self._on_node)
        return max(1.0, self.node_seconds / (nodes * self.longest))

    def span(self, nodes: int) -> float:
        """Seconds that they are likely to take on ``nodes``."""
        rounds = self.rounds(nodes)
        alone = len(self.tasks) == 1
        whole = math.ceil(rounds - _ROUNDING) if alone else rounds
        lanes = max(1, nodes // self._unit) * (self._on_node if alone else 1)
        if lanes == 1:
            return self.longest * rounds
        drift = min(_DRIFT, SCATTER * math.sqrt(max(0.0, whole - 1)))
        late = math.exp(SCATTER * math.sqrt(2 * math.log(lanes))) - 1 if self._unsure else 0.0
        return self.longest * max(whole, rounds + drift + min(late, self._latest))

    def efficiency(self, nodes: int) -> float:
        """Used part of what an allocation of ``nodes`` is likely to be charged."""
        return self.node_seconds / (nodes * (self._policy.overhead + self.span(nodes)))

    def width(self, caps: Caps) -> int:
        """The widest number of nodes, within ``caps``, that is efficient enough."""
        widest = max(self.least, min(caps.nodes, self.filled))
        enough = self._policy.efficiency * self.efficiency(self.least)
        for nodes in self._widths(widest):
            if self.efficiency(nodes) >= enough:
                break
        else:
            nodes = self.least
        # what does not end in time on so few nodes needs more
        span = self._longest_span(caps)
        if self.span(nodes) > span:
            nodes = min(widest, max(nodes, math.ceil(self.node_seconds / span)))
        return self._even(nodes)

    def _widths(self, widest: int) -> Iterator[int]:
        """Widths to try, falling: the least that make one round, two, …"""
        nodes, rounds = widest, 1
        yield widest
        while nodes > self.least:
            if len(self.tasks) == 1:
                [(demand, count)] = self.tasks
                row = count / (rounds * self._on_node)
                fewer = demand.resources.num_nodes * math.ceil(row - _ROUNDING)
                rounds = max(rounds + 1, int(rounds / _STEP))
            else:
                fewer = int(nodes * _STEP)
            if fewer < nodes:
                nodes = max(self.least, fewer)
                yield nodes

    def _even(self, nodes: int) -> int:
        even = nodes - nodes % self._unit
        return even if even >= self.least else nodes

    def _longest_span(self, caps: Caps) -> float:
        return self._policy.usable(caps.wall_time) - self.needs + self.longest

    def request(self, caps: Caps) -> Request | None:
        """The allocation for them, ``None`` if none within ``caps`` could run them."""
        queue, policy = self._queue, self._policy
        base = max(queue.min_wall_time, math.ceil(self.needs) + policy.margins)
        affordable = math.floor(caps.node_seconds / base) if caps.node_seconds < math.inf else None
        most = caps.nodes if affordable is None else min(caps.nodes, affordable)
        if base > caps.wall_time or most < self.least:
            return None
        nodes = self.width(Caps(most, caps.wall_time))
        span = self.span(nodes)
        # where it cannot be wide enough, and others may be asked for, they share the work
        shared = max(policy.depth(self.longest), self.node_seconds / (nodes * max(1, caps.room)))
        span = min(span, max(self.longest, shared))
        more = (span - self.longest) * (SLACK if self._unsure else 1.0)
        wall_time = max(queue.min_wall_time, math.ceil(more + self.needs) + policy.margins)
        wall_time = min(wall_time, caps.wall_time)
        if caps.node_seconds < math.inf:
            wall_time = min(wall_time, math.floor(caps.node_seconds / nodes))
        return Request(queue.name, nodes, wall_time, "")
