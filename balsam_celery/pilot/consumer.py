"""Celery's consumer as a pilot's worker needs it: careful channel, short pauses, no chatter."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

from celery import bootsteps
from celery.utils.sysinfo import load_average
from celery.worker import heartbeat
from celery.worker.consumer import Consumer
from celery.worker.consumer.heart import Heart
from celery.worker.consumer.tasks import Tasks
from celery.worker.state import SOFTWARE_INFO, maybe_shutdown

from balsam_celery.channel import CarefulChannel
from balsam_celery.pilot.pool import AttemptPool

logger = logging.getLogger(__name__)


class PoolHeartbeat(heartbeat.Heart):
    """Worker events that count what the pool runs; Celery's counters know nothing of it."""

    def __init__(self, pool: AttemptPool, *args: Any) -> None:
        super().__init__(*args)
        self._pool = pool

    def _send(self, event: str, retry: bool = True) -> Any:
        heart: Any = self  # its attributes are not in the stubs
        return heart.eventer.send(
            event,
            freq=heart.interval,
            active=len(self._pool.running()),
            processed=self._pool.processed,
            loadavg=load_average(),
            retry=retry,
            **SOFTWARE_INFO,
        )


class PoolHeart(Heart):
    """Bootstep that starts :class:`PoolHeartbeat`."""

    def start(self, c: Any) -> None:
        """Called on each connection."""
        heart: Any = self
        c.heart = PoolHeartbeat(c.pool, c.timer, c.event_dispatcher, heart.heartbeat_interval)
        c.heart.start()


class PilotConsumer(Consumer):
    """Consumes one queue for ever."""

    class Blueprint(bootsteps.Blueprint):
        """Celery's without gossip, mingle's exchange of revoked ids, and delayed delivery."""

        name = "Consumer"
        default_steps: ClassVar[set[Any]] = {  # type: ignore[misc]  # the stubs err
            "celery.worker.consumer.connection:Connection",
            "celery.worker.consumer.events:Events",
            PoolHeart,
            Tasks,
            "celery.worker.consumer.control:Control",
            "celery.worker.consumer.consumer:Evloop",
        }

        def shutdown(self, parent: Any) -> None:
            """As in Celery's own."""
            self.send_all(parent, "shutdown")

    def connection_for_read(self, heartbeat: Any = None) -> Any:
        """The connection that messages and orders come by."""
        connection: Any = self.app.connection_for_read(heartbeat=heartbeat)
        connection.transport.Channel = CarefulChannel
        return self.ensure_connected(connection)

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, trying for ever; Celery would pause up to 30 s between tries."""

        def tell(error: Exception, interval: float) -> None:
            logger.warning("Redis cannot be reached, trying again: %s", error)

        connection = conn.ensure_connection(
            tell,
            None,
            interval_start=0.2,
            interval_step=0.2,
            interval_max=1,
            callback=maybe_shutdown,
        )
        self.first_connection_attempt = False
        return connection
