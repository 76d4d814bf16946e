"""The service's inbox in Redis: reports stay there until what they tell is committed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from balsam_celery import keys
from balsam_celery.service.senders import Told, told
from balsam_celery.wire import MalformedMessage, Record, Report, decode, encode

log = logging.getLogger(__name__)

#: Seconds that an acknowledgement waits for a worker that is gone.
_ACK_LIFE = 86400
#: Only the leader takes reports away, and one that lost its lease must not take others' away: what
#: begins the inbox must be, to the byte, all that it has read. One report would not do, for many
#: (each :class:`~balsam_celery.wire.Wake`) are alike.
_DROP = """
local head = redis.call('LRANGE', KEYS[1], 0, ARGV[1] - 1)
if #head == tonumber(ARGV[1]) and redis.sha1hex(table.concat(head, '\\n')) == ARGV[2] then
    redis.call('LTRIM', KEYS[1], ARGV[1], -1)
    return 1
end
return 0
"""


@dataclass(frozen=True, slots=True)
class Letters:
    """What was read: the raw reports, those of them that are ours, and what these tell."""

    raw: tuple[bytes | str, ...] = ()
    reports: tuple[Report, ...] = ()
    told: tuple[Told, ...] = ()


class Inbox:
    """Reads reports, drops them once recorded, acknowledges them.

    Every method may raise ``redis.exceptions.RedisError``: nothing is lost, try again later.
    """

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        self._client = client
        self._prefix = prefix
        self._key = keys.inbox(prefix)

    def read(self, timeout: float, limit: int = 500) -> Letters:
        """At most ``limit`` reports, waiting up to ``timeout`` seconds for the first.

        They stay in the inbox until :meth:`drop`.
        """
        raw = self._client.lrange(self._key, 0, limit - 1)
        if not raw and timeout > 0:
            # moves the first report from the head to the head: a look that waits
            # (the server takes fractions of a second, which the stubs do not know)
            wait: Any = timeout
            self._client.blmove(self._key, self._key, wait, "LEFT", "LEFT")
            raw = self._client.lrange(self._key, 0, limit - 1)
        reports: list[Report] = []
        for text in raw:
            try:
                reports.append(decode(Report, text))
            except MalformedMessage as error:
                log.warning("dropped a report that is not ours: %s", error)
        records = tuple(one for report in reports for one in told(report))
        return Letters(tuple(raw), tuple(reports), records)

    def drop(self, letters: Letters) -> None:
        """Take away what was read: it is recorded.

        Nothing is taken when something else begins the inbox now: another has led since.
        """
        if letters.raw:
            every = (one if isinstance(one, bytes) else one.encode() for one in letters.raw)
            digest = hashlib.sha1(b"\n".join(every), usedforsecurity=False).hexdigest()
            self._client.eval(_DROP, 1, self._key, len(letters.raw), digest)

    def acknowledge(self, reports: Sequence[Report]) -> None:
        """Tell the senders which numbered records need not be sent again.

        One that Redis refuses to tell keeps no other from it, and sends its records again.
        """
        numbers: dict[tuple[str, str], list[int]] = defaultdict(list)
        for report in reports:
            for number, _ in report.records:
                if number > 0:
                    numbers[report.pilot, report.node].append(number)
        if not numbers:
            return
        with self._client.pipeline(transaction=False) as pipe:
            for (pilot, node), seen in numbers.items():
                key = keys.acks(self._prefix, pilot, node)
                pipe.rpush(key, json.dumps(seen))
                pipe.expire(key, _ACK_LIFE)
            answers = pipe.execute(raise_on_error=False)
        for (pilot, node), answer in zip(numbers, answers[::2], strict=True):
            if isinstance(answer, Exception):
                log.warning("%s of pilot %s was not acknowledged: %s", node, pilot, answer)


def waiting(client: redis.Redis, prefix: str) -> Iterator[Record]:
    """All records that lie in the inbox; it stays as it is.

    Raises:
        redis.exceptions.RedisError: Redis did not answer.
    """
    for text in client.lrange(keys.inbox(prefix), 0, -1):
        try:
            report = decode(Report, text)
        except MalformedMessage:
            continue  # it is refused, and told, where the inbox is read
        yield from (record for _, record in report.records)


def push(client: redis.Redis, prefix: str, *records: Record) -> None:
    """Put unnumbered records into the inbox.

    Raises:
        redis.exceptions.RedisError: Redis did not take them.
    """
    report = Report(records=tuple((0, record) for record in records))
    client.rpush(keys.inbox(prefix), encode(report))
