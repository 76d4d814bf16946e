"""How many short tasks end in a second, and so how many are sent ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from balsam_celery.lookahead import LookAhead, tasks_ahead
from balsam_celery.wire import Ended, Record

#: Seconds over which completions are counted.
_SPAN = 2.0
#: Seconds for which a worker gathers outcomes, and for which a message travels either way.
_GATHERING, _TRAVEL = 0.02, 0.005
#: Weight of the newest turn in the mean of their lengths.
_NEWEST = 0.2


class Pace:
    """The service's pace; for the engine's thread.

    Args:
        most: tasks that may be sent ahead at once; 0: none.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._ends: deque[tuple[float, int]] = deque()
        self._count = 0
        self._turn = 0.0

    def note(self, records: Iterable[Record], now: float) -> None:
        """Count the short attempts among what was told."""
        longest = LookAhead().longest
        count = sum(
            1
            for one in records
            if isinstance(one, Ended)
            and one.started is not None
            and one.ended - one.started < longest
        )
        if count:
            self._ends.append((now, count))
            self._count += count

    def turn(self, seconds: float) -> None:
        """A turn of the service, from reading outcomes to sending tasks, took so long."""
        self._turn += _NEWEST * (seconds - self._turn)

    def ahead(self, now: float) -> LookAhead:
        """How far short tasks are sent ahead at this pace."""
        while self._ends and (self._ends[0][0] < now - _SPAN or self._ends[0][0] > now):
            self._count -= self._ends.popleft()[1]
        # an outcome that just misses a turn waits for the next one
        round_trip = _GATHERING + 2 * _TRAVEL + 2 * self._turn
        return LookAhead(tasks_ahead(self._count / _SPAN, round_trip, self._most))
