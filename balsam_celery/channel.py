"""A Redis channel that survives whatever lies in its queues.

Kombu's own lets the error of a message that is not JSON, or not a message, or not one that Celery
can make a request of, out of the event loop, and the worker dies of it. Worse, a message that got
as far as the list of unacknowledged ones is put back when the worker dies, and kills the next.
Here it is logged and dropped, and holds no place in the worker's prefetch window.
"""

from __future__ import annotations

import logging
from queue import Empty
from typing import Any

from kombu.transport import redis
from redis.exceptions import DataError

logger = logging.getLogger(__name__)

_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError, DataError)


class CarefulChannel(redis.Channel):
    """See the module."""

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Any, consumer_tag: Any, **_: Any
    ) -> Any:
        """As kombu's; a message that nobody understands is dropped."""

        def careful(message: Any) -> Any:
            try:
                return callback(message)
            except _UNREADABLE as error:
                logger.error("dropped a message that is not one of ours: %r", error)
                if not no_ack and not message.acknowledged:
                    message.ack()

        return super().basic_consume(queue, no_ack, careful, consumer_tag)

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]  # not in the stubs
        except _UNREADABLE as error:
            logger.error("dropped a message that is not one of ours: %r", error)
            raise Empty from error

    def _receive_one(self, c: Any) -> Any:
        try:
            return super()._receive_one(c)  # type: ignore[misc]  # not in the stubs
        except _UNREADABLE as error:
            logger.error("dropped a broadcast that is not one of ours: %r", error)
            raise Empty from error
