"""Messages are seen as they pass and are sent again, byte for byte."""

from __future__ import annotations

import threading

import redis

from tests.chaos.messages import Message, send_again, watch
from tests.redis_server import RedisServer

BODY = '{"a": "\\"quoted\\" \\\\ back"}\n\x00\x06\x16ü'.encode()


def test_a_message_that_passed_comes_once_more(redis_server: RedisServer) -> None:
    with redis_server.client() as client, redis_server.client() as watcher:
        seen: list[Message] = []
        stop = threading.Event()

        def push() -> None:
            while not stop.is_set():
                client.lpush("other.list", b"x")
                client.lpush("chaos-test.list", BODY, b"second")
                stop.wait(0.01)

        pusher = threading.Thread(target=push)
        pusher.start()
        try:
            seen = watch(watcher, "chaos-test.", most=1, within=20.0)
        finally:
            stop.set()
            pusher.join()
        assert seen == [Message(b"chaos-test.list", True, (BODY, b"second"))]
        client.delete("chaos-test.list")
        send_again(client, seen)
        assert client.lrange("chaos-test.list", 0, -1) == [b"second", BODY]
        client.delete("chaos-test.list", "other.list")


def test_a_quiet_server_holds_nobody_up(redis_server: RedisServer) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        assert watch(client, "chaos-quiet.", most=1, within=0.3) == []
        assert client.ping()
