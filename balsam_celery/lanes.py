"""What the nodes of a running allocation have free, and when the rest comes free.  Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from types import MappingProxyType

from balsam_celery.nodefree import NodeFree
from balsam_celery.plans import Lane
from balsam_celery.resources import NodeCapacity, Resources

#: Lanes whose ends differ by less than this part of the allocation's time are taken for equal.
_STEPS = 512
_Used = tuple[list[float], list[float], list[float]]


@dataclass(frozen=True, slots=True)
class Held:
    """What one task holds of an allocation.

    Attributes:
        nodes: names of its nodes.
        latest: seconds until it has ended at the latest.
        likely: seconds until it is likely to have ended.
    """

    nodes: tuple[str, ...]
    latest: float
    likely: float


def lanes(
    nodes: Iterable[NodeFree],
    held: Iterable[Held],
    idle: Mapping[str, float] = MappingProxyType({}),
    like: NodeCapacity | None = None,
) -> tuple[Lane, ...]:
    """One lane for each of ``nodes``, in their order, without those that are lost.

    Args:
        nodes: with what is free there.
        held: what runs.
        idle: seconds for which nothing has run, of the nodes of which that is true.
        like: what a node has of which the lane need not say it; ``None``: any.
    """
    latest: dict[str, float] = defaultdict(float)
    likely: dict[str, float] = defaultdict(float)
    for one in held:
        for name in one.nodes:
            latest[name] = max(latest[name], one.latest)
            likely[name] = max(likely[name], one.likely)
    return tuple(
        _lane(node, latest[name], likely[name], idle.get(name), like or node.capacity)
        for node in nodes
        if not node.lost
        for name in (node.capacity.name,)
    )


def _has(node: NodeCapacity) -> tuple[object, ...]:
    return len(node.cores), len(node.gpus), node.memory, node.resources


def _lane(
    node: NodeFree,
    latest: float,
    likely: float,
    idle_for: float | None,
    like: NodeCapacity,
) -> Lane:
    whole = NodeFree.of(node.capacity)
    names = (name for name, _ in node.capacity.resources)
    return Lane(
        len(node.cores),
        latest,
        likely,
        None if node.gpus == whole.gpus else tuple(sorted(node.gpus)),
        None if node.memory == whole.memory or not whole.memory else node.memory,
        None if node.counts == whole.counts else tuple(zip(names, node.counts, strict=True)),
        node.occupancy,
        node.capacity.name,
        idle_for,
        None if _has(node.capacity) == _has(like) else replace(node.capacity, name=""),
    )


class Lanes:
    """The lanes of one allocation, equal ones together: planning asks of them again and again.

    Attributes:
        longest: seconds until all are likely to be free.
        nodes: what they have, and how many have that.
    """

    def __init__(self, each: Iterable[Lane], node: NodeCapacity, usable: float) -> None:
        """``node``: what each has, unless it says otherwise; ``usable``: seconds that are left."""
        step = usable / _STEPS or 1.0
        alike: dict[tuple[object, ...], tuple[Lane, Counter[int]]] = {}
        for lane in each:
            key = (
                lane.free_cores, lane.gpus, lane.memory, lane.resources, lane.occupancy, lane.node,
            )  # fmt: skip
            if key not in alike:
                alike[key] = lane, Counter()
            alike[key][1][round(lane.wait / step)] += 1
        #: what is free on such nodes, and (seconds until all is, how many of them), soonest first
        self._kinds = [
            (
                _free(lane, lane.node or node),
                [(steps * step, n) for steps, n in sorted(waits.items())],
            )
            for lane, waits in alike.values()
        ]
        nodes: Counter[NodeCapacity] = Counter()
        for lane, waits in alike.values():
            nodes[lane.node or node] += waits.total()
        self.nodes = tuple(nodes.items())
        every = sorted(pair for _, waits in self._kinds for pair in waits)
        self._waits = [wait for wait, _ in every]
        self.longest = self._waits[-1] if every else 0.0
        #: how many nodes are free by each of those
        self._free_by = list(accumulate((n for _, n in every), initial=0))
        #: by what a task asks for: see :meth:`_used_by`
        self._used: dict[tuple[object, ...], _Used] = {}

    def start(self, wanted: Resources, latest: float) -> bool:
        """A task of ``wanted`` is likely to find enough nodes by ``latest`` seconds from now."""
        missing = wanted.num_nodes - self._free_by[bisect_right(self._waits, latest)]
        for free, waits in self._kinds:
            if missing <= 0:
                break
            if waits[-1][0] > latest and free.share(wanted) is not None:
                missing -= sum(n for wait, n in waits if wait > latest)
        return missing <= 0

    def used(self, wanted: Resources, until: float) -> float:
        """Node-seconds of the next ``until`` seconds of which tasks of ``wanted`` get nothing.

        A node on which tasks run counts by the scarcest there of what ``wanted`` asks for
        (its dominant share: Ghodsi et al., Dominant Resource Fairness, NSDI 2011).
        """
        key = (
            wanted.gpus_per_rank > 0,
            wanted.memory_per_node > 0,
            wanted.node_packing_count is not None,
            tuple(name for name, amount in wanted.resources_per_node if amount),
        )
        if key not in self._used:
            self._used[key] = self._used_by(wanted)
        waits, before, behind = self._used[key]
        place = bisect_right(waits, until)
        return before[place] + until * behind[place]

    def _used_by(self, wanted: Resources) -> _Used:
        """Seconds, ascending; what is used by nodes that are free by then; how many are not."""
        together: dict[float, float] = defaultdict(float)
        for free, waits in self._kinds:
            if part := free.used_of(wanted):
                for wait, n in waits:
                    together[wait] += part * n
        soonest = sorted(together)
        before = accumulate((wait * together[wait] for wait in soonest), initial=0.0)
        behind = accumulate((together[wait] for wait in reversed(soonest)), initial=0.0)
        return soonest, list(before), list(behind)[::-1]


def _free(lane: Lane, node: NodeCapacity) -> NodeFree:
    """What is free on a node of ``lane``; core and GPU ids do not matter."""
    if lane.gpus is not None:
        node = replace(node, gpus=tuple(range(len(lane.gpus))))
    whole = NodeFree.of(node)
    left = dict(node.resources if lane.resources is None else lane.resources)
    return whole._replace(
        cores=whole.cores[: lane.free_cores],
        gpus=whole.gpus if lane.gpus is None else lane.gpus,
        memory=node.memory if lane.memory is None else lane.memory,
        counts=tuple(left.get(name, 0) for name, _ in node.resources),
        occupancy=lane.occupancy,
        holders=int(lane.free_cores < len(whole.cores)),
    )
