"""One sender's side of the exchange with the service: push, push again, take acknowledgements."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from balsam_celery import keys
from balsam_celery.wire import Record, encode

logger = logging.getLogger(__name__)

#: Seconds after which a record that was not acknowledged is pushed again: at first, and, since they
#: double each time, at the most. What nobody reads stays in Redis, each copy of it.
RESEND_AFTER, RESEND_LONGEST = 10.0, 300.0
#: Records in one push at the most.
_BATCH = 200
#: Acknowledgements taken in one exchange at the most.
_ACKS = 1000
#: Seconds without a try after Redis did not answer.
_PAUSE_FIRST, _PAUSE_LONGEST = 0.1, 1.0

Numbered = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What an exchange brought: acknowledged numbers, and results of the extra commands."""

    acknowledged: list[int]
    results: list[Any]


class Post:
    """Sends for one worker (or a pilot's main process) over one Redis client.

    While Redis is away every call returns at once, and tries again after a short pause.

    Attributes:
        came_back: Redis was away and answers again; whoever acts on it clears it.
    """

    def __init__(self, client: redis.Redis, prefix: str, pilot: str, node: str) -> None:
        self._client = client
        self._inbox = keys.inbox(prefix)
        self._acks = keys.acks(prefix, pilot, node)
        self._head = f'{{"pilot":{json.dumps(pilot)},"node":{json.dumps(node)},"records":['
        self._sent: dict[int, tuple[float, float]] = {}  # when, and how long to wait then
        self._unsent: list[str] = []  # records without a number, kept while Redis is away
        self._pause = 0.0
        self._not_before = 0.0
        self.came_back = False

    @property
    def reached(self) -> bool:
        """Redis answered the last time."""
        return not self._pause

    def push(self, records: Iterable[Record], numbered: Sequence[Numbered]) -> None:
        """Push now, if Redis is there; what has a number is tried again by :meth:`exchange`."""
        self._unsent += [f"[0,{encode(record)}]" for record in records]
        items = [*self._unsent, *(f"[{number},{text}]" for number, text in numbered)]
        if not items:
            return
        reports = [
            f"{self._head}{','.join(items[start : start + _BATCH])}]}}"
            for start in range(0, len(items), _BATCH)
        ]
        if self._try([("RPUSH", self._inbox, *reports)]) is not None:
            self._unsent = []
            now = time.monotonic()
            for number, _ in numbered:
                _, waited = self._sent.get(number, (0.0, RESEND_AFTER / 2))
                self._sent[number] = now, min(2 * waited, RESEND_LONGEST)

    def exchange(
        self, unacknowledged: Sequence[Numbered], commands: Sequence[tuple[str, ...]]
    ) -> Answer | None:
        """Push what is due, take acknowledgements, run ``commands``; ``None``: Redis is away."""
        now = time.monotonic()
        due = []
        for number, text in unacknowledged:
            sent, wait = self._sent.get(number, (float("-inf"), 0.0))
            if now - sent > wait:
                due.append((number, text))
        self.push([], due)
        results = self._try([("LPOP", self._acks, str(_ACKS)), *commands])
        if results is None:
            return None
        numbers = [number for text in results[0] or () for number in _numbers(text)]
        for number in numbers:
            self._sent.pop(number, None)
        return Answer(numbers, results[1:])

    def _try(self, commands: Sequence[tuple[str, ...]]) -> list[Any] | None:
        if time.monotonic() < self._not_before:
            return None
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                for command in commands:
                    pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
                results: list[Any] = pipeline.execute()
        except (redis.RedisError, OSError) as error:
            if not self._pause:
                logger.warning("Redis does not answer; outcomes wait: %s", error)
            self._pause = min(max(_PAUSE_FIRST, self._pause * 2), _PAUSE_LONGEST)
            self._not_before = time.monotonic() + self._pause
            return None
        if self._pause:
            logger.warning("Redis answers again")
            self._pause = 0.0
            self.came_back = True
            # it may have forgotten what it had taken
            self._sent = {number: (sent, RESEND_AFTER) for number, (sent, _) in self._sent.items()}
        return results


def _numbers(text: bytes) -> list[int]:
    try:
        numbers = json.loads(text)
    except (ValueError, RecursionError):
        numbers = None
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        logger.warning("an acknowledgement that is not one: %.100r", text)
        return []
    return numbers
