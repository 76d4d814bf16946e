"""How many waiting tasks an allocation takes.  Pure: used by ``packing`` alone.

An allocation is filled in depth: the tasks of a shape that run at once in it are a row, a row of
tasks of ``d`` seconds makes it ``d`` seconds deeper, part of a row in proportion. A shape may be
poured in while the row ends in time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from balsam_celery.lanes import Lanes
from balsam_celery.limits import Policy, at_once, at_once_on, per_node
from balsam_celery.plans import Demand, Existing, Flow
from balsam_celery.resources import NodeCapacity

#: Demands with how many of their tasks are left.
Rest = list[tuple[Demand, int]]

_ROUNDING = 1e-9
#: An allocation takes work so many times deeper than another one would have to be to pay: so what
#: comes late, or was too much by little, is not asked for anew.
_DEEPER = 1.5


@dataclass(slots=True)
class Block:
    """An allocation while it is filled.

    Attributes:
        nodes, usable, node: as of :class:`~balsam_celery.plans.Existing`.
        policy: the site's.
        lanes: what its nodes have free, and when; ``None``: all is free.
        kinds: what its nodes have, and how many have that; empty: all have the same.
        depth: seconds of it that are filled.
        longest: seconds for which it is held by the longest task in it, whatever else it runs.
        share: what was poured in.
    """

    nodes: int
    usable: float
    node: NodeCapacity
    policy: Policy
    lanes: Lanes | None = None
    kinds: tuple[tuple[NodeCapacity, int], ...] = ()
    depth: float = 0.0
    longest: float = 0.0
    share: Rest = field(default_factory=list)

    @classmethod
    def of(cls, allocation: Existing, policy: Policy) -> Block:
        """One that exists, with what runs in it."""
        block = cls(allocation.nodes, allocation.usable, allocation.node, policy)
        if allocation.lanes:
            block.lanes = Lanes(allocation.lanes, allocation.node, allocation.usable)
            block.longest = block.lanes.longest
            if len(block.lanes.nodes) > 1:
                block.kinds = block.lanes.nodes
        return block

    @property
    def served(self) -> int:
        """Tasks poured in."""
        return sum(count for _, count in self.share)

    def fits(self, demand: Demand) -> bool:
        """One such task could run in it if nothing else did."""
        return demand.needs(self.policy.kill_grace) <= self.usable and bool(self.row(demand))

    def pour(self, rest: Rest, *, deep: bool = False) -> Rest:
        """Take what it can of ``rest`` and return what is left.

        ``deep``: to its end, and not only as deep as another allocation would be worth its cost.
        """
        after = []
        for demand, count in rest:
            taken = min(count, self._places(demand, deep))
            if taken:
                self.depth += taken * demand.duration / self.row(demand)
                self.longest = max(self.longest, demand.duration)
                self.share.append((demand, taken))
            if taken < count:
                after.append((demand, count - taken))
        return after

    def row(self, demand: Demand) -> int:
        """How many such tasks run in it at once."""
        if self.kinds:
            return at_once_on(demand.resources, self.kinds)
        return at_once(demand.resources, self.nodes, self.node)

    def _places(self, demand: Demand, deep: bool) -> int:
        needed, duration = demand.needs(self.policy.kill_grace), demand.duration
        row = self.row(demand) if needed <= self.usable else 0
        if not row or not self._starts(demand, needed):
            return 0
        # when the last row may start
        last = self.usable - needed
        if not deep:
            # its nodes are charged for as long as the longest runs, so others may run beside that
            beside = max(
                per_node(demand.resources, node) for node, _ in self.kinds or ((self.node, 1),)
            )
            worth = _DEEPER * self.policy.depth(duration, beside)
            if self.policy.release_after is None:
                worth = max(worth, self.longest)
            last = min(last, max(0, math.ceil(worth / duration - _ROUNDING) - 1) * duration)
        rounds = 1 + math.floor(last / duration + _ROUNDING)
        filled = self.depth + self._busy(demand, rounds * duration)
        # behind rows of other lengths the last row ends later than a whole number of its own
        behind = 1 + math.floor((last - filled) / duration + _ROUNDING) if filled <= last else 0
        return max(0, row * behind, math.floor(row * (rounds - filled / duration) + _ROUNDING))

    def _busy(self, demand: Demand, until: float) -> float:
        """How much of the first ``until`` seconds what runs now takes from ``demand``."""
        return self.lanes.used(demand.resources, until) / self.nodes if self.lanes else 0.0

    def _starts(self, demand: Demand, needed: float) -> bool:
        """Enough nodes are likely to be free in time for one such task."""
        return self.lanes is None or self.lanes.start(demand.resources, self.usable - needed)


def by_shape(backlog: Iterable[Demand]) -> Rest:
    """Demands with their counts in the order in which they are served, each shape once."""
    counts: dict[tuple[object, ...], tuple[Demand, int]] = {}
    for demand in backlog:
        if demand.count <= 0:
            continue
        key = (
            demand.resources, demand.wall_time, demand.priority, demand.expected_time,
            demand.restartable, demand.fits,
        )  # fmt: skip
        known, count = counts.get(key, (demand, 0))
        longest = known if known.waited >= demand.waited else demand
        counts[key] = (longest, count + demand.count)
    return sorted(counts.values(), key=lambda pair: _order(pair[0]))


def _order(demand: Demand) -> tuple[float | str, ...]:
    wanted = demand.resources
    return (
        -demand.priority,
        -wanted.num_nodes,
        -demand.duration,
        -demand.wall_time,
        -wanted.least_cores,
        repr((wanted, demand.expected_time, demand.restartable, demand.fits)),
    )


def flows(existing: Mapping[str, Block], new: Sequence[Block]) -> tuple[Flow, ...]:
    """What was poured into what: into those that exist, by id, and into those to be asked for."""
    known = (
        Flow(demand, count, allocation=id)
        for id, block in existing.items()
        for demand, count in block.share
    )
    asked = (
        Flow(demand, count, request=place)
        for place, block in enumerate(new)
        for demand, count in block.share
    )
    return (*known, *asked)
