"""Which task starts where, now.  Pure (R9): plain values in, plain values out.

Tasks are tried by priority, the widest first within one. The first that does not fit now gets a
*reservation*: the nodes of a pilot on which it can start the earliest, and the time. Others may
use those nodes only if they have ended by then (their ``wall_time`` says so) or take what the
reserved task leaves. So a wide task waits no longer than the limits of what runs when it
becomes the first, and small ones fill the nodes that gather for it. Each pilot carries at most one
reservation; the first task gets the pilot that suits it best.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from balsam_celery.ledger import Holding, Ledger, NodeFree, PilotFree, members
from balsam_celery.resources import NodeShare, Resources


@dataclass(frozen=True, slots=True)
class Candidate:
    """A task that waits for slots.

    Attributes:
        id: the task's id.
        attempt: number that its next attempt will have.
        resources: what it asks for.
        wall_time: its limit in seconds.
        kill_grace: seconds between TERM and KILL once the limit is over.
        priority: larger goes first.
        created: seconds since the epoch; older goes first among equals.
        restartable: it may start where ``expected_time`` fits though ``wall_time`` does not.
        expected_time: seconds, ``None`` when not known.
    """

    id: str
    attempt: int
    resources: Resources
    wall_time: int
    kill_grace: int
    priority: int = 0
    created: float = 0.0
    restartable: bool = False
    expected_time: float | None = None

    @property
    def limit(self) -> float:
        """Seconds from its start until no process of it lives, at the latest."""
        return self.wall_time + self.kill_grace

    @property
    def least_time(self) -> float:
        """Seconds that a pilot must have left for it."""
        if self.restartable and self.expected_time is not None:
            return min(self.limit, self.expected_time + self.kill_grace)
        return self.limit


@dataclass(frozen=True, slots=True)
class Placement:
    """A task starts: where, on what, and until when at the latest."""

    id: str
    attempt: int
    pilot: str
    shares: tuple[NodeShare, ...]
    until: float


@dataclass(frozen=True, slots=True)
class Reservation:
    """A task that does not fit now starts on ``nodes`` of ``pilot`` at ``start`` at the latest."""

    id: str
    pilot: str
    nodes: tuple[str, ...]
    start: float


@dataclass(frozen=True, slots=True)
class Pass:
    """What a pass decided: ``placements`` in order, ``reservations``, and the ledger after it."""

    placements: tuple[Placement, ...]
    reservations: tuple[Reservation, ...]
    ledger: Ledger


@dataclass(slots=True)
class _Held:
    """A reservation while a pass goes on: ``spare`` cores by place that others may keep."""

    wanted: Resources
    start: float
    spare: dict[int, int]


def place(ledger: Ledger, candidates: Iterable[Candidate], now: float) -> Pass:
    """Decide what starts now.

    Args:
        ledger: what is free.
        candidates: tasks that wait, in any order.
        now: seconds since the epoch.
    """
    pilots = _Pilots(ledger, now)
    placements: list[Placement] = []
    reservations: list[Reservation] = []
    # what runs only grows during a pass: what did not fit once does not fit later in it
    refused: set[tuple[Resources, float, float]] = set()
    for candidate in sorted(candidates, key=_order):
        if not pilots.open:
            break
        kind = (candidate.resources, candidate.limit, candidate.least_time)
        if kind in refused:
            continue
        placed = pilots.start(candidate)
        if placed is not None:
            placements.append(placed)
            continue
        refused.add(kind)
        reserved = pilots.reserve(candidate)
        if reserved is not None:
            reservations.append(reserved)
    return Pass(tuple(placements), tuple(reservations), pilots.ledger())


def fits_ever(pilot: PilotFree, candidate: Candidate, now: float) -> bool:
    """The task could start in the pilot if all that runs there ended now."""
    if pilot.draining or now + candidate.least_time > pilot.deadline:
        return False
    suiting = members(pilot.suiting(candidate.resources))
    fitting = sum(1 for place in suiting if not pilot.nodes[place].lost)
    return fitting >= candidate.resources.num_nodes


def _order(candidate: Candidate) -> tuple[int, int, int, float, float, str]:
    wanted = candidate.resources
    return (
        -candidate.priority,
        -wanted.num_nodes,
        # the fewer share a node, the wider
        wanted.node_packing_count or 1_000_000,
        -wanted.least_cores,
        candidate.created,
        candidate.id,
    )


class _Pilots:
    """The pilots while a pass goes on; a pilot is copied before its first change."""

    def __init__(self, ledger: Ledger, now: float) -> None:
        self._before = ledger
        self._now = now
        self._changed: dict[str, PilotFree] = {}
        self._held: dict[str, _Held] = {}
        # the pilot that ends first is filled first: the others stay open for longer tasks
        self._order = sorted(
            (p for p in ledger.pilots.values() if not p.draining and p.deadline > now),
            key=lambda p: (p.deadline, p.id),
        )

    @property
    def open(self) -> bool:
        """Something may start somewhere."""
        return bool(self._order)

    def ledger(self) -> Ledger:
        """The ledger after all that was started."""
        return Ledger({**self._before.pilots, **self._changed}) if self._changed else self._before

    def start(self, candidate: Candidate) -> Placement | None:
        """Start the task where it fits best."""
        for original in self._order:
            pilot = self._changed.get(original.id, original)
            if self._now + candidate.least_time > pilot.deadline:
                continue
            places = self._find(pilot, candidate)
            if places is None:
                continue
            if pilot is original:
                pilot = self._changed[pilot.id] = original.copy()
            return self._take(pilot, places, candidate)
        return None

    def _take(self, pilot: PilotFree, places: Sequence[int], candidate: Candidate) -> Placement:
        wanted = candidate.resources
        shares = tuple(share for p in places if (share := pilot.nodes[p].share(wanted)) is not None)
        until = min(self._now + candidate.limit, pilot.deadline)
        packing = wanted.node_packing_count
        pilot.take(Holding(candidate.id, candidate.attempt, shares, until, packing))
        held = self._held.get(pilot.id)
        if held is not None and self._now + candidate.limit > held.start:
            for place, share in zip(places, shares, strict=True):
                if place in held.spare:
                    held.spare[place] -= len(share.cores)
        return Placement(candidate.id, candidate.attempt, pilot.id, shares, until)

    def _find(self, pilot: PilotFree, candidate: Candidate) -> list[int] | None:
        wanted = candidate.resources
        held = self._held.get(pilot.id)
        if wanted.is_gang:
            free = pilot.free_nodes & pilot.suiting(wanted)
            for place in held.spare if held is not None else ():
                if not self._allowed(held, pilot, place, candidate):
                    free &= ~(1 << place)
            return compact(free, wanted.num_nodes)
        for place in pilot.best_fit(wanted.least_cores):
            if (
                self._allowed(held, pilot, place, candidate)
                and pilot.nodes[place].share(wanted) is not None
            ):
                return [place]
        return None

    def _allowed(
        self, held: _Held | None, pilot: PilotFree, place: int, candidate: Candidate
    ) -> bool:
        """The task may use the node without delaying the one for which it is reserved."""
        if held is None or place not in held.spare or self._now + candidate.limit <= held.start:
            return True
        wanted = candidate.resources
        if (wanted.gpus_per_rank and held.wanted.gpus_per_rank) or (
            wanted.node_packing_count and held.wanted.node_packing_count
        ):
            return False
        return wanted.cores_on(len(pilot.nodes[place].capacity.cores)) <= held.spare[place]

    def reserve(self, candidate: Candidate) -> Reservation | None:
        """Keep nodes for a task that does not fit now, in the pilot that has them first."""
        best: tuple[float, PilotFree, list[int]] | None = None
        for original in self._order:
            if original.id in self._held:
                continue
            pilot = self._changed.get(original.id, original)
            found = self._earliest(pilot, candidate)
            if found is None or found[0] + candidate.least_time > pilot.deadline:
                continue
            if best is None or found[0] < best[0]:
                best = (found[0], pilot, found[1])
        if best is None:
            return None
        start, pilot, places = best
        wanted = candidate.resources
        spare = {}
        for place in places:
            after = _node_after(pilot, place, start)
            spare[place] = len(after.cores) - wanted.cores_on(len(after.capacity.cores))
        self._held[pilot.id] = _Held(wanted, start, spare)
        names = tuple(pilot.nodes[place].capacity.name for place in places)
        return Reservation(candidate.id, pilot.id, names, start)

    def _earliest(self, pilot: PilotFree, candidate: Candidate) -> tuple[float, list[int]] | None:
        """When the task could start in the pilot at the latest, and on which nodes."""
        wanted = candidate.resources
        suiting = pilot.suiting(wanted)
        if self._now + candidate.least_time > pilot.deadline:
            return None
        when = {
            place: start
            for place in members(suiting if suiting.bit_count() >= wanted.num_nodes else 0)
            if (start := self._node_earliest(pilot, place, wanted)) is not None
        }
        if len(when) < wanted.num_nodes:
            return None
        start = sorted(when.values())[wanted.num_nodes - 1]
        free_by_then = sum(1 << place for place, time in when.items() if time <= start)
        places = compact(free_by_then, wanted.num_nodes)
        return None if places is None else (start, places)

    def _node_earliest(self, pilot: PilotFree, place: int, wanted: Resources) -> float | None:
        node = pilot.nodes[place]
        if node.lost:
            return None
        if node.share(wanted) is not None:
            return self._now
        for holding in sorted(pilot.on_node(place), key=lambda h: (h.until, h.id)):
            node = _without(node, holding)
            if node.share(wanted) is not None:
                return max(holding.until, self._now)
        return None


def _without(node: NodeFree, holding: Holding) -> NodeFree:
    [share] = [share for share in holding.shares if share.node == node.capacity.name]
    return node.with_given_back(share, holding.packing)


def _node_after(pilot: PilotFree, place: int, time: float) -> NodeFree:
    """The node as it is at ``time`` when all that runs takes its whole limit."""
    node = pilot.nodes[place]
    for holding in pilot.on_node(place):
        if holding.until <= time:
            node = _without(node, holding)
    return node


def compact(places: int, count: int) -> list[int] | None:
    """``count`` of ``places`` (a bit set), as near to each other as can be.

    Neighbours are taken from the shortest row that holds them, so that long rows stay whole.
    """
    if places.bit_count() < count:
        return None
    # a bit stays where it and the next ``count`` - 1 are all set
    starts, length = places, 1
    while length < count:
        step = min(length, count - length)
        starts &= starts >> step
        length += step
    rows = members(starts & ~(places << 1))
    row = min(rows, key=lambda first: (_row_length(places >> first), first), default=None)
    if row is not None:
        return list(range(row, row + count))
    spread = list(members(places))
    _, first = min(
        (spread[first + count - 1] - spread[first], first)
        for first in range(len(spread) - count + 1)
    )
    return spread[first : first + count]


def _row_length(places: int) -> int:
    """How many of the lowest bits are set without a gap."""
    return (~places & (places + 1)).bit_length() - 1
