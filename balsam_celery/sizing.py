"""How wide and how long an allocation for given tasks should be.  Pure: used by ``packing`` alone.

An allocation is charged all its nodes until its last task ends, so width is paid for at the end,
when lane after lane runs empty. The more tasks a lane runs, the less that matters. The widest
allocation is taken of which so much of the charge is likely to be used as the policy demands, or
which costs little more than the thriftiest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from balsam_celery.limits import SCATTER, Policy, Queue, late, per_node
from balsam_celery.plans import Demand, Request
from balsam_celery.pouring import Rest

_ROUNDING = 1e-9
#: Lanes drift apart by their scatter, up to half a task.
_DRIFT = 0.5
#: How much longer than expected the tasks of a lane together may take, and so what is asked for:
#: time that is not used is not charged. Without an expected time their limits bound them.
SLACK, SLACK_OF_LIMITS = 4.0, 1.1
#: What part of its limit a task is likely to run when nothing else is known: users ask for more
#: than they use. Only the width depends on it; time is asked for as if each ran to its limit.
GUESS = 0.4
#: So many times longer than it has to be to pay, one allocation still takes all, and no second one
#: is asked for.
_LONGER = 1.5
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
        whole: time for all of them is asked for, though others are to share them.
    """

    nodes: int
    wall_time: int
    node_seconds: float = math.inf
    room: int = 1
    whole: bool = False


class Work:
    """Tasks that are to share an allocation of ``queue``'s nodes.

    Attributes:
        node_seconds: what they take in all, as planned.
        longest: seconds of the longest, as planned.
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
        self._unsure = any(demand.expected_time is not None for demand, _ in tasks)
        likely = [_likely(demand) for demand, _ in tasks]
        self._likely_seconds = sum(n * time for n, time in zip(per_round, likely, strict=True))
        self._likely_longest = max(likely)
        #: how much longer than is likely the longest may run
        self._limit = max(demand.wall_time for demand, _ in tasks)
        self._latest = self._limit / self._likely_longest - 1
        self._on_node = on_node[0]
        #: for how much of the longest's time a lane waits for the others of its node
        self._uneven = (
            sum(
                nodes * time * late(on)
                for nodes, time, on in zip(per_round, likely, on_node, strict=True)
            )
            / self._likely_seconds
        )
        # all span as many nodes: none is to be left over
        self._unit = math.gcd(*(demand.resources.num_nodes for demand, _ in tasks))

    def time(self, nodes: int) -> float:
        """Seconds that they take on ``nodes``, as planned."""
        if len(self.tasks) == 1:
            return self.longest * math.ceil(self._rounds(nodes) - _ROUNDING)
        return max(self.longest, self.node_seconds / nodes)

    def _rounds(self, nodes: int) -> float:
        """Rows of tasks, one after the other, on ``nodes``."""
        if len(self.tasks) == 1:
            [(demand, count)] = self.tasks
            return count / ((nodes // demand.resources.num_nodes) * self._on_node)
        return max(1.0, self._likely_seconds / (nodes * self._likely_longest))

    def efficiency(self, nodes: int) -> float:
        """Used part of what an allocation of ``nodes`` is likely to be charged."""
        rounds, alone = self._rounds(nodes), len(self.tasks) == 1
        whole = math.ceil(rounds - _ROUNDING) if alone else rounds
        lanes = max(1, nodes // self._unit) * (self._on_node if alone else 1)
        if lanes > 1:
            drift = min(_DRIFT, SCATTER * math.sqrt(max(0.0, whole - 1)))
            rounds = max(whole, rounds + drift + min(late(lanes), self._latest))
        span = self._likely_longest * rounds
        if self._policy.release_after is not None:
            busy = self._likely_seconds / nodes
            # a node is charged until the last of its lanes is done, the head until all are
            rest = busy + self._likely_longest * min(self._uneven, self._latest)
            span = rest + max(0.0, span - rest) / nodes
        return self._likely_seconds / (nodes * (self._policy.overhead + span))

    def width(self, caps: Caps) -> int:
        """The widest number of nodes, within ``caps``, that is efficient enough."""
        widest = max(self.least, min(caps.nodes, self.filled))
        best = self.efficiency(self.least)
        for nodes in self._widths(widest):
            used = self.efficiency(nodes)
            more = self._likely_seconds * (1 / used - 1 / best)
            if used >= self._policy.efficiency * best or more <= self._policy.haste:
                break
        else:
            nodes = self.least
        # what does not end in time on so few nodes needs more
        most = self._policy.usable(caps.wall_time) - self.needs + self.longest
        if self.time(nodes) > most > 0:
            nodes = min(widest, max(nodes, self._within(most)))
        return self._even(nodes)

    def _within(self, seconds: float) -> int:
        """Nodes on which they end within so many seconds, as planned."""
        if len(self.tasks) == 1:
            [(demand, count)] = self.tasks
            lanes = math.ceil(count / max(1, int(seconds / self.longest + _ROUNDING)))
            return demand.resources.num_nodes * math.ceil(lanes / self._on_node)
        return math.ceil(self.node_seconds / seconds)

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

    def request(self, caps: Caps) -> Request | None:
        """The allocation for them, ``None`` if none within ``caps`` could run them."""
        queue, policy = self._queue, self._policy
        base = max(queue.min_wall_time, math.ceil(self.needs) + policy.margins)
        affordable = math.floor(caps.node_seconds / base) if caps.node_seconds < math.inf else None
        most = caps.nodes if affordable is None else min(caps.nodes, affordable)
        if base > caps.wall_time or most < self.least:
            return None
        nodes = self.width(Caps(most, caps.wall_time))
        time = self.time(nodes)
        # where it cannot be wide enough, and others may be asked for, they share the work
        shared = max(
            policy.depth(self.longest, self._on_node),
            self.node_seconds / (nodes * max(1, caps.room)),
        )
        if time > _LONGER * shared and not caps.whole:
            time = max(self.longest, shared)
        rows = time / self.longest - 1
        # their limits bound all of them, whatever is expected
        more = rows * min(
            self.longest * (SLACK if self._unsure else SLACK_OF_LIMITS),
            self._limit * SLACK_OF_LIMITS,
        )
        wall_time = max(queue.min_wall_time, math.ceil(more + self.needs) + policy.margins)
        wall_time = min(wall_time, caps.wall_time)
        if caps.node_seconds < math.inf:
            wall_time = min(wall_time, math.floor(caps.node_seconds / nodes))
        return Request(queue.name, nodes, wall_time, "")


def _likely(demand: Demand) -> float:
    return demand.duration if demand.expected_time is not None else GUESS * demand.wall_time
