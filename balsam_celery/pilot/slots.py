"""Who starts next: attempts in order of arrival, each when its own cores are free."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from balsam_celery.pilot.attempt import Attempt

Slot = tuple[str, int]


class Slots:
    """The cores of a worker and the attempts that wait for them; not safe between threads.

    Placement names concrete cores, so an attempt waits only for those: it never overtakes an
    earlier one on any of them, and no core is given twice.
    """

    def __init__(self, slots: Iterable[Slot]) -> None:
        self._all = frozenset(slots)
        self._busy: set[Slot] = set()
        self.waiting: OrderedDict[tuple[str, int], Attempt] = OrderedDict()
        self.running: dict[tuple[str, int], Attempt] = {}

    def add(self, attempt: Attempt) -> None:
        """Put an attempt behind those that wait."""
        self.waiting[attempt.key] = attempt

    def withdraw(self, key: tuple[str, int]) -> Attempt | None:
        """Take a waiting attempt back."""
        return self.waiting.pop(key, None)

    def release(self, attempt: Attempt) -> None:
        """A running attempt is over."""
        del self.running[attempt.key]
        self._busy -= attempt.slots

    def start(self) -> list[Attempt]:
        """Attempts that can start now; they are running from here on."""
        taken = set(self._busy)
        starting = []
        for attempt in self.waiting.values():
            if taken.isdisjoint(attempt.slots):
                starting.append(attempt)
                self._busy |= attempt.slots
            taken |= attempt.slots
            if taken >= self._all:
                break
        for attempt in starting:
            del self.waiting[attempt.key]
            self.running[attempt.key] = attempt
        return starting
