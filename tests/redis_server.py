"""A private Redis for tests: own port and password, gone at the end."""

from __future__ import annotations

import secrets
import socket
import subprocess
from pathlib import Path

import redis

from balsam_celery.redisserver import find_server
from tests.waiting import wait_until


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


_START_TRIES = 3


class RedisServer:
    """A redis-server process; ``stop`` and ``start`` keep port and data (AOF)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.password = secrets.token_hex(16)
        self.process: subprocess.Popen[bytes] | None = None
        self._has_answered = False

    @property
    def url(self) -> str:
        """Its address; for good once it was started."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start and wait until it answers."""
        for left in reversed(range(1 if self._has_answered else _START_TRIES)):
            if self._try_start():
                self._has_answered = True
                return
            # somebody may have taken the port since we looked
            log = (self.directory / "redis.log").read_text()
            assert left, f"redis-server does not start: {log}"
            self.port = free_port()

    def _try_start(self) -> bool:
        configuration = self.directory / "redis.conf"
        configuration.write_text(
            f"bind 127.0.0.1\nport {self.port}\nrequirepass {self.password}\n"
            f"dir {self.directory}\nappendonly yes\nappendfsync everysec\nsave ''\n"
            "maxmemory-policy noeviction\n",
            encoding="utf-8",
        )
        with (self.directory / "redis.log").open("ab") as log:
            process = subprocess.Popen(
                [find_server(""), str(configuration)], stdout=log, stderr=log
            )
        self.process = process
        try:
            wait_until(
                lambda: process.poll() is not None or self._answers(), 20, "redis-server answers"
            )
        except AssertionError:
            self.stop(kill=True)
            raise
        return process.poll() is None

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url) as client:
                return bool(client.ping())
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
            return False

    def client(self) -> redis.Redis:
        """A new client."""
        return redis.Redis.from_url(self.url)

    def stop(self, kill: bool = False) -> None:
        """Stop (or kill -9) and wait until it is gone."""
        if self.process is not None:
            self.process.kill() if kill else self.process.terminate()
            self.process.wait(20)
            self.process = None
