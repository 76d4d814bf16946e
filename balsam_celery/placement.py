"""Which task starts where, now.  Pure (R9): plain values in, plain values out.

Tasks are tried by priority, which grows with age, the widest first within one. The first that does
not fit now gets a *reservation*: the nodes of a pilot on which it can start the earliest, and the
time. Others may use those nodes only if they have ended by then (their ``wall_time`` says so) or
take what the reserved task leaves. So a wide task waits no longer than the limits of what runs when
it becomes the first, and small ones fill the nodes that gather for it. Each pilot carries at most
one reservation; the first task gets the pilot that suits it best. This is EASY backfilling (Lifka,
"The ANL/IBM SP scheduling system", JSSPP 1995), node by node and with limits in place of runtimes.

Short tasks may be sent ahead of free cores (:mod:`balsam_celery.lookahead`).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from balsam_celery import lookahead
from balsam_celery.backfill import Backfill, Reservation
from balsam_celery.bitset import compact
from balsam_celery.candidate import ANY_NUMBER, Candidate, grown
from balsam_celery.collection import uncollected
from balsam_celery.ledger import Ledger
from balsam_celery.lookahead import NO_LOOK_AHEAD, LookAhead
from balsam_celery.pilotfree import Holding, PilotFree
from balsam_celery.resources import NodeShare, Resources

__all__ = ["Candidate", "LookAhead", "Pass", "Placement", "Reservation", "fits_ever", "place"]


@dataclass(frozen=True, slots=True)
class Placement:
    """A task starts: where, on what, and until when at the latest."""

    id: str
    attempt: int
    pilot: str
    shares: tuple[NodeShare, ...]
    until: float


@dataclass(frozen=True, slots=True)
class Pass:
    """What a pass decided.

    Attributes:
        placements: what starts, or is queued behind what runs, in order.
        reservations: what is kept for tasks that do not fit yet.
        ledger: the ledger after it.
        recalled: (pilot, task id, attempt) of what is queued and is to be taken back if it has not
            started.
    """

    placements: tuple[Placement, ...]
    reservations: tuple[Reservation, ...]
    ledger: Ledger
    recalled: tuple[tuple[str, str, int], ...] = ()


@uncollected
def place(
    ledger: Ledger,
    candidates: Iterable[Candidate],
    now: float,
    *,
    ageing: float = math.inf,
    ahead: LookAhead = NO_LOOK_AHEAD,
    tell_all: bool = True,
) -> Pass:
    """Decide what starts now.

    Args:
        ledger: what is free.
        candidates: tasks that wait, in any order.
        now: seconds since the epoch.
        ageing: seconds of waiting that raise a task's priority by one.
        ahead: how far short tasks are sent ahead of free cores.
        tell_all: also work out the reservations that nothing ran into; what starts is the same.
    """
    pilots = _Pilots(ledger, now, ahead)
    placements: list[Placement] = []
    # what runs only grows during a pass: what did not fit once does not fit later in it
    refused: Counter[tuple[Resources, float, float]] = Counter()
    short: dict[Resources, list[Candidate]] = defaultdict(list)
    for candidate in sorted(candidates, key=lambda one: _order(one, now, ageing)):
        if not pilots.count:
            break
        kind = (candidate.resources, candidate.limit, candidate.least_time)
        if not refused[kind]:
            placed = pilots.start(candidate)
            if placed is not None:
                placements.append(placed)
                continue
        if refused[kind] < pilots.count:
            # each of equal tasks may have a pilot kept for it
            pilots.backfill.refuse(candidate)
        refused[kind] += 1
        if ahead.tasks and (lane := ahead.lane(candidate)) is not None:
            short[lane].append(candidate)
    if tell_all or ahead.tasks:
        pilots.backfill.settle()
    placements += pilots.send_ahead(short)
    return Pass(
        tuple(placements), pilots.backfill.reservations(), pilots.ledger(), pilots.recalled()
    )


def fits_ever(pilot: PilotFree, candidate: Candidate, now: float) -> bool:
    """The task could start in the pilot if all that runs there ended now."""
    if pilot.draining or now + candidate.least_time > pilot.deadline:
        return False
    suiting = pilot.suiting(candidate.resources) & ~pilot.lost_nodes
    return suiting.bit_count() >= candidate.resources.num_nodes


def _order(
    candidate: Candidate, now: float, ageing: float
) -> tuple[float, int, int, int, float, str]:
    wanted = candidate.resources
    return (
        -grown(candidate.priority, candidate.created, now, ageing),
        -wanted.num_nodes,
        # the fewer share a node, the wider
        wanted.node_packing_count or ANY_NUMBER,
        -wanted.least_cores,
        candidate.created,
        candidate.id,
    )


class _Pilots:
    """The pilots while a pass goes on; a pilot is copied before its first change."""

    def __init__(self, ledger: Ledger, now: float, ahead: LookAhead) -> None:
        self._before = ledger
        self._now = now
        self._ahead = ahead
        self._changed: dict[str, PilotFree] = {}
        # the pilot that ends first is filled first: the others stay open for longer tasks
        self._order = sorted(
            (p for p in ledger.pilots.values() if not p.draining and p.deadline > now),
            key=lambda p: (p.deadline, p.id),
        )
        self.backfill = Backfill(self._current, now)

    @property
    def count(self) -> int:
        """In how many something may start."""
        return len(self._order)

    def ledger(self) -> Ledger:
        """The ledger after all that was started."""
        return Ledger({**self._before.pilots, **self._changed}) if self._changed else self._before

    def _current(self) -> list[PilotFree]:
        return [self._changed.get(pilot.id, pilot) for pilot in self._order]

    def _own(self, pilot: PilotFree) -> PilotFree:
        if pilot.id not in self._changed:
            self._changed[pilot.id] = pilot.copy()
        return self._changed[pilot.id]

    def start(self, candidate: Candidate) -> Placement | None:
        """Start the task where it fits best."""
        for original in self._order:
            if self._now + candidate.least_time > original.deadline:
                continue
            pilot = self._changed.get(original.id, original)
            found = self._find(pilot, candidate)
            if found is not None and self.backfill.settle():
                found = self._find(pilot, candidate)
            if found is not None:
                return self._take(self._own(pilot), found, candidate)
        return None

    def _find(self, pilot: PilotFree, candidate: Candidate) -> dict[int, NodeShare] | None:
        """Where the task starts, and what it is given there."""
        wanted = candidate.resources
        held = self.backfill.held(pilot.id)
        kept = 0
        if held is not None and self._now + candidate.limit > held.start:
            kept = held.places
        if wanted.is_gang:
            free = pilot.free_nodes & pilot.suiting(wanted) & ~kept
            places = compact(free, wanted.num_nodes)
            if places is None:
                return None
            return {p: share for p in places if (share := pilot.node(p).share(wanted)) is not None}
        for place, share in pilot.fitting(wanted, ~kept):
            return {place: share}
        if held is not None and kept:
            for place, share in pilot.fitting(wanted, kept):
                if held.lends(place, candidate, len(pilot.node(place).capacity.cores)):
                    return {place: share}
        return None

    def _take(
        self, pilot: PilotFree, found: Mapping[int, NodeShare], candidate: Candidate
    ) -> Placement:
        held = self.backfill.held(pilot.id)
        if held is not None and self._now + candidate.limit > held.start:
            for place, share in found.items():
                if place in held.spare:
                    held.spare[place] -= len(share.cores)
        return self._hold(pilot, candidate, tuple(found.values()), self._now + candidate.limit)

    def _hold(
        self, pilot: PilotFree, candidate: Candidate, shares: tuple[NodeShare, ...], until: float
    ) -> Placement:
        until = min(until, pilot.deadline)
        pilot.take(
            Holding(
                candidate.id,
                candidate.attempt,
                shares,
                until,
                candidate.resources.node_packing_count,
                self._now,
                self._ahead.lane(candidate),
            )
        )
        return Placement(candidate.id, candidate.attempt, pilot.id, shares, until)

    def _with_kept(self) -> Iterator[tuple[PilotFree, int]]:
        """The pilots, each with the places that are kept for what cannot be sent ahead itself."""
        for pilot in self._current():
            held = self.backfill.held(pilot.id)
            yield pilot, 0 if held is None or self._ahead.lane(held.candidate) else held.places

    def send_ahead(self, short: Mapping[Resources, Sequence[Candidate]]) -> list[Placement]:
        """Queue short tasks behind what runs."""
        if not short:
            return []
        chosen = list(lookahead.choose(list(self._with_kept()), short, self._ahead, self._now))
        placements = []
        for candidate, pilot, holding in chosen:
            shares = (replace(holding.shares[0], queued=True),)
            until = self._now + self._ahead.patience + candidate.limit
            placements.append(self._hold(self._own(pilot), candidate, shares, until))
        return placements

    def recalled(self) -> tuple[tuple[str, str, int], ...]:
        """What is queued and is to be taken back."""
        return tuple(lookahead.recalled(self._with_kept(), self._ahead, self._now))
