"""The Redis of the tests."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.redis_server import RedisServer


def test_a_port_that_somebody_has_taken_since_we_looked(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    first = server.port
    with socket.create_server(("127.0.0.1", first)):
        try:
            server.start()
            assert server.port != first
            with server.client() as client:
                client.set("key", "value")
            address = server.url
            server.stop()
            server.start()
            assert server.url == address
            with server.client() as client:
                assert client.get("key") == b"value"
        finally:
            server.stop()
