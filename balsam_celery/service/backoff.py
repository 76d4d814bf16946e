"""Queues that are asked for nothing for a while: what was asked of them came to nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, Label, and_, func, or_, select

from balsam_celery.store import schema
from balsam_celery.store.allocations import NO_NODE
from balsam_celery.store.rows import AllocationState

log = logging.getLogger(__name__)

#: Pause in seconds after allocations that came to nothing: doubled by each, up to the longest.
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 300.0
#: So many of a queue's newest allocations are looked at: their pauses reach the longest.
_NEWEST = 16
_OVER = (AllocationState.FAILED, AllocationState.ENDED)


@dataclass(frozen=True, slots=True)
class Pause:
    """A queue is asked for nothing ``until`` then (seconds since the epoch).

    Attributes:
        failures: how many in a row came to nothing.
        reason: of the last of them.
    """

    until: float
    failures: int
    reason: str


def pauses(conn: Connection, queue: str, now: float) -> Pause | None:
    """The queue's newest allocations were refused, never could start, or ended unused, of late.

    Without such a pause an allocation that cannot start its pilot would be asked for for ever.
    One that was cancelled, or has not ended yet, tells nothing about its queue, unless it was used.
    """
    table, pilot = schema.allocation.c, schema.pilot.c
    useful = ~pilot.reason.startswith(NO_NODE)
    used = select(pilot.id).where(pilot.allocation == table.id, useful).exists()
    newest = (
        select(table.created, table.ended, _reason(), used.label("used"))
        .where(
            table.queue == queue,
            or_(used, and_(table.cancel_requested.is_(None), table.state.in_(_OVER))),
        )
        .order_by(table.created.desc())
        .limit(_NEWEST)
    )
    failures, last, reason = 0, 0.0, ""
    for row in conn.execute(newest):
        if row.used:
            break
        failures += 1
        last = max(last, row.ended if row.ended is not None else row.created)
        reason = reason or row.reason
    until = last + min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (failures - 1))
    return Pause(until, failures, reason) if failures and now < until else None


def _reason() -> Label[str]:
    """Why nothing came of an allocation: of its pilot, if it had one."""
    table, pilot = schema.allocation.c, schema.pilot.c
    of_pilot = select(func.max(pilot.reason)).where(
        pilot.allocation == table.id, pilot.reason.startswith(NO_NODE)
    )
    return func.coalesce(of_pilot.scalar_subquery(), table.reason).label("reason")


class Announcer:
    """Tells of each pause once, in the service's log; one for the life of a service process."""

    def __init__(self) -> None:
        self._told: dict[str, Pause] = {}

    def tell(self, paused: Mapping[str, Pause]) -> None:
        """Log those queues whose pause is a new one."""
        for queue, pause in paused.items():
            if self._told.get(queue) == pause:
                continue
            self._told[queue] = pause
            again = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(pause.until))
            log.warning(
                "queue %s is asked for nothing until %s: %d in a row came to nothing, the last: %s",
                queue, again, pause.failures, pause.reason or "no reason is known",
            )  # fmt: skip
