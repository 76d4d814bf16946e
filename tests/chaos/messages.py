"""Messages of a run, seen on their way through Redis and sent once more."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import redis

_ESCAPED = re.compile(rb"\\(?:x([0-9a-f]{2})|(.))", re.DOTALL)
_PLAIN = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b"}
_WORD = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_PUSHES = {b"LPUSH": True, b"RPUSH": False}


@dataclass(frozen=True, slots=True)
class Message:
    """What was pushed to a list."""

    key: bytes
    left: bool
    values: tuple[bytes, ...]


def parse(line: bytes, prefix: bytes) -> Message | None:
    """The message that a line of MONITOR shows, ``None`` if it shows none of the site's."""
    words = [_ESCAPED.sub(_unescape, word) for word in _WORD.findall(line)]
    if len(words) < 3 or words[0].upper() not in _PUSHES or not words[1].startswith(prefix):
        return None
    return Message(words[1], _PUSHES[words[0].upper()], tuple(words[2:]))


def _unescape(found: re.Match[bytes]) -> bytes:
    if found[1] is not None:
        return bytes([int(found[1], 16)])
    return _PLAIN.get(found[2], found[2])


def watch(client: redis.Redis, prefix: str, *, most: int, within: float) -> list[Message]:
    """Messages that pass in the next ``within`` seconds, at most ``most``.

    Raises:
        redis.RedisError, OSError: Redis is away.
    """
    found: list[Message] = []
    connection = client.connection_pool.get_connection()
    deadline = time.monotonic() + within
    try:
        connection.send_command("MONITOR")
        connection.read_response()
        # a quiet server must not hold the run up
        while len(found) < most and connection.can_read(max(0.0, deadline - time.monotonic())):
            line = connection.read_response(disable_decoding=True)
            if isinstance(line, bytes) and (message := parse(line, prefix.encode())) is not None:
                found.append(message)
            if time.monotonic() > deadline:
                break
    finally:
        connection.disconnect()
    return found


def send_again(client: redis.Redis, messages: list[Message]) -> None:
    """Push them once more, where they were pushed.

    Raises:
        redis.RedisError: Redis is away.
    """
    for message in messages:
        push = client.lpush if message.left else client.rpush
        push(message.key, *message.values)
