"""Reports stay in Redis until what they tell is committed."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator

import pytest
import redis

from balsam_celery import keys
from balsam_celery.service.inbox import Inbox, push
from balsam_celery.wire import Report, Started, Wake, encode
from tests.redis_server import RedisServer


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    made = redis_server.client()
    yield made
    made.close()


@pytest.fixture
def prefix() -> str:
    return f"t.{secrets.token_hex(4)}."


def report(number: int) -> Report:
    return Report("p", "n", ((number, Started("t", number, 1.0, 1)),))


def test_read_is_a_look_and_drop_takes_away(client: redis.Redis, prefix: str) -> None:
    inbox = Inbox(client, prefix)
    assert not inbox.read(0).raw
    for number in range(1, 8):
        client.rpush(keys.inbox(prefix), encode(report(number)))
    letters = inbox.read(0, limit=5)
    assert letters.reports == tuple(report(number) for number in range(1, 6))
    assert inbox.read(0, limit=5) == letters
    inbox.acknowledge(letters.reports)
    assert json.loads(client.lrange(keys.acks(prefix, "p", "n"), 0, -1)[0]) == [1, 2, 3, 4, 5]
    inbox.drop(letters)
    assert inbox.read(0).reports == (report(6), report(7))


def test_one_that_comes_late_takes_nothing_of_others_away(client: redis.Redis, prefix: str) -> None:
    old, new = Inbox(client, prefix), Inbox(client, prefix)
    for number in range(1, 4):
        client.rpush(keys.inbox(prefix), encode(report(number)))
    seen_by_old = old.read(0, limit=2)
    new.drop(new.read(0, limit=2))
    old.drop(seen_by_old)
    assert new.read(0).reports == (report(3),)


def test_read_waits_for_the_first_report(
    client: redis.Redis, redis_server: RedisServer, prefix: str
) -> None:
    begun = time.monotonic()
    assert not Inbox(client, prefix).read(0.2).raw
    assert time.monotonic() - begun >= 0.15
    found: list[int] = []
    thread = threading.Thread(
        target=lambda: found.append(len(Inbox(client, prefix).read(20).reports))
    )
    thread.start()
    with redis_server.client() as other:
        push(other, prefix, Wake())
    thread.join(10)
    assert found == [1]
    # it was moved from the head to the head, so it is there once
    assert client.llen(keys.inbox(prefix)) == 1


def test_strange_reports_are_taken_away(client: redis.Redis, prefix: str) -> None:
    strange = [b"\xff", b"null", b"[]", b'{"records": [[1, {"type": "Ended"}]]}', b'{"x": 1}']
    client.rpush(keys.inbox(prefix), *strange)
    inbox = Inbox(client, prefix)
    letters = inbox.read(0)
    assert (len(letters.raw), letters.reports, letters.told) == (5, (), ())
    inbox.drop(letters)
    assert not inbox.read(0).raw


def test_one_that_comes_late_knows_all_that_it_read(client: redis.Redis, prefix: str) -> None:
    """The reports at both ends are alike, and so is their number."""
    old, new = Inbox(client, prefix), Inbox(client, prefix)
    key, wake = keys.inbox(prefix), encode(Report(records=((0, Wake()),)))
    client.rpush(key, wake, encode(report(1)), wake)
    seen_by_old = old.read(0)
    new.drop(new.read(0))
    client.rpush(key, wake, encode(report(2)), wake)
    old.drop(seen_by_old)
    assert len(new.read(0).reports) == 3
    new.drop(new.read(0))
    assert not client.llen(key)


def test_a_sender_that_cannot_be_told_keeps_no_other_from_it(
    client: redis.Redis, prefix: str
) -> None:
    client.set(keys.acks(prefix, "p", "n"), "no list")
    other = Report("p", "other", ((7, Started("t", 1, 1.0, 1)),))
    Inbox(client, prefix).acknowledge((report(1), other))
    assert client.lrange(keys.acks(prefix, "p", "other"), 0, -1) == [b"[7]"]
