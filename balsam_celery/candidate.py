"""A task that waits for slots, as placement sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from balsam_celery.resources import Resources

#: Tasks that give no ``node_packing_count`` are ordered as if so many shared a node.
ANY_NUMBER: Final = 1_000_000


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


def grown(priority: int, created: float, now: float, ageing: float) -> float:
    """A task's priority, which ``ageing`` seconds of waiting raise by one."""
    return priority + max(0.0, now - created) // ageing
