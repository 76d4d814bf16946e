"""Messages to workers on the login node may come twice or late: which copy of one may run.

The broker restores what is not acknowledged, and a service that is killed before it has noted that
it sent a message sends it again (R3). So every message carries its *order*, a text that is greater
the later the service meant it; copies that mean the same run have the same. Before a worker begins,
it writes the order into Redis, and it begins only if none as great stands there. What was lost with
its worker is sent with a greater one, which nothing of the dead worker keeps from running.

A Redis that was killed may have forgotten its last seconds: that a message was taken, and that it
has begun. Then it gives the message out again. So a worker also remembers what it began itself.
"""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field

import redis

from balsam_celery import keys

#: Seconds that an order stands in Redis: while its run may go on; and after that, for copies that
#: come late.
_WHILE, _AFTER = 30 * 86400, 86400
# again is harmless: a worker that did not get the answer asks once more
_BEGIN = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[2] and string.sub(held, 1, #ARGV[1]) >= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""
_END = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
"""


def step_order(attempt: int, replaced: int, retries: int) -> str:
    """Order of a step's message: its attempt, and within that Celery's own new messages."""
    return f"{attempt:09}.{replaced:06}.{retries:09}"


def hook_order(sent: float) -> str:
    """Order of a message to the transitions worker; ``sent`` as it carries it."""
    return f"{sent:020.6f}"


def later_than(order: str | None, sent: float | None, now: float) -> float:
    """The time that a new message to the transitions worker carries.

    Later than any that was sent or has begun, also by a clock that has gone back: a copy that does
    not begin would be taken for lost again and again.

    Args:
        order: of the copy that began last, from :func:`last_begun`.
        sent: what the last message carried, ``None`` if that is not known.
        now: seconds since the epoch.
    """
    begun = 0.0 if order is None else float(order)
    return max(now, begun + 1, (sent or 0.0) + 1)


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy of a message, in the hands of one worker.

    Attributes:
        key: of the message, from ``keys.begun``.
        order: its order; those of one message have the same length.
    """

    key: str
    order: str
    _holder: str = field(default_factory=lambda: uuid.uuid4().hex)

    def begin(self, client: redis.Redis) -> bool:
        """Take the message; ``False``: this run, or a later one, has begun elsewhere.

        Raises:
            redis.RedisError: Redis did not answer; ask again.
        """
        return bool(client.eval(_BEGIN, 1, self.key, self.order, self._text, str(_WHILE)))

    def end(self, client: redis.Redis) -> bool:
        """The run is over; ``False``: a later one has begun, and the word is its.

        Raises:
            redis.RedisError: Redis did not answer; ask again.
        """
        return bool(client.eval(_END, 1, self.key, self._text, str(_AFTER)))

    @property
    def _text(self) -> str:
        return f"{self.order} {self._holder}"


class Begun:
    """What this process has begun, by name; safe between threads.

    Args:
        most: so many are remembered, the latest.
    """

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._orders: OrderedDict[str, str] = OrderedDict()

    def has(self, name: str, order: str) -> bool:
        """A copy of that order, or a later one, has begun here."""
        with self._lock:
            return self._orders.get(name, "") >= order

    def note(self, name: str, order: str) -> bool:
        """Note a copy that begins; ``False``: one as late has begun before."""
        with self._lock:
            if self._orders.get(name, "") >= order:
                return False
            self._orders[name] = order
            self._orders.move_to_end(name)
            while len(self._orders) > self._most:
                self._orders.popitem(last=False)
            return True


def last_begun(client: redis.Redis, prefix: str, name: str) -> str | None:
    """Order of the copy of a message that began last, ``None`` if none did.

    Args:
        client: Redis.
        prefix: the site's.
        name: as in ``keys.begun``.

    Raises:
        redis.RedisError: Redis did not answer.
    """
    held = client.get(keys.begun(prefix, name))
    return held.decode().partition(" ")[0] if isinstance(held, bytes) else None
