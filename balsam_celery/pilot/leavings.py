"""What a worker leaves that its pilot gives up: outcomes that must reach the service yet (R5)."""

from __future__ import annotations

import time

import redis

from balsam_celery.outbox import Outbox
from balsam_celery.pilot.context import WorkerContext
from balsam_celery.pilot.post import Post
from balsam_celery.wire import Ended, WorkerLost


class Leavings:
    """The outbox of a worker that is not started again; no process of it lives.

    Args:
        context: the worker.
        client: Redis, of the pilot's main process.
        reason: why it is given up.
    """

    def __init__(self, context: WorkerContext, client: redis.Redis, reason: str) -> None:
        self._outbox = Outbox(context.outbox_path)
        now = time.time()
        self._outbox.end(
            [
                Ended(id, attempt, "lost", "its worker died", now)
                for id, attempt in self._outbox.lost
            ]
        )
        pilot = context.pilot
        self._post = Post(client, pilot.site.settings.key_prefix, pilot.pilot, context.node)
        self.record = WorkerLost(pilot.pilot, context.node, reason, False, now)

    def deliver(self) -> bool:
        """Send what is not acknowledged; true when nothing is left."""
        waiting = self._outbox.unacknowledged()
        if waiting:
            answer = self._post.exchange(waiting, [])
            if answer is not None:
                self._outbox.acknowledge(answer.acknowledged)
        return not self._outbox.held()

    def close(self) -> None:
        """Let go of the file."""
        self._outbox.close()
