"""A sender's exchange with the service: what is not acknowledged is told again, not too often."""

from __future__ import annotations

import itertools
import json

import pytest
import redis

from balsam_celery import keys
from balsam_celery.pilot import post as module
from balsam_celery.pilot.post import Post
from balsam_celery.wire import Ended, encode
from tests.redis_server import RedisServer

_counter = itertools.count()
OUTCOME = (7, encode(Ended("t00001", 1, "exit", "", 5.0)))


class Hours:
    """The monotonic clock, as a test sets it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> Hours:
    made = Hours()
    monkeypatch.setattr(module.time, "monotonic", made)
    return made


def test_what_nobody_reads_does_not_fill_redis(
    redis_server: RedisServer, hours: Hours, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQL or the service may be away for hours, and with it who reads the inbox."""
    prefix = f"post{next(_counter)}."
    with redis_server.client() as client:
        sender = Post(client, prefix, "p1", "n0")

        def pass_time(seconds: int) -> int:
            """Exchange each second, as a courier does; returns how often it was pushed."""
            before = client.llen(keys.inbox(prefix))
            for _ in range(seconds):
                hours.now += 1
                answer = sender.exchange([OUTCOME], [])
                assert answer is None or answer.acknowledged == []
            return client.llen(keys.inbox(prefix)) - before

        sender.push([], [OUTCOME])
        assert client.llen(keys.inbox(prefix)) == 1
        assert pass_time(12) == 1, "one that was lost is soon there again"
        assert 10 <= pass_time(3600) <= 20
        # a Redis that was away may have lost all of them
        with monkeypatch.context() as away:
            away.setattr(client, "pipeline", _refuse)
            assert pass_time(5) == 0
        assert pass_time(12) >= 1
        client.rpush(keys.acks(prefix, "p1", "n0"), json.dumps([7]))
        answer = sender.exchange([OUTCOME], [])
        assert answer is not None
        assert answer.acknowledged == [7]


def _refuse(**_: object) -> object:
    raise redis.ConnectionError("away")
