"""Look-ahead: short tasks queued behind others, so that a worker need not wait for the service.

The more completions a second and the longer the way to the service and back, the more tasks must be
under way for no core to wait (Little's law); for tasks of a second or more the wait is nothing.
Whatever is sent ahead is bound to its cores, so it is never more than the backlog can spare: one
task for each core that runs such tasks stays behind, for whoever is done first.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from balsam_celery.candidate import Candidate
from balsam_celery.pilotfree import Holding, PilotFree
from balsam_celery.resources import Resources


@dataclass(frozen=True, slots=True)
class LookAhead:
    """How far short tasks are sent ahead.

    Attributes:
        tasks: how many may be queued behind others in all.
        longest: ``expected_time`` in seconds below which a task is short.
        many: with so many candidates of one kind, more of it wait than placement is shown.
    """

    tasks: int = 0
    longest: float = 1.0
    many: int | None = None

    @property
    def patience(self) -> float:
        """Seconds after which what is queued behind one that still runs is taken back."""
        return 5 * self.longest

    def lane(self, candidate: Candidate) -> Resources | None:
        """What the task asks for, if it is short enough that others may queue behind it."""
        wanted, expected = candidate.resources, candidate.expected_time
        is_short = expected is not None and expected < self.longest
        return wanted if self.tasks and is_short and not wanted.is_gang else None


#: Nothing is sent ahead.
NO_LOOK_AHEAD = LookAhead()


def tasks_ahead(ends_per_second: float, round_trip: float, most: int) -> int:
    """How many tasks are sent ahead where so many end in a second: rate times round trip.

    Args:
        ends_per_second: completions of short tasks.
        round_trip: seconds from the end of one until the next one, sent then, has arrived.
        most: not more than this.
    """
    return min(most, math.ceil(ends_per_second * round_trip))


def choose(
    pilots: Sequence[tuple[PilotFree, int]],
    short: Mapping[Resources, Sequence[Candidate]],
    ahead: LookAhead,
    now: float,
) -> Iterator[tuple[Candidate, PilotFree, Holding]]:
    """Which task is queued behind which: the shortest queues are filled first.

    Args:
        pilots: those that may take tasks, each with the places (bit set) kept for others.
        short: short tasks that do not fit now, by what they ask for, in order.
        ahead: how many.
        now: seconds since the epoch.
    """
    left = ahead.tasks - sum(len(behind) for pilot, _ in pilots for _, behind in pilot.queued())
    for wanted, candidates in short.items():
        lanes = [
            (depth, order, holding.key, holding)
            for order, (pilot, kept) in enumerate(pilots)
            for holding, depth in pilot.lanes(wanted, ~kept)
        ]
        is_shown_all = ahead.many is None or len(candidates) < ahead.many
        spared = min(left, len(candidates) - (len(lanes) if is_shown_all else 0))
        if spared <= 0:
            continue
        heapq.heapify(lanes)
        for candidate in candidates[:spared]:
            fits = now + ahead.patience + candidate.limit
            while lanes and fits > pilots[lanes[0][1]][0].deadline:
                heapq.heappop(lanes)
            if not lanes:
                break
            depth, order, key, holding = lanes[0]
            heapq.heapreplace(lanes, (depth + 1, order, key, holding))
            left -= 1
            yield candidate, pilots[order][0], holding


def recalled(
    pilots: Iterable[tuple[PilotFree, int]], ahead: LookAhead, now: float
) -> Iterator[tuple[str, str, int]]:
    """(pilot, task id, attempt) of what is queued and is to be taken back.

    Its node is kept for another task, or what it waits for runs longer than was expected.
    """
    for pilot, kept in pilots:
        for holding, behind in pilot.queued():
            is_late = now - holding.since > ahead.patience
            if is_late or kept >> pilot.place(holding.shares[0].node) & 1:
                for task, attempt in behind:
                    yield pilot.id, task, attempt
