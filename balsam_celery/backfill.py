"""Reservations of a placement pass: what is kept for tasks that do not fit yet, and who may use it.

A reservation is worked out when the first other task would start, or at the end: until then nobody
can take anything from it, and most passes need none. Its start is an upper bound: everything that
runs on its nodes is taken to last until its limit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from balsam_celery.bitset import compact, members
from balsam_celery.candidate import Candidate
from balsam_celery.pilotfree import PilotFree
from balsam_celery.resources import Resources


@dataclass(frozen=True, slots=True)
class Reservation:
    """A task that does not fit now starts on ``nodes`` of ``pilot`` at ``start`` at the latest."""

    id: str
    pilot: str
    nodes: tuple[str, ...]
    start: float


@dataclass(slots=True)
class Held:
    """Nodes kept for a task from ``start`` on.

    Attributes:
        places: of the nodes, as a bit set.
        spare: cores by place that the task leaves, and that others may keep.
    """

    candidate: Candidate
    start: float
    places: int
    spare: dict[int, int] = field(default_factory=dict)

    def lends(self, place: int, candidate: Candidate, node_cores: int) -> bool:
        """A task that outlasts the start may have its share of the node all the same."""
        wanted, own = candidate.resources, self.candidate.resources
        both_want = (
            (wanted.gpus_per_rank and own.gpus_per_rank)
            or (wanted.node_packing_count and own.node_packing_count)
            or (wanted.memory_per_node and own.memory_per_node)
            or (wanted.resources_per_node and own.resources_per_node)
        )
        return not both_want and wanted.cores_on(node_cores) <= self.spare.get(place, 0)


class Backfill:
    """The reservations of one pass.

    Args:
        pilots: tells the pilots as they are now, in the order in which they are filled.
        now: seconds since the epoch.
    """

    def __init__(self, pilots: Callable[[], Sequence[PilotFree]], now: float) -> None:
        self._pilots = pilots
        self._now = now
        self._refused: list[Candidate] = []
        self._held: dict[str, Held] = {}
        self._reservations: list[Reservation] = []

    def refuse(self, candidate: Candidate) -> None:
        """The task does not fit: it gets a reservation, if a pilot is left for one."""
        self._refused.append(candidate)

    def held(self, pilot: str) -> Held | None:
        """What is kept in the pilot, so far as it is worked out."""
        return self._held.get(pilot)

    def settle(self) -> bool:
        """Work out the reservations of all that was refused; false if that was done before."""
        if not self._refused:
            return False
        for candidate in self._refused:
            if len(self._held) == len(self._pilots()):
                break
            self._reserve(candidate)
        self._refused.clear()
        return True

    def reservations(self) -> tuple[Reservation, ...]:
        """Those that were worked out, in the order of their tasks."""
        return tuple(self._reservations)

    def _reserve(self, candidate: Candidate) -> None:
        best: tuple[float, PilotFree, list[int]] | None = None
        for pilot in self._pilots():
            if pilot.id in self._held:
                continue
            found = earliest(pilot, candidate, self._now)
            if found is not None and (best is None or found[0] < best[0]):
                best = (found[0], pilot, found[1])
        if best is None:
            return
        start, pilot, places = best
        wanted, spare = candidate.resources, {}
        if not wanted.is_gang:
            [place] = places
            node = pilot.node(place)
            spare[place] = _free_at(pilot, place, start) - wanted.cores_on(len(node.capacity.cores))
        self._held[pilot.id] = Held(candidate, start, sum(1 << place for place in places), spare)
        names = tuple(pilot.node(place).capacity.name for place in places)
        self._reservations.append(Reservation(candidate.id, pilot.id, names, start))


def earliest(pilot: PilotFree, candidate: Candidate, now: float) -> tuple[float, list[int]] | None:
    """When the task could start in the pilot at the latest, and on which of its nodes.

    ``None``: never, or too late to end before the pilot.
    """
    wanted = candidate.resources
    usable = pilot.suiting(wanted) & ~pilot.lost_nodes
    latest = pilot.deadline - candidate.least_time
    if now > latest or usable.bit_count() < wanted.num_nodes:
        return None
    if wanted.is_gang:
        start, places = _whole(pilot, wanted, usable, now)
    else:
        soonest = pilot.soonest(wanted)
        if soonest is None:
            return None
        start, places = max(now, soonest[0]), [soonest[1]]
    return (start, places) if start <= latest else None


def _whole(pilot: PilotFree, wanted: Resources, usable: int, now: float) -> tuple[float, list[int]]:
    free, missing = 0, wanted.num_nodes
    for released in pilot.releases():
        found = released & usable
        if found.bit_count() >= missing:
            # no later than need be: of the last step only what is free as soon as the last needed
            times = {place: pilot.until(place) for place in members(found)}
            last = sorted(times.values())[missing - 1]
            free |= sum(1 << place for place, time in times.items() if time <= last)
            break
        free |= found
        missing -= found.bit_count()
    places = compact(free, wanted.num_nodes)
    assert places is not None
    return max(now, *(pilot.until(place) for place in places)), places


def _free_at(pilot: PilotFree, place: int, time: float) -> int:
    """Free cores of the node at ``time`` when all that runs takes its whole limit."""
    node = pilot.node(place)
    return len(node.cores) + sum(
        len(share.cores)
        for holding in pilot.on_node(place)
        if pilot.lasts(holding) <= time
        for share in holding.shares
        if share.node == node.capacity.name
    )
