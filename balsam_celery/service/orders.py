"""Orders to the main processes of pilots, through Redis."""

from __future__ import annotations

import redis

from balsam_celery import keys
from balsam_celery.wire import PilotOrder, encode

#: Seconds after which an order that nobody took is forgotten.
LIFE = 3600


def give(client: redis.Redis, prefix: str, pilot: str, order: PilotOrder) -> None:
    """Give an order, unless one waits already; it is forgotten if nobody takes it.

    Raises:
        redis.RedisError: Redis did not answer.
    """
    key = keys.control(prefix, pilot)
    if not client.llen(key):
        client.rpush(key, encode(order))
    client.expire(key, LIFE)


def give_beside(client: redis.Redis, prefix: str, pilot: str, order: PilotOrder) -> None:
    """Give an order beside others that wait, unless it waits itself.

    Raises:
        redis.RedisError: Redis did not answer.
    """
    key, text = keys.control(prefix, pilot), encode(order)
    waiting = client.lrange(key, 0, -1)
    if text not in waiting and text.encode() not in waiting:
        client.rpush(key, text)
    client.expire(key, LIFE)
