"""Where messages arrive: what is new is run, what was seen before is not, kills are answered."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from balsam_celery.outbox import Outbox
from balsam_celery.pilot.attempt import Attempt
from balsam_celery.pilot.courier import Courier
from balsam_celery.pilot.pool import AttemptPool
from balsam_celery.wire import Ended, KillAsked, KillOrder, TaskSpec

logger = logging.getLogger(__name__)


class Desk:
    """Decides, for one worker, what a message leads to; called on Celery's thread only."""

    def __init__(self, outbox: Outbox, pool: AttemptPool, courier: Courier) -> None:
        self._outbox = outbox
        self._pool = pool
        self._courier = courier

    def run(self, specs: Sequence[TaskSpec]) -> None:
        """Run what has not been seen here before; each attempt runs once at the most."""
        spans = {
            (spec.id, spec.attempt): tuple(share.node for share in spec.shares)
            for spec in specs
            if len(spec.shares) > 1
        }
        new = set(self._outbox.receive([(spec.id, spec.attempt) for spec in specs], spans))
        attempts = []
        for spec in specs:
            if (spec.id, spec.attempt) in new:
                new.remove((spec.id, spec.attempt))
                attempts.append(Attempt(spec))
            else:
                logger.info("attempt %d of %s came again: dropped", spec.attempt, spec.id)
        if attempts:
            self._pool.submit(attempts)

    def kill(self, order: KillOrder) -> None:
        """Carry out a kill order; its answer is always an outcome (see :class:`KillOrder`)."""
        key = (order.id, order.attempt)
        unknown = self._pool.condemn(
            [(key, "killed", order.reason)], waiting_only=order.waiting_only
        )
        if not unknown or self._outbox.owes(*key):
            # what runs no more, but whose outcome is not there, has it on its way; or nobody has
            # confirmed that it is over, and then it must not be told (R4)
            return
        fenced = self._outbox.receive([key])
        if not fenced and self._courier.again(*key):
            return
        reason = order.reason if fenced else "it ended long ago, and its outcome was acknowledged"
        self._courier.put(Ended(order.id, order.attempt, "fenced", reason, ended=time.time()), True)

    def ask_kill(self, ids: Sequence[str], terminate: bool, who: str) -> None:
        """Forward Celery's revoke or terminate to the service, where kills go through SQL (R8)."""
        self._courier.tell(KillAsked(tuple(ids), terminate, who))
