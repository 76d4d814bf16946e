"""When a part of a node is free at the latest: remembered node by node.  Pure.

A reservation is made anew in each pass. Only if it looks at every node does it never come later
from one pass to the next, and a pass has no time for that; but little changes between two of them.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable

from balsam_celery.bitset import members
from balsam_celery.nodefree import NodeFree
from balsam_celery.resources import NodeShare, Resources

#: Of how many shapes it is remembered.
_MOST_SHAPES = 16
#: What one task holds of a node: until when at the latest, its share, its ``node_packing_count``.
Held = tuple[float, NodeShare, int | None]


class Soonest:
    """When tasks fit on each node of a pilot, by what they ask for."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        #: a time for each node, and the places (bit set) of those where it is to be found anew
        self._known: dict[Resources, tuple[array[float], int]] = {}

    def copy(self) -> Soonest:
        """One that may be changed without changing this one."""
        other = Soonest()
        other._known = self._known.copy()
        return other

    def forget(self, places: int) -> None:
        """Something has changed on ``places`` (a bit set)."""
        for wanted, (times, stale) in self._known.items():
            self._known[wanted] = times, stale | places

    def first(
        self, wanted: Resources, nodes: int, time_on: Callable[[int], float]
    ) -> tuple[float, int] | None:
        """When and at which place a task of ``wanted`` fits the soonest, ``None``: nowhere.

        Args:
            wanted: what it asks for.
            nodes: how many there are.
            time_on: tells of a place when it fits there, ``inf``: never.
        """
        if wanted not in self._known:
            if len(self._known) >= _MOST_SHAPES:
                self._known.clear()
            self._known[wanted] = array("d", [math.inf]) * nodes, (1 << nodes) - 1
        times, stale = self._known[wanted]
        if stale:
            times = times[:]
            for place in members(stale):
                times[place] = time_on(place)
            self._known[wanted] = times, 0
        soonest = min(times, default=math.inf)
        return None if soonest == math.inf else (soonest, times.index(soonest))


def fits_from(node: NodeFree, held: Iterable[Held], wanted: Resources) -> float:
    """When a task of ``wanted`` fits on ``node``, of which others hold the rest, at the latest.

    0: now; ``inf``: never.
    """
    if node.share(wanted) is not None:
        return 0.0
    need = wanted.cores_on(len(node.capacity.cores)) - len(node.cores)
    for until, share, packing in sorted(held, key=lambda one: one[0]):
        node = node.with_given_back(share, packing)
        need -= len(share.cores)
        if need <= 0 and node.share(wanted) is not None:
            return until
    return math.inf
