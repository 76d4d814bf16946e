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


class RedisServer:
    """A redis-server process; ``stop`` and ``start`` keep port and data (AOF)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.password = secrets.token_hex(16)
        self.url = f"redis://:{self.password}@127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None
        (directory / "redis.conf").write_text(
            f"bind 127.0.0.1\nport {self.port}\nrequirepass {self.password}\ndir {directory}\n"
            "appendonly yes\nappendfsync everysec\nsave ''\nmaxmemory-policy noeviction\n",
            encoding="utf-8",
        )

    def start(self) -> None:
        """Start and wait until it answers."""
        with (self.directory / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(
                [find_server(""), str(self.directory / "redis.conf")], stdout=log, stderr=log
            )
        wait_until(self._answers, 20, "redis-server answers")

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url) as client:
                return bool(client.ping())
        except redis.exceptions.ConnectionError:
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
